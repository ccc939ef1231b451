"""PostgresAppend: a group of batches as one statement, decided on what is remembered of the streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from backends.deciding import Group, Head, Place
from backends.postgres_driver import DRIVER_ERRORS, InternalClientError
from backends.postgres_errors import may_be_decided_again, translated
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from eventstore.backend import Appended, AppendOutcome, Batch
from eventstore.errors import EventEncodeError, StoreBusy
from eventstore.events import stream_kind

# How many streams are remembered: beyond it the memory starts anew, and streams are looked up again.
_MAX_REMEMBERED = 100_000

# A group that loses to other writers is decided again on what they stored: first as it stands, then with its streams
# locked before the decision, so that nobody can be faster. The rest is for streams that do not exist yet, which
# nobody can lock, and for deadlocks with programs of other people.
_OPTIMISTIC_ROUNDS = 3
_ROUNDS = 12

# What stands between texts that are strung together.
_SEPARATOR = "\x1e"

# Positions are known after the decision. Where places of stored events are compared, the group's own stand behind all
# of them until then.
_UNKNOWN = 2**62


class PostgresAppend:
    """Appends groups, one after another, on a session of its own that nothing else can keep busy."""

    def __init__(self, sql: PostgresSQL, connect: Callable[[], Awaitable[PostgresSession]]) -> None:
        self._sql = sql
        self._connect = connect
        self._session: PostgresSession | None = None
        self._streams: dict[str, Head] = {}
        self._turn = asyncio.Lock()
        self._last_recorded_at = 0
        self.last_position = 0
        """The end of the log as far as it was stored here; the log may be further."""

    def forget(self, stream_id: str) -> None:
        """Look the stream up before the next append: something else than an append has changed it."""
        self._streams.pop(stream_id, None)

    async def open(self) -> None:
        """Connect now, so that what is wrong is found before the first append."""
        async with self._turn:
            await self._usable_session()

    async def close(self) -> None:
        """Close the session, after the append that is under way."""
        async with self._turn:
            session, self._session = self._session, None
            if session is not None:
                await session.close()

    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        """Store the batches in one commit. On any error nothing is remembered."""
        async with self._turn:
            try:
                return await self._append(batches)
            except BaseException:
                self._streams.clear()
                raise

    async def _append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        stream_ids = {write.stream_id for batch in batches for write in batch}
        for number in range(_ROUNDS):
            session = await self._usable_session()
            try:
                if number == 0:
                    outcomes = await self._append_remembered(session, batches, stream_ids)
                elif number <= _OPTIMISTIC_ROUNDS:
                    outcomes = await self._append_looked_up(session, batches, stream_ids)
                else:
                    async with session.transaction():
                        outcomes = await self._append_looked_up(session, batches, stream_ids, lock=True)
            except DRIVER_ERRORS as error:
                if not may_be_decided_again(error):
                    self._drop(session)
                    raise translated(error, writing=True) from error
                outcomes = None
            if outcomes is not None:
                return outcomes
        raise StoreBusy("other writers were faster every time: nothing was stored, try again")

    async def _append_remembered(
        self, session: PostgresSession, batches: Sequence[Batch], stream_ids: set[str]
    ) -> Sequence[AppendOutcome] | None:
        """Decide on what is remembered. None: it takes more than that to decide."""
        if len(self._streams) > _MAX_REMEMBERED:
            self._streams.clear()
        unknown = [stream_id for stream_id in stream_ids if stream_id not in self._streams]
        if unknown:
            # Who expects no stream is most often right; if not, the statement stores nothing.
            new = {write.stream_id for batch in reversed(batches) for write in batch if write.expected == 0}
            for stream_id in new.intersection(unknown):
                self._streams[stream_id] = Head(0, 0, 0)
            await self._look_up(session, [stream_id for stream_id in unknown if stream_id not in new])
        group = Group(self._streams, self.last_position)
        for batch in batches:
            if not isinstance(group.decide(batch), Appended):
                return None
        return await self._store(session, group, stream_ids) if group.rows else None

    async def _append_looked_up(
        self, session: PostgresSession, batches: Sequence[Batch], stream_ids: set[str], *, lock: bool = False
    ) -> Sequence[AppendOutcome] | None:
        """Decide on what the journal holds. None: it held something else by the time of storing."""
        for stream_id in stream_ids:
            self._streams.pop(stream_id, None)
        await self._look_up(session, list(stream_ids), lock=lock)
        # After the streams: what another session stored before they were read is found.
        places = await self._places(session, batches)
        group = Group(self._streams, _UNKNOWN, places)
        used: set[str] = set()
        for batch in batches:
            if isinstance(group.decide(batch), Appended):
                used.update(write.stream_id for write in batch)
        return await self._store(session, group, used) if group.rows else group.outcomes

    async def _look_up(self, session: PostgresSession, stream_ids: list[str], *, lock: bool = False) -> None:
        if not stream_ids:
            return
        statement = self._sql.lock_streams if lock else self._sql.streams
        for stream_id, id_, version, epoch in await self._read(session, statement, stream_ids):
            self._streams[stream_id] = Head(id_, version, epoch)
        for stream_id in stream_ids:
            self._streams.setdefault(stream_id, Head(0, 0, 0))

    async def _places(self, session: PostgresSession, batches: Sequence[Batch]) -> dict[bytes, Place]:
        ids = [event.event_id for batch in batches for write in batch for event in write.events]
        rows = await self._read(session, self._sql.places, ids)
        return {event_id: (stream_id, version, position) for event_id, stream_id, version, position in rows}

    async def _read(self, session: PostgresSession, statement: str, parameter: Sequence[object]) -> Sequence[Any]:
        """Rows to decide on. Where they cannot be had, nothing was stored by this call."""
        try:
            return await session.fetch(statement, parameter)
        except DRIVER_ERRORS as error:
            if may_be_decided_again(error):
                raise
            self._drop(session)
            raise translated(error, writing=False) from error

    async def _store(
        self, session: PostgresSession, group: Group, stream_ids: set[str]
    ) -> Sequence[AppendOutcome] | None:
        """Store the group's rows, if its streams still are what it was decided on. None: one is not."""
        new: list[str] = []
        changed = len(group.versions)
        is_usual = len(group.rows) == changed == len(stream_ids) and not (group.has_new_streams or group.has_epochs)
        if is_usual:
            statement, parameters = self._sql.append_one_each, _columns(group.rows, {})
            parameters.append(self._last_recorded_at)
        else:
            heads = {stream_id: self._streams[stream_id] for stream_id in stream_ids}
            new = [stream_id for stream_id, head in heads.items() if not head.id]
            places = {id(heads[stream_id]): -place for place, stream_id in enumerate(new, start=1)}
            statement, parameters = self._sql.append, _columns(group.rows, places)
            parameters += [self._last_recorded_at, *_head_columns(heads, group.versions)]
            if new:
                statement = self._sql.append_new
                versions = [group.versions.get(stream_id, 0) for stream_id in new]
                parameters += [new, [stream_kind(stream_id) for stream_id in new], versions]
                changed -= sum(version > 0 for version in versions)
        rows = await session.fetch(statement, *parameters)
        ((count, updated, recorded_at, first, last, positions, *made),) = rows
        if count == 0:
            return None
        if (count, updated) != (len(group.rows), changed):
            # Never seen. Something is stored, so what is said about it must not be a refusal.
            raise InternalClientError(
                f"{count} of {len(group.rows)} events were stored, and {updated} of {changed} streams moved"
            )
        for stream_id, id_ in zip(new, made[0] if new else (), strict=True):
            self._streams[stream_id].id = id_
        group.adopt()
        self._last_recorded_at = recorded_at
        self.last_position = max(self.last_position, last)
        if positions is None and first == group.last_position + 1:
            # As it was guessed: the usual case where nobody else appends.
            return group.outcomes
        return [_positioned(outcome, group.last_position, first, positions) for outcome in group.outcomes]

    async def _usable_session(self) -> PostgresSession:
        if self._session is None or not self._session.is_usable:
            self._streams.clear()
            self._drop(self._session)
            self._session = await self._connect()
        return self._session

    def _drop(self, session: PostgresSession | None) -> None:
        """Give up a session that is in an unknown state. A statement that was merely refused leaves it as it was."""
        if session is not None and not session.is_usable:
            session.cut()
            self._session = None


def _head_columns(heads: dict[str, Head], after: dict[str, int]) -> list[Sequence[int]]:
    """The streams that have rows, as they must be found, and the versions they get."""
    known = sorted(
        (head.id, head.version, after.get(stream_id, head.version), head.epoch)
        for stream_id, head in heads.items()
        if head.id
    )
    return list(zip(*known, strict=True)) or [(), (), (), ()]


def _columns(rows: Sequence[tuple[Any, ...]], places: dict[int, int]) -> list[object]:
    """The events as the append's parameters from `stream` to `epoch`."""
    heads, versions, types, schema_versions, payloads, metadata, event_ids, batch_ids, epochs = zip(*rows, strict=True)
    try:
        texts = _SEPARATOR.encode().join(payloads).decode()
        notes = [None if item is None else item.decode() for item in metadata] if any(metadata) else []
    except UnicodeDecodeError as error:
        raise EventEncodeError(f"an event holds bytes that are no UTF-8 text, nothing was stored: {error}") from error
    names = _SEPARATOR.join(types)
    if not texts.count(_SEPARATOR) == names.count(_SEPARATOR) == len(rows) - 1:
        raise EventEncodeError("an event holds a control character that no JSON and no name has; nothing was stored")
    return [
        _numbers(head.id or places[id(head)] for head in heads),
        _numbers(versions),
        names,
        [] if schema_versions.count(1) == len(rows) else schema_versions,
        texts,
        notes,
        b"".join(event_ids),
        batch_ids if any(batch_ids) else [],
        epochs if any(epochs) else [],
    ]


def _numbers(numbers: Iterable[int]) -> str:
    """Numbers as the text of an array."""
    return f"{{{','.join(map(str, numbers))}}}"


def _positioned(outcome: AppendOutcome, guessed: int, first: int, positions: Sequence[int] | None) -> AppendOutcome:
    """The outcome with the position it got, in place of the guess that stands in it."""
    if not isinstance(outcome, Appended) or outcome.position <= guessed:
        return outcome
    number = outcome.position - guessed - 1
    position = first + number if positions is None else positions[number]
    return Appended(position, outcome.versions, outcome.is_duplicate)

"""PostgresAppend: a group of batches as one statement, decided on what is remembered of the streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from backends.deciding import CommandKey, Group, Head, Place, Remembered
from backends.postgres_columns import (
    RECORDED_AT,
    command_columns,
    event_columns,
    forgotten_column,
    head_columns,
    replica_columns,
)
from backends.postgres_driver import DRIVER_ERRORS, InternalClientError
from backends.postgres_errors import fence_of, may_be_decided_again, translated, was_outdated
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

# A group that rests on what is remembered is stored by a statement that fails if another writer was faster. That is a
# line in the server's log, and work done in vain, so who was told so once goes the other way for some time.
_CAREFUL_SECONDS = 10.0

# Positions are known after the decision. Where places of stored events are compared, the group's own stand behind all
# of them until then.
_UNKNOWN = 2**62


class Plan(NamedTuple):
    """A group that is decided on what is remembered, and the statement that stores it."""

    group: Group
    stream_ids: set[str]
    at_once: bool
    statement: str
    parameters: list[object]
    new: list[str]
    """The streams that it makes."""


class PostgresAppend:
    """Appends groups, one after another, on a session of its own that nothing else can keep busy."""

    def __init__(self, sql: PostgresSQL, connect: Callable[[], Awaitable[PostgresSession]]) -> None:
        self._sql = sql
        self._connect = connect
        self._session: PostgresSession | None = None
        self._streams: dict[str, Head] = {}
        self._outdated: set[str] = set()
        self._turn = asyncio.Lock()
        self._last_recorded_at = 0
        self._is_careful_until = 0.0
        # What is being stored at this moment.
        self._under_way: Group | None = None
        self.last_position = 0
        """The end of the log as far as it was stored here; the log may be further."""
        self.stored_through = 0
        """The same, and certainly committed."""

    def forget(self, stream_id: str) -> None:
        """Look the stream up before the next append: something else than an append has changed it."""
        # Not now: an append may be under way that rests on it. Of a stream that nothing is remembered of, nothing is
        # kept: who truncates all streams, and appends to none, would keep all of them.
        if stream_id in self._streams or self._turn.locked():
            self._outdated.add(stream_id)

    def forget_all(self) -> None:
        """Look every stream up again before the next append."""
        self._outdated.update(self._streams)

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

    def plan_behind(self, batches: Sequence[Batch]) -> Plan | None:
        """Decide about the next append while one is under way. None: there is none, or the batches rest on it."""
        under_way, session = self._under_way, self._session
        if session is None or under_way is None:
            return None
        stream_ids = _stream_ids(batches)
        if not stream_ids <= self._streams.keys() or not stream_ids.isdisjoint(under_way.versions):
            return None
        group = Group(self._streams, under_way.last_position + len(under_way.rows))
        if group.stores_all(batches) and not group.is_empty:
            # What cannot be encoded is told to whoever waits for it.
            with suppress(EventEncodeError):
                return self._plan(group, stream_ids, at_once=self._may_move_at_once(session))
        return None

    async def append(self, batches: Sequence[Batch], plan: Plan | None = None) -> Sequence[AppendOutcome]:
        """Store the batches in one commit, by a plan that was made for them, if it still holds. On any error nothing is
        remembered."""
        async with self._turn:
            while self._outdated:
                self._streams.pop(self._outdated.pop(), None)
            try:
                outcomes = await self._append(batches, plan)
            except BaseException:
                self._streams.clear()
                # A position that was taken and not committed is given to another event if the server breaks down.
                self.last_position = self.stored_through
                raise
            self.stored_through = self.last_position
            return outcomes

    async def append_within(self, session: PostgresSession, batches: Sequence[Batch]) -> Sequence[AppendOutcome] | None:
        """Store batches in the transaction that somebody else's session is in, and that keeps other appends away by
        the rows of the streams, or from the whole log.

        None: they cannot be stored there. Raises the driver's errors too. What comes of it is not known here
        (`stored`).
        """
        apart = PostgresAppend(self._sql, self._connect)
        apart._last_recorded_at = self._last_recorded_at
        stream_ids = _stream_ids(batches)
        return await apart._append_looked_up(session, batches, stream_ids)

    def stored(self, batch: Batch, outcome: Appended) -> None:
        """A batch was committed by another session."""
        for write in batch:
            self.forget(write.stream_id)
        self.last_position = max(self.last_position, outcome.position)
        self.stored_through = max(self.stored_through, outcome.position)

    async def _append(self, batches: Sequence[Batch], plan: Plan | None) -> Sequence[AppendOutcome]:
        stream_ids = _stream_ids(batches) if plan is None else plan.stream_ids
        for number in range(_ROUNDS):
            session = await self._usable_session()
            try:
                if number == 0:
                    outcomes = await self._append_remembered(session, batches, stream_ids, plan)
                elif number <= _OPTIMISTIC_ROUNDS:
                    outcomes = await self._append_looked_up(session, batches, stream_ids)
                else:
                    async with session.transaction():
                        outcomes = await self._append_looked_up(session, batches, stream_ids, lock=True)
            except DRIVER_ERRORS as error:
                if (fence := fence_of(error)) is not None:
                    # Told by the server when there is something to store, and then decided on, batch by batch.
                    return await self._refused(session, batches, stream_ids, fence)
                if number == 0 and was_outdated(error):
                    self._is_careful_until = asyncio.get_running_loop().time() + _CAREFUL_SECONDS
                elif not may_be_decided_again(error):
                    self._drop(session)
                    raise translated(error, writing=True) from error
                outcomes = None
            if outcomes is not None:
                return outcomes
        raise StoreBusy("other writers were faster every time: nothing was stored, try again")

    async def _append_remembered(
        self, session: PostgresSession, batches: Sequence[Batch], stream_ids: set[str], plan: Plan | None
    ) -> Sequence[AppendOutcome] | None:
        """Decide on what is remembered. None: it takes more than that to decide."""
        at_once = self._may_move_at_once(session)
        if plan is not None and plan.at_once == at_once and stream_ids <= self._streams.keys():
            # If it was decided on something else than is remembered now, the statement finds out, as it always does.
            return await self._store(session, plan)
        if len(self._streams) > _MAX_REMEMBERED:
            self._streams.clear()
        unknown = stream_ids.difference(self._streams)
        if unknown:
            # Who expects no stream is most often right; if not, the statement stores nothing.
            new = {write.stream_id for batch in reversed(batches) for write in batch if write.expected == 0}
            for stream_id in new.intersection(unknown):
                self._streams[stream_id] = Head(0, 0, 0)
            await self._look_up(session, [stream_id for stream_id in unknown if stream_id not in new])
        group = Group(self._streams, self.last_position)
        if not group.stores_all(batches) or group.is_empty:
            return None
        return await self._store(session, self._plan(group, stream_ids, at_once=at_once))

    async def _append_looked_up(
        self, session: PostgresSession, batches: Sequence[Batch], stream_ids: set[str], *, lock: bool = False
    ) -> Sequence[AppendOutcome] | None:
        """Decide on what the journal holds. None: it held something else by the time of storing."""
        for stream_id in stream_ids:
            self._streams.pop(stream_id, None)
        await self._look_up(session, list(stream_ids), lock=lock)
        # After the streams: what another session stored before they were read is found.
        places = await self._places(session, batches)
        group = Group(self._streams, _UNKNOWN, places, await self._remembered(session, batches))
        used: set[str] = set()
        for batch in batches:
            if isinstance(group.decide(batch), Appended):
                used.update(write.stream_id for write in batch)
        if group.is_empty:
            return group.outcomes
        return await self._store(session, self._plan(group, used, at_once=False))

    async def _refused(
        self, session: PostgresSession, batches: Sequence[Batch], stream_ids: set[str], fence: str
    ) -> Sequence[AppendOutcome]:
        """What is said in a journal that is fenced: only what is stored already has a place there."""
        self._streams.clear()
        await self._look_up(session, list(stream_ids))
        places, commands = await self._places(session, batches), await self._remembered(session, batches)
        group = Group(self._streams, _UNKNOWN, places, commands, fence=fence)
        return [group.decide(batch) for batch in batches]

    async def _look_up(self, session: PostgresSession, stream_ids: list[str], *, lock: bool = False) -> None:
        if not stream_ids:
            return
        statement = self._sql.lock_streams if lock else self._sql.streams
        for stream_id, id_, version, epoch, forgotten in await self._read(session, statement, stream_ids):
            self._streams[stream_id] = Head(id_, version, epoch, forgotten)
        for stream_id in stream_ids:
            self._streams.setdefault(stream_id, Head(0, 0, 0))

    async def _places(self, session: PostgresSession, batches: Sequence[Batch]) -> dict[bytes, Place]:
        ids = [event.event_id for batch in batches for write in batch for event in write.events]
        rows = await self._read(session, self._sql.places, ids)
        return {event_id: (stream_id, version, position) for event_id, stream_id, version, position in rows}

    async def _remembered(self, session: PostgresSession, batches: Sequence[Batch]) -> dict[CommandKey, Remembered]:
        """Which of the batches' commands are remembered already, and as what."""
        keys = [
            (write.stream_id, command.command_id) for batch in batches for write in batch for command in write.commands
        ]
        if not keys:
            return {}
        rows = await self._read(session, self._sql.remembered, *zip(*keys, strict=True))
        return {(stream_id, command_id): (outcome_id, version) for stream_id, command_id, outcome_id, version in rows}

    async def _read(self, session: PostgresSession, statement: str, *parameters: Sequence[object]) -> Sequence[Any]:
        """Rows to decide on. Where they cannot be had, nothing was stored by this call."""
        try:
            return await session.fetch(statement, *parameters)
        except DRIVER_ERRORS as error:
            if may_be_decided_again(error):
                raise
            self._drop(session)
            raise translated(error, writing=False) from error

    async def _store(self, session: PostgresSession, plan: Plan) -> Sequence[AppendOutcome] | None:
        """Store what a group has, if its streams still are what it was decided on. None: one is not.

        Where streams are moved `at_once`, that may be an error of the driver, too (`was_outdated`).
        """
        group, _, _, statement, parameters, new = plan
        parameters[RECORDED_AT] = self._last_recorded_at
        self._under_way = group
        try:
            ((count, updated, recorded_at, first, last, positions, *more),) = await session.fetch(
                statement, *parameters
            )
        finally:
            self._under_way = None
        remembered = more.pop(0) if group.commands else 0
        if count == remembered == updated == 0:
            return None
        changed = len(group.versions) - sum(stream_id in group.versions for stream_id in new)
        if (count, updated, remembered) != (len(group.rows), changed, len(group.commands)):
            # Somebody else's trigger can do that. Something is stored, so what is said about it must not be a refusal.
            raise InternalClientError(
                f"{count} of {len(group.rows)} events were stored, {remembered} of {len(group.commands)} commands, and "
                f"{updated} of {changed} streams moved"
            )
        for stream_id, id_ in zip(new, more[0] if new else (), strict=True):
            self._streams[stream_id].id = id_
        group.adopt()
        self._last_recorded_at = recorded_at
        if last is not None:
            self.last_position = max(self.last_position, last)
        if positions is None and first in (None, group.last_position + 1):
            # As it was guessed: the usual case where nobody else appends.
            return group.outcomes
        return [_positioned(outcome, group.last_position, first, positions) for outcome in group.outcomes]

    def _may_move_at_once(self, session: PostgresSession) -> bool:
        # Behind a proxy it is the server that chooses how to find the streams, and with that in which order they are
        # locked.
        return not session.is_pooled and asyncio.get_running_loop().time() >= self._is_careful_until

    def _plan(self, group: Group, stream_ids: set[str], *, at_once: bool) -> Plan:
        with_commands = bool(group.commands)
        is_one_each = len(group.rows) == len(group.versions) == len(stream_ids) and not group.has_new_streams
        if is_one_each and not group.replicas and (not group.has_epochs or _is_by_owners(group.rows)):
            parameters = [*event_columns(group.rows, {}), None]
            if with_commands:
                heads = [row[0] for row in group.rows]
                parameters += [forgotten_column(heads), *command_columns(group.commands, {})]
            statement = self._sql.append_one_each(owned=group.has_epochs, commands=with_commands, at_once=at_once)
            return Plan(group, stream_ids, at_once, statement, parameters, [])
        found = {stream_id: self._streams[stream_id] for stream_id in stream_ids}
        known = sorted(
            ((head, group.versions.get(stream_id, head.version)) for stream_id, head in found.items() if head.id),
            key=lambda each: each[0].id,
        )
        new = [stream_id for stream_id, head in found.items() if not head.id]
        places = {id(found[stream_id]): -place for place, stream_id in enumerate(new, start=1)}
        parameters = [*event_columns(group.rows, places), None, *head_columns(known)]
        statement = self._sql.append_to(new=bool(new), commands=with_commands, replicas=bool(group.replicas))
        if new:
            versions = [group.versions.get(stream_id, 0) for stream_id in new]
            parameters += [new, [stream_kind(stream_id) for stream_id in new], versions]
        if with_commands:
            parameters += [forgotten_column([head for head, _ in known]), *command_columns(group.commands, places)]
        if group.replicas:
            parameters += replica_columns(group.replicas)
        return Plan(group, stream_ids, at_once, statement, parameters, new)

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


def _stream_ids(batches: Sequence[Batch]) -> set[str]:
    return {write.stream_id for batch in batches for write in batch}


def _is_by_owners(rows: Sequence[tuple[Any, ...]]) -> bool:
    """Whether each event is of the epoch that its stream is in: then the events tell the streams' epochs."""
    return all(row[0].epoch == row[-1] for row in rows)


def _positioned(outcome: AppendOutcome, guessed: int, first: int, positions: Sequence[int] | None) -> AppendOutcome:
    """The outcome with the position it got, in place of the guess that stands in it."""
    if not isinstance(outcome, Appended) or outcome.position <= guessed:
        return outcome
    number = outcome.position - guessed - 1
    position = first + number if positions is None else positions[number]
    return Appended(position, outcome.versions, outcome.is_duplicate)

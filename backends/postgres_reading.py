"""PostgresReader: everything that is read. The log is read only up to where it is settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from backends.checkpoints_sql import stored_checkpoint
from backends.page_texts import SEPARATOR, names_of
from backends.postgres_driver import ServerError, sqlstate
from backends.postgres_pool import PostgresPool
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.records import batch_uuid_of, time_of, uuid_of
from backends.times import nearest_time
from eventstore.backend import (
    NO_EVENTS,
    EventFilter,
    EventPage,
    Load,
    Loaded,
    LogPage,
    Moved,
    Statistics,
    StoredCheckpoint,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
)
from eventstore.codec import damaged, decode_metadata, verify_checksum
from eventstore.errors import JournalCorrupt, StoreBusy
from eventstore.events import RecordedEvent

_MAX_VERSION = 2**63 - 1

# How often it is looked whether the appends that a reader waits for have ended. They take about a millisecond, unless
# their process or its connection has stopped in the middle.
_FIRST_LOOK_SECONDS = 0.001
_LONGEST_LOOK_SECONDS = 0.05

_CANDIDATES = 5000

# "program_limit_exceeded": a text has at most 1 GB, and so has an answer's row.
_TOO_LARGE = "54000"


class PostgresReader:
    """Reads through the pool. One statement is one moment; a call that takes several says why."""

    def __init__(self, sql: PostgresSQL, pool: PostgresPool, *, settle_seconds: float) -> None:
        self._sql = sql
        self._pool = pool
        self._settle_seconds = settle_seconds
        self._settled = 0

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        if not loads:
            return []
        try:
            rows = await self._pool.run(lambda session: self._pages(session, loads))
        except JournalCorrupt as error:
            if len(loads) == 1:
                of_stream = JournalCorrupt(str(error), stream_id=loads[0].stream_id)
                of_stream.__cause__ = error
                return [of_stream]
            # What the server finds damaged spoils its whole answer.
            rows = None
        if rows is None:
            return await self._load_in_parts(loads)
        found = {row[0]: row for row in rows}
        return [
            _loaded(load, *found[number][1:]) if number in found else Loaded(None, NO_EVENTS, 0, 0)
            for number, load in enumerate(loads, start=1)
        ]

    async def _pages(self, session: PostgresSession, loads: Sequence[Load]) -> Sequence[Any] | None:
        """A row for each stream that was found. None if they are too large for one answer."""
        try:
            return await session.fetch(self._sql.load, *zip(*loads, strict=True))
        except ServerError as error:
            if sqlstate(error) != _TOO_LARGE or (len(loads) == 1 and loads[0].limit <= 1):
                raise
            return None

    async def _load_in_parts(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        """One by one, and one alone in smaller pages: nobody knows how large events are before they are read."""
        if len(loads) == 1:
            return await self.load([load._replace(limit=max(1, load.limit // 8)) for load in loads])
        return [(await self.load([load]))[0] for load in loads]

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        statement = self._sql.stream_backwards if backwards else self._sql.stream
        rows = await self._rows(statement, stream_id, after, _MAX_VERSION if through is None else through, limit)
        if not rows:
            return StreamPage((), 0, 0)
        head, truncated, *_ = rows[0]
        # A stream without any event in the range is one row that has no position.
        return StreamPage([_record(*row[2:]) for row in rows if row[2] is not None], head, truncated)

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        records: list[RecordedEvent] = []
        count = 0
        position = max(after, 0)
        if limit and position < self._settled:
            # All of this part is final: who catches up needs one trip for a page, and no look at the locks.
            records, count, last, end = await self._page(position, self._settled, limit, where)
            if count == limit:
                return LogPage(records, last, is_end=False, end=end)
            position = self._settled
        end = await self.settle()
        if position < end:
            more, more_count, last, _ = await self._page(position, end, limit - count, where)
            records += more
            if count + more_count == limit:
                return LogPage(records, last, is_end=False, end=end)
        return LogPage(records, max(position, end), is_end=True, end=end)

    async def moved(self, *, after: int, limit: int) -> Moved:
        after = max(after, 0)
        end = await self.settle()
        through = min(after + limit, max(after, end))
        versions = {} if through == after else dict(await self._rows(self._sql.moved, after, through))
        return Moved(versions, through, through >= end)

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        end = await self.settle()
        if count <= 0:
            return end
        if where.tags:
            return await self._start_of_last_tagged(count, end, where)
        rows = await self._rows(self._sql.last, *_matches(where), end, count - 1, 1)
        return int(rows[0][0]) - 1 if rows else 0

    async def _start_of_last_tagged(self, count: int, end: int, where: EventFilter) -> int:
        """The same where not every row that comes is a match, so that they have to be counted here."""
        while True:
            rows = await self._rows(self._sql.last, *_matches(where), end, 0, _CANDIDATES)
            for position, metadata in rows:
                count -= metadata is None or _may_carry(metadata, where.tags)
                if count == 0:
                    return int(position) - 1
            if len(rows) < _CANDIDATES:
                return 0
            end = rows[-1][0] - 1

    async def streams(self, *, after: str, limit: int, kind: str | None) -> Sequence[StreamInfo]:
        return [StreamInfo(*row) for row in await self._rows(self._sql.list, after, limit, kind)]

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        rows = await self._rows(self._sql.snapshots, stream_id, _MAX_VERSION if through is None else through, limit)
        return [_snapshot(stream_id, *row) for row in rows]

    async def checkpoints(self) -> Sequence[StoredCheckpoint]:
        return [stored_checkpoint(*row) for row in await self._rows(self._sql.checkpoints)]

    async def statistics(self) -> Statistics:
        (row,) = await self._rows(self._sql.statistics)
        return Statistics(*row)

    async def _rows(self, statement: str, *parameters: object) -> Sequence[Any]:
        return await self._pool.run(lambda session: session.fetch(statement, *parameters))

    async def _page(
        self, after: int, through: int, limit: int, where: EventFilter
    ) -> tuple[list[RecordedEvent], int, int, int]:
        """The matching events of a settled part, how many rows they came in, the last one's position, and where the
        log ended."""
        rows = await self._rows(self._sql.log, *_matches(where), after, through, limit)
        if not rows:
            return [], 0, after, 0
        records = [_record(*row[1:]) for row in rows]
        last = records[-1].position
        if where.tags:
            records = [record for record in records if record.metadata and set(record.metadata.tags) & set(where.tags)]
        return records, len(rows), last, rows[0][0]

    async def settle(self) -> int:
        """A position up to which the log is final: nothing appears below it any more.

        Positions are taken before they can be seen, and a later one may be seen first. So the sequence is read, then
        the appends that are under way: once these have ended, whatever they stored up to there can be seen. No
        connection is kept while they are waited for: others may have work for it.
        """
        ((end, appends),) = await self._rows(self._sql.settle)
        deadline = time.monotonic() + self._settle_seconds
        pause = _FIRST_LOOK_SECONDS
        while appends:
            if time.monotonic() > deadline:
                # Not that the database does not serve: only this part of the log has to be waited for.
                raise StoreBusy(
                    f"an append has been under way for {self._settle_seconds:g} s, and may still store events before "
                    f"position {end}: the log cannot be read past it yet. Its process may hang: pg_stat_activity shows "
                    "it; try again"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK_SECONDS)
            ((appends,),) = await self._rows(self._sql.still_appending, appends)
        self._settled = max(self._settled, end)
        return int(end)


def _matches(where: EventFilter) -> Iterable[list[str] | None]:
    """The filter's fields in the order of the statements' parameters."""
    return [list(field) or None for field in (where.kinds, where.types, where.stream_ids, where.tags)]


def _may_carry(metadata: str, tags: Sequence[str]) -> bool:
    """Whether an event has one of the tags. If its metadata is damaged, whoever reads the event is told."""
    try:
        decoded = decode_metadata(metadata)
    except ValidationError:
        return True
    return decoded is not None and not set(decoded.tags).isdisjoint(tags)


def _record(
    position: int,
    stream_id: str,
    version: int,
    type_: str,
    schema_version: int,
    payload: str,
    metadata: str | None,
    event_id: bytes,
    batch_id: bytes | None,
    epoch: int,
    recorded_at: int,
    checksum: int,
    tenant: str,
    origin: str | None,
    origin_sequence: int | None,
    clock: str | None,
    concurrent: bool | None,
) -> RecordedEvent:
    try:
        stored = payload.encode()
        verify_checksum(checksum, type_, schema_version, stored, None if metadata is None else metadata.encode())
        return RecordedEvent(
            position,
            stream_id,
            version,
            type_,
            schema_version,
            stored,
            decode_metadata(metadata),
            (own := uuid_of(event_id)),
            # Only the first event of a batch has none: it names the batch.
            own if batch_id is None else batch_uuid_of(batch_id),
            epoch,
            time_of(recorded_at),
            checksum,
            tenant,
            origin,
            origin_sequence,
            None if clock is None else clock.encode(),
            bool(concurrent),
        )
    except (ValueError, OverflowError) as error:
        raise damaged(error, stream_id=stream_id, version=version, position=position) from error


def _loaded(
    load: Load,
    head: int,
    truncated: int,
    version: int | None,
    fingerprint: str,
    encoding: str,
    payload: bytes,
    checksum: bytes,
    recorded_at: int,
    epoch: int,
    *page: Any,
) -> Loaded | JournalCorrupt:
    snapshot = None
    if version is not None:
        snapshot = _snapshot(load.stream_id, version, fingerprint, encoding, payload, checksum, recorded_at, epoch)
    try:
        return Loaded(snapshot, _events(*page), head, truncated)
    except ValueError:
        return JournalCorrupt(
            f"an event behind version {max(load.after, version or 0)} is damaged: it holds a control character, which "
            "JSON does not; restore it from a copy",
            stream_id=load.stream_id,
        )


def _events(
    count: int,
    first_version: int,
    versions: list[int] | None,
    types: str,
    schema_version: int,
    schema_versions: list[int] | None,
    payloads: str,
    checksums: str,
) -> EventPage:
    """A page that came as strings. Raises `ValueError` if a text in it holds what stands between them."""
    if not count:
        return NO_EVENTS
    return EventPage(
        versions or list(range(first_version, first_version + count)),
        names_of(types, count),
        schema_versions or [schema_version] * count,
        payloads.encode().split(SEPARATOR.encode()),
        orjson.loads(f"[{checksums}]"),
    )


def _snapshot(
    stream_id: str,
    version: int,
    fingerprint: str,
    encoding: str,
    payload: bytes,
    checksum: bytes,
    recorded_at: int,
    epoch: int,
) -> StoredSnapshot:
    time = nearest_time(recorded_at)
    return StoredSnapshot(stream_id, version, fingerprint, encoding, payload, checksum, time, epoch)

"""Who may write to a stream alone: claims, leases, and the statements that list them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import orjson

from backends.sqlite_changing import now, transaction
from backends.sqlite_writer import SQLiteWriter
from eventstore.backend import Claim, Holder, Holding, Owner, OwnerInfo
from eventstore.errors import LeaseLost, OutcomeUnknown, StoreBusy
from eventstore.events import stream_kind

# After that, a lease that ran out tells nobody anything any more.
_KEPT_MICROSECONDS = 24 * 60 * 60 * 1_000_000

_RUNNING = "SELECT id, name, renewals, duration, ends_at FROM journal_owners WHERE tenant = ? AND ends_at > ?"
_NEW_STREAMS = """
INSERT INTO journal_streams (tenant, stream_id, kind, created_at)
SELECT ?1, w.value ->> '$[0]', w.value ->> '$[1]', ?3 FROM json_each(?2) w WHERE true
ON CONFLICT DO NOTHING
"""
_STREAMS = """
SELECT s.stream_id, s.id, s.epoch, s.owner
FROM json_each(?2) w CROSS JOIN journal_streams s ON s.tenant = ?1 AND s.stream_id = w.value ->> '$[0]'
"""
_TAKE = """
UPDATE journal_streams SET owner = ?2, epoch = w.value ->> '$[1]'
FROM json_each(?1) w WHERE journal_streams.id = w.value ->> '$[0]'
"""
# CROSS JOIN and +owner: the planner would compare each stream of the owner's with each that is named.
_RELEASE = """
UPDATE journal_streams SET owner = NULL WHERE +owner = ?2 AND id IN (
    SELECT s.id FROM json_each(?1) w
    CROSS JOIN journal_streams s ON s.tenant = ?3 AND s.stream_id = w.key AND s.epoch = w.value
)
"""

_RENEW = """
UPDATE journal_owners SET renewals = renewals + 1, ends_at = ?, report = CAST(? AS TEXT) WHERE tenant = ? AND id = ?
"""
_BEGIN = """
INSERT INTO journal_owners (tenant, id, name, renewals, duration, ends_at, report, started_at)
VALUES (?, ?, ?, 1, ?, ?, CAST(? AS TEXT), ?)
"""

OWNERS = """
SELECT json_group_array(json_array(hex(id), name, renewals, ends_at - ?2, report))
FROM (SELECT * FROM journal_owners WHERE tenant = ?1 ORDER BY name, id LIMIT -1)
"""
HOLDINGS = """
SELECT json_group_array(json_array(stream_id, epoch, hex(owner)))
FROM (
    SELECT stream_id, epoch, owner FROM journal_streams
    WHERE tenant = ? AND owner IS NOT NULL AND stream_id > ? ORDER BY stream_id LIMIT ?
)
"""


class _Lease(NamedTuple):
    id: bytes
    name: str
    renewals: int
    duration: int
    ends_at: int


class _Stream:
    """A stream's ownership, as it becomes while the claims of one call are decided in their order."""

    def __init__(self, id: int, epoch: int, owner: bytes | None) -> None:
        self.id = id
        self.epoch = epoch
        self.owner = owner
        self.is_taken = False


class SQLiteLease:
    """A `Lease`, with a thread and a connection of its own: appends that are queued do not delay it."""

    def __init__(self, tenant: str, owner: Owner, new_writer: Callable[[], SQLiteWriter]) -> None:
        self._tenant = tenant
        self._owner = owner
        self._new_writer = new_writer
        self._writer: SQLiteWriter | None = None
        self._is_running = False
        self._job: asyncio.Future[None] | None = None

    async def renew(self, report: bytes) -> None:
        if self._job is not None and not self._job.done():
            raise StoreBusy(
                "the file's write lock was not free since the lease was last renewed: it was not renewed now"
            )
        self._is_running = True
        await self._run(lambda connection: _renew(connection, self._tenant, self._owner, report))

    async def end(self) -> None:
        if not self._is_running:
            return
        try:
            await self._run(lambda connection: _end(connection, self._tenant, self._owner.id))
            self._is_running = False
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                await writer.close()

    async def _run(self, job: Callable[[sqlite3.Connection], None]) -> None:
        """Run a job, and wait for it no longer than a lease lasts."""
        if self._writer is None:
            writer = self._new_writer()
            writer.start()
            # Only now: it cannot start where there are no file descriptors left, and another may the next time.
            self._writer = writer
        self._job = self._writer.run(job)
        self._job.add_done_callback(_looked_at)
        try:
            async with asyncio.timeout(self._owner.seconds):
                await asyncio.shield(self._job)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"the file's write lock was not free for {self._owner.seconds:g} s: the lease may have run out"
            ) from error


def claim(connection: sqlite3.Connection, tenant: str, claims: Sequence[Claim]) -> Sequence[int | Holder]:
    """Take streams' next epochs in one transaction."""
    with transaction(connection):
        # After the transaction has begun: it may have waited for the lock.
        moment = now()
        running = {row[0]: _Lease(*row) for row in connection.execute(_RUNNING, (tenant, moment)).fetchall()}
        if not running.keys() >= {claim.owner for claim in claims if claim.owner is not None}:
            raise LeaseLost(
                "this process holds no lease that runs: nothing was claimed, it is renewed in the background"
            )
        wanted = orjson.dumps([(each.stream_id, stream_kind(each.stream_id)) for each in claims]).decode()
        connection.execute(_NEW_STREAMS, (tenant, wanted, moment))
        rows = connection.execute(_STREAMS, (tenant, wanted)).fetchall()
        streams = {stream_id: _Stream(*row) for stream_id, *row in rows}
        answers = [_claimed(each, streams[each.stream_id], running, moment) for each in claims]
        taken = [stream for stream in streams.values() if stream.is_taken]
        for owner in {stream.owner for stream in taken}:
            epochs = [(stream.id, stream.epoch) for stream in taken if stream.owner == owner]
            connection.execute(_TAKE, (orjson.dumps(epochs).decode(), owner))
    return answers


def release(connection: sqlite3.Connection, tenant: str, owner: bytes, epochs: Mapping[str, int]) -> None:
    """Let others claim streams that the owner still holds with these epochs."""
    connection.execute(_RELEASE, (orjson.dumps(dict(epochs)).decode(), owner, tenant))


def owners(found: str) -> Sequence[OwnerInfo]:
    """What `OWNERS` has answered."""
    return [
        OwnerInfo(bytes.fromhex(id_), name, renewals, remaining / 1_000_000, report.encode())
        for id_, name, renewals, remaining, report in orjson.loads(found)
    ]


def holdings(found: str) -> Sequence[Holding]:
    """What `HOLDINGS` has answered."""
    return [Holding(stream_id, epoch, bytes.fromhex(owner)) for stream_id, epoch, owner in orjson.loads(found)]


def _claimed(claim: Claim, stream: _Stream, running: Mapping[bytes, _Lease], moment: int) -> int | Holder:
    held = None if stream.owner in (None, claim.owner) else running.get(stream.owner or b"")
    if claim.owner is not None and held is not None and held.renewals != claim.lapsed:
        seconds, remaining = held.duration / 1_000_000, (held.ends_at - moment) / 1_000_000
        return Holder(held.id, held.name, held.renewals, seconds, remaining)
    stream.epoch += 1
    stream.owner = claim.owner
    stream.is_taken = True
    return stream.epoch


def _renew(connection: sqlite3.Connection, tenant: str, owner: Owner, report: bytes) -> None:
    moment = now()
    duration = int(owner.seconds * 1_000_000)
    if connection.execute(_RENEW, (moment + duration, report, tenant, owner.id)).rowcount:
        return
    with transaction(connection):
        moment = now()
        connection.execute("DELETE FROM journal_owners WHERE ends_at < ?", (moment - _KEPT_MICROSECONDS,))
        connection.execute(_BEGIN, (tenant, owner.id, owner.name, duration, moment + duration, report, moment))


def _end(connection: sqlite3.Connection, tenant: str, owner: bytes) -> None:
    with transaction(connection):
        connection.execute("DELETE FROM journal_owners WHERE tenant = ? AND id = ?", (tenant, owner))
        # By the index of owners, which has few streams of one.
        connection.execute("UPDATE journal_streams SET owner = NULL WHERE owner = ? AND +tenant = ?", (owner, tenant))


def _looked_at(job: asyncio.Future[None]) -> None:
    if not job.cancelled():
        job.exception()  # Whoever still waits for it has it.

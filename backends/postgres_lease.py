"""PostgresLease: one owner's lease, on a connection of its own in whatever event loop renews it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from backends.postgres_driver import DRIVER_ERRORS
from backends.postgres_errors import is_lost, translated
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from eventstore.backend import Owner

_MICROSECONDS = 1_000_000
_CUT_SECONDS = 1.0

_RENEW = """
UPDATE {schema}.journal_owners SET renewals = renewals + 1, duration = $2, report = $3,
    ends_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $2
WHERE tenant = {tenant} AND id = $1
"""
# After a day, a lease that ran out tells nobody anything any more.
_BEGIN = """
WITH moment AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
), removed AS (
    DELETE FROM {schema}.journal_owners WHERE tenant = {tenant} AND id IN (
        SELECT o.id FROM {schema}.journal_owners o, moment m
        WHERE o.tenant = {tenant} AND o.ends_at < m.now - 86400000000 AND o.id <> $1 FOR UPDATE OF o SKIP LOCKED
    )
)
INSERT INTO {schema}.journal_owners AS o (tenant, id, name, renewals, duration, ends_at, report, started_at)
SELECT {tenant}, $1, $4, 1, $2, m.now + $2, $3, m.now FROM moment m
ON CONFLICT (tenant, id) DO UPDATE SET renewals = o.renewals + 1, duration = excluded.duration,
    ends_at = excluded.ends_at, report = excluded.report
"""
_END = "DELETE FROM {schema}.journal_owners WHERE tenant = {tenant} AND id = $1"
_RELEASE_ALL = """
WITH held AS MATERIALIZED (
    SELECT s.id FROM {schema}.journal_streams s WHERE s.owner = $1 AND s.tenant = {tenant}
    ORDER BY s.id FOR NO KEY UPDATE
)
UPDATE {schema}.journal_streams s SET owner = NULL FROM held h WHERE s.id = h.id
"""


class PostgresLease:
    """A renewal that was lost on the way is sent again at once: it does no harm if both arrive."""

    def __init__(self, sql: PostgresSQL, connect: Callable[[], Awaitable[PostgresSession]], owner: Owner) -> None:
        self._connect = connect
        self._owner = owner
        self._session: PostgresSession | None = None
        self._may_have_begun = False
        self._statements = tuple(map(sql.named, (_RENEW, _BEGIN, _END, _RELEASE_ALL)))

    async def renew(self, report: bytes) -> None:
        id_, name, seconds = self._owner
        values = (id_, round(seconds * _MICROSECONDS), report.decode())
        renewal, begin, *_ = self._statements

        async def renew(session: PostgresSession) -> None:
            if not await session.execute(renewal, *values):
                await session.execute(begin, *values, name)

        self._may_have_begun = True
        await self._run(renew)

    async def end(self) -> None:
        *_, end, release_all = self._statements

        async def give_up(session: PostgresSession) -> None:
            # The lease first, which frees all streams at once; what names its owner may have to wait for appends.
            await session.execute(end, self._owner.id)
            await session.execute(release_all, self._owner.id)

        try:
            if self._may_have_begun:
                await self._run(give_up)
        finally:
            session, self._session = self._session, None
            if session is not None:
                await session.close()
        self._may_have_begun = False

    async def _run(self, work: Callable[[PostgresSession], Coroutine[Any, Any, None]]) -> None:
        for tries_left in (1, 0):
            session = await self._usable_session()
            try:
                await _uninterrupted(session, work(session))
            except DRIVER_ERRORS as error:
                # One that timed out has had its time; the next one is made on a new connection.
                if not tries_left or not is_lost(error) or isinstance(error, TimeoutError):
                    raise translated(error, writing=False) from error
            else:
                return

    async def _usable_session(self) -> PostgresSession:
        if self._session is None or not self._session.is_usable:
            if self._session is not None:
                self._session.cut()
            self._session = None
            self._session = await self._connect()
        return self._session


async def _uninterrupted(session: PostgresSession, work: Coroutine[Any, Any, None]) -> None:
    """Do the work. If the caller is cancelled the connection is cut: the driver would open another one to ask the
    server for the end of the statement."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        session.cut()
        await asyncio.wait([task], timeout=_CUT_SECONDS)
        if task.done() and not task.cancelled():
            task.exception()  # Nobody is there any more who wants it.
        raise

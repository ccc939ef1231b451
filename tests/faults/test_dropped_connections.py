"""F10, F11, F12: a connection that ends at any step of an append costs nothing and doubles nothing.

The caller gets the numbers that the events have, or an error after which nothing was stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from backends.conformance.events import collect, happened, numbers
from eventstore import Appended, BackendUnavailable, ConcurrencyError, EventStore
from eventstore.schema import upgrade
from eventstore.store import Append
from eventstore.url import parse_store_url
from tests.backends.postgres_help import PATIENCE, connected, execute, fetch, via, with_parameters
from tests.servers.postgres import Postgres

from .cutting import CuttingProxy, Step


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest_asyncio.fixture
async def proxy(url: str) -> AsyncIterator[CuttingProxy]:
    parts = urlsplit(url)
    async with CuttingProxy(parts.hostname or "", parts.port or 0) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def store(url: str, proxy: CuttingProxy) -> AsyncIterator[EventStore]:
    """A store behind the proxy, which has appended one event to stream `a`."""
    async with EventStore.open(via(proxy, url, command_timeout=5)) as store:
        await store.append("a", happened(1))
        yield store


@pytest.mark.parametrize("step", Step)
async def test_an_append_is_stored_once_wherever_its_connection_ends(
    store: EventStore, proxy: CuttingProxy, url: str, step: Step
) -> None:
    proxy.cut(step, at=b'"number":2')
    ack = await store.append("a", happened(2, 3), expected_version=1)

    assert proxy.cuts == 1
    assert ack.versions == (3,)
    # A request of which half was missing was never carried out; one whose reply was under way was.
    if step in {Step.BEFORE_THE_REQUEST, Step.IN_THE_REQUEST}:
        assert not ack.is_duplicate
    if step in {Step.BEFORE_THE_REPLY, Step.IN_THE_REPLY}:
        assert ack.is_duplicate
    assert await numbers(store.read_all()) == [1, 2, 3]
    assert ack.position == (await collect(store.read_all()))[-1].position
    # The connection that comes after it is sound.
    assert (await store.append("a", happened(4), expected_version=3)).versions == (4,)


@pytest.mark.parametrize("step", Step)
async def test_a_batch_of_several_new_streams_is_stored_once_and_whole(
    store: EventStore, proxy: CuttingProxy, step: Step
) -> None:
    proxy.cut(step, at=b'"number":2')
    ack = await store.append_batch([Append(s, tuple(happened(2)), 0) for s in ("b", "c")] + [Append("a", happened(3))])

    assert proxy.cuts == 1
    assert ack.versions == (1, 1, 2)
    assert [await numbers(store.read(s)) for s in ("a", "b", "c")] == [[1, 3], [2], [2]]
    assert len({record.batch_id for record in (await collect(store.read_all()))[1:]}) == 1


@pytest.mark.parametrize("step", Step)
async def test_a_connection_that_ends_while_a_stream_is_looked_up_stores_once_or_not_at_all(
    store: EventStore, proxy: CuttingProxy, step: Step
) -> None:
    proxy.cut(step, at=b"stream-to-look-up")
    try:
        ack: Appended | None = await store.append("stream-to-look-up", happened(2))
    except BackendUnavailable:
        ack = None

    assert proxy.cuts == 1
    assert await numbers(store.read("stream-to-look-up")) == ([2] if ack else [])


async def test_a_conflict_whose_reply_is_lost_is_still_a_conflict(
    store: EventStore, proxy: CuttingProxy, url: str
) -> None:
    async with EventStore.open(url) as other:
        await other.append("a", happened(7))
    proxy.cut(Step.BEFORE_THE_REPLY, at=b'"number":2')
    with pytest.raises(ConcurrencyError) as refused:
        await store.append("a", happened(2), expected_version=1)
    assert proxy.cuts == 1
    assert refused.value.actual == 2
    assert await numbers(store.read("a")) == [1, 7]


# Sessions that Postgres ends

WAITING = "wait_event_type IN ('Lock', 'IPC') AND backend_type = 'client backend' AND datname = current_database()"
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "


async def waiting_for(url: str, event: str, count: int = 1) -> None:
    async with asyncio.timeout(PATIENCE):
        query = f"SELECT count(*) FROM pg_stat_activity WHERE {WAITING} AND wait_event = $1"
        while (await fetch(url, query, event))[0][0] < count:
            await asyncio.sleep(0.01)


async def test_a_session_that_is_ended_between_two_appends_is_replaced(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        for number in range(5):
            assert (await store.append("a", happened(number))).versions == (number + 1,)
            # The one that appends, and perhaps the one that has told the readers.
            ended = await fetch(postgres_url, TERMINATE + "application_name = 'eventstore' AND state = 'idle'")
            assert {(True,)} == set(ended)


async def test_a_session_that_is_ended_before_the_insert_has_stored_nothing_and_the_append_goes_through(
    postgres_url: str,
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
            appending = asyncio.create_task(store.append("a", happened(2), expected_version=1))
            await waiting_for(postgres_url, "transactionid")
            assert await fetch(postgres_url, TERMINATE + WAITING) == [(True,)]
            await holder.execute("ROLLBACK")
        ack = await appending
        assert (ack.versions, ack.is_duplicate) == ((2,), False)
        assert await numbers(store.read_all()) == [1, 2]


# Holds every append at its commit: the event is inserted, the transaction is not over.
HOLD_COMMITS = (
    "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; "
    "END'; CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON journal_events DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
    "EXECUTE FUNCTION hold(); SELECT pg_advisory_lock(7)"
)
LET_GO = "SELECT pg_advisory_unlock(7)"


async def test_a_session_that_is_ended_as_it_commits_has_stored_nothing_and_the_append_goes_through(
    postgres_url: str,
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        async with connected(postgres_url) as holder:
            await holder.execute(HOLD_COMMITS)
            appending = asyncio.create_task(store.append("a", happened(2), expected_version=1))
            await waiting_for(postgres_url, "advisory")
            assert await fetch(postgres_url, TERMINATE + WAITING) == [(True,)]
            await holder.execute(LET_GO)
            ack = await appending
        assert (ack.versions, ack.is_duplicate) == ((2,), False)
        assert await numbers(store.read_all()) == [1, 2]


async def commits_are_held(url: str) -> None:
    """Wait until a commit waits for the standby."""
    async with asyncio.timeout(PATIENCE):
        for number in count():
            probing = asyncio.create_task(execute(url, f"CREATE TABLE probe_{number} ()"))
            while not probing.done():
                if await fetch(url, f"{TERMINATE}{WAITING} AND wait_event = 'SyncRep'"):
                    await asyncio.wait([probing])
                    probing.exception()  # That the connection was closed.
                    return
            await probing


async def test_a_session_that_is_ended_after_its_commit_has_stored_the_append_once(own_postgres: Postgres) -> None:
    url = own_postgres.url()
    upgrade(parse_store_url(url))
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        # A standby that never answers: the commit is on disk, and the client is not told.
        await execute(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await execute(url, "SELECT pg_reload_conf()")
        await commits_are_held(url)
        appending = asyncio.create_task(store.append("a", happened(2), expected_version=1))
        await waiting_for(url, "SyncRep")
        assert await fetch(url, TERMINATE + WAITING) == [(True,)]
        ack = await appending
        assert (ack.versions, ack.is_duplicate) == ((2,), True)
        assert await numbers(store.read_all()) == [1, 2]
    assert "has already committed locally" in own_postgres.log.read_text()


@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
async def test_a_time_limit_of_the_database_is_a_typed_error_after_which_nothing_is_stored(
    postgres_url: str, setting: str
) -> None:
    # F46. The limit on a statement is set by each session for itself, so that the database's own does not matter.
    await execute(postgres_url, f"ALTER DATABASE \"{urlsplit(postgres_url).path[1:]}\" SET {setting} = '50ms'")
    async with EventStore.open(with_parameters(postgres_url, command_timeout=2)) as store:
        await store.append("a", happened(1))
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
            with pytest.raises(BackendUnavailable, match="lock timeout|statement timeout"):
                await store.append("a", happened(2), expected_version=1)
            await holder.execute("ROLLBACK")
        assert (await store.append("a", happened(3), expected_version=1)).versions == (2,)
        assert await numbers(store.read_all()) == [1, 3]


@pytest.mark.parametrize("stream_id", ["a", "new"])
async def test_a_commit_that_happens_seconds_after_its_reply_was_lost_is_waited_for_and_not_repeated(
    postgres_url: str, stream_id: str
) -> None:
    parts = urlsplit(postgres_url)
    async with (
        CuttingProxy(parts.hostname or "", parts.port or 0) as proxy,
        EventStore.open(via(proxy, postgres_url)) as store,
        connected(postgres_url) as holder,
    ):
        await store.append("a", happened(1))
        await holder.execute(HOLD_COMMITS)
        appending = asyncio.create_task(store.append(stream_id, happened(2)))
        await waiting_for(postgres_url, "advisory")
        proxy.reset()
        # The second try waits for the first one, of which nobody will get the reply.
        await waiting_for(postgres_url, "transactionid")
        await asyncio.sleep(1)
        assert not appending.done()
        before = await fetch(postgres_url, "SELECT count(*) FROM journal_events")
        await holder.execute(LET_GO)
        ack = await appending
        assert before == [(1,)]
        assert ack.is_duplicate
        assert ack.versions == ((2,) if stream_id == "a" else (1,))
        assert await numbers(store.read_all()) == [1, 2]

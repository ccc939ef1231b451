"""Opening: which servers are taken, what stands in between, and how stores hear of each other."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from backends.conformance.batches import Batches
from backends.conformance.events import happened, numbers
from backends.conformance.sql import SQLTransactions
from backends.postgres_session import PLANNING, PostgresSession
from eventstore import (
    BackendUnavailable,
    Durability,
    DurabilityError,
    EventStore,
    InvalidStoreUrl,
    SchemaError,
    schema,
)
from eventstore.errors import ConnectionsBusy, SchemaMissing
from eventstore.url import parse_store_url
from tests.patience import opened_patiently
from tests.servers.postgres import Postgres

from .pooling_proxy import PoolingProxy
from .postgres_help import (
    PATIENCE,
    backend_of,
    connected,
    execute,
    fetch,
    proxy_to,
    unfinished_append,
    until,
    via,
    with_parameters,
)
from .session_proxy import SessionProxy


def writer_pid(store: EventStore) -> int:
    session = backend_of(store)._open.append._session
    assert session is not None
    return session.connection.get_server_pid()


async def until_the_writer_has_noticed(store: EventStore) -> None:
    session = backend_of(store)._open.append._session
    assert session is not None
    async with asyncio.timeout(PATIENCE):
        while not session.connection.is_closed():
            await asyncio.sleep(0.01)


async def opening(url: str) -> None:
    async with EventStore.open(url):
        pass


# The journal


async def test_a_database_without_a_journal_is_refused_and_left_alone(empty_postgres_url: str) -> None:
    with pytest.raises(SchemaMissing, match="eventstore migrate"):
        await opening(empty_postgres_url)
    assert await fetch(empty_postgres_url, "SELECT relname FROM pg_class WHERE relname LIKE 'journal%'") == []


async def test_the_journal_of_another_schema_is_not_taken(postgres_url: str) -> None:
    with pytest.raises(SchemaMissing, match="'elsewhere'"):
        await opening(with_parameters(postgres_url, schema="elsewhere"))


async def test_a_journal_in_a_schema_of_its_own_is_used_and_no_other(postgres_url: str) -> None:
    url = with_parameters(postgres_url, schema="audit")
    await asyncio.to_thread(schema.upgrade, parse_store_url(url))
    async with EventStore.open(url) as audit, EventStore.open(postgres_url) as public:
        await audit.append("a", happened(1))
        await public.append("a", happened(2), expected_version=0)
        await audit.truncate("a", 1, reason="test")
        assert await numbers(public.read_all()) == [2]
        assert await numbers(audit.read_all()) == []


@pytest.mark.parametrize(("revision", "remedy"), [("9999", "upgrade the package"), ("0000", "eventstore migrate")])
async def test_the_journal_of_another_version_is_refused(postgres_url: str, revision: str, remedy: str) -> None:
    await execute(postgres_url, f"UPDATE eventstore_version SET version_num = '{revision}'")
    with pytest.raises(SchemaError, match=remedy) as refused:
        await opening(postgres_url)
    assert refused.value.found == revision


@pytest.mark.parametrize(
    "change",
    [
        "DROP TRIGGER journal_events_no_delete ON journal_events",
        "ALTER TABLE journal_events DISABLE TRIGGER journal_events_no_truncate",
    ],
)
async def test_a_journal_whose_triggers_were_tampered_with_is_refused(postgres_url: str, change: str) -> None:
    await execute(postgres_url, change)
    with pytest.raises(SchemaError, match="triggers"):
        await opening(postgres_url)


async def test_a_database_that_does_not_exist_is_named(postgres_url: str) -> None:
    missing = urlsplit(postgres_url)._replace(path="/not_there").geturl()
    with pytest.raises(InvalidStoreUrl, match="not_there"):
        await opening(missing)


async def test_a_database_of_another_encoding_is_refused(postgres_url: str) -> None:
    name = urlsplit(postgres_url).path.removeprefix("/") + "_latin"
    await execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1'")
    try:
        with pytest.raises(BackendUnavailable, match="LATIN1"):
            await opening(urlsplit(postgres_url)._replace(path=f"/{name}").geturl())
    finally:
        await execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


# The server


async def test_durability_is_that_of_the_live_server(own_postgres: Postgres) -> None:
    url = own_postgres.url()
    await asyncio.to_thread(schema.upgrade, parse_store_url(url))
    async with EventStore.open(url) as store:
        assert store.durability is Durability.POWER_LOSS
        for name in ("fsync", "full_page_writes"):
            await execute(url, f"ALTER SYSTEM SET {name} = off")
            await execute(url, "SELECT pg_reload_conf()")
            async with asyncio.timeout(PATIENCE):
                while await fetch(url, f"SHOW {name}") != [("off",)]:
                    await asyncio.sleep(0.02)
            with pytest.raises(DurabilityError, match=name):
                await opening(url)
            async with EventStore.open(with_parameters(url, durability="process-crash")) as less:
                assert less.durability is Durability.PROCESS_CRASH
            # A store that is open finds out when it has to connect again.
            await execute(url, f"SELECT pg_terminate_backend({writer_pid(store)})")
            await until_the_writer_has_noticed(store)
            with pytest.raises(DurabilityError, match=name):
                await store.append("a", happened(1))
            await execute(url, f"ALTER SYSTEM SET {name} = on")
            await execute(url, "SELECT pg_reload_conf()")
            async with asyncio.timeout(PATIENCE):
                while await fetch(url, f"SHOW {name}") != [("on",)]:
                    await asyncio.sleep(0.02)
            await store.append("a", happened(1))


async def test_commits_are_synchronous_whatever_the_databases_default(postgres_url: str) -> None:
    name = urlsplit(postgres_url).path.removeprefix("/")
    for setting, expected in (("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")):
        await execute(postgres_url, f"ALTER DATABASE {name} SET synchronous_commit = {setting}")
        async with EventStore.open(postgres_url) as store:
            parts = backend_of(store)._open
            assert parts.append._session is not None
            assert await parts.pool.run(synchronous_commit) == expected
            assert parts.append._session is not None
            assert await synchronous_commit(parts.append._session) == expected


async def test_commits_are_synchronous_also_where_the_default_was_turned_off_since(postgres_url: str) -> None:
    name = urlsplit(postgres_url).path.removeprefix("/")
    async with EventStore.open(postgres_url) as store:
        await execute(postgres_url, f"ALTER DATABASE {name} SET synchronous_commit = off")
        async with connected(postgres_url) as other:
            await other.fetch("SELECT pg_terminate_backend($1)", writer_pid(store))
        await until_the_writer_has_noticed(store)
        await store.append("a", happened(1))
        parts = backend_of(store)._open
        assert parts.append._session is not None
        assert await synchronous_commit(parts.append._session) == "on"
        assert await parts.pool.run(synchronous_commit) == "on"


async def synchronous_commit(session: PostgresSession) -> str:
    ((setting,),) = await session.fetch("SHOW synchronous_commit")
    return str(setting)


async def test_a_standby_is_refused(own_postgres: Postgres) -> None:
    url = own_postgres.url()
    await asyncio.to_thread(schema.upgrade, parse_store_url(url))
    own_postgres.stop()
    (own_postgres.data / "standby.signal").touch()
    own_postgres.start()
    with pytest.raises(BackendUnavailable, match="standby"):
        await opening(url)


async def test_a_server_that_is_just_starting_is_waited_for(own_postgres: Postgres) -> None:
    url = own_postgres.url()
    await asyncio.to_thread(schema.upgrade, parse_store_url(url))
    async with EventStore.open(url) as store:
        for number in range(5):
            await store.append("a", happened(number))
            await store.version("a")
            # The server ends all sessions when one crashes, and recovers. Whoever connects meanwhile is told to wait.
            os.kill(writer_pid(store), signal.SIGKILL)
            await asyncio.sleep(0.02 * number)
            assert await numbers(store.read("a")) == list(range(number + 1))
        await store.append("a", happened(5))
        assert await numbers(store.read("a")) == [0, 1, 2, 3, 4, 5]


async def test_a_server_without_a_free_connection_says_so(own_postgres: Postgres) -> None:
    url = own_postgres.url()
    await asyncio.to_thread(schema.upgrade, parse_store_url(url))
    await execute(url, "CREATE ROLE app LOGIN CONNECTION LIMIT 1; GRANT ALL ON ALL TABLES IN SCHEMA public TO app")
    as_app = url.replace("postgres@", "app@")
    async with connected(as_app):
        with pytest.raises(BackendUnavailable, match="no connection left"):
            await opening(as_app)


async def test_a_server_that_does_not_answer_is_given_up(postgres_url: str) -> None:
    async with proxy_to(postgres_url) as proxy:
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="connect_timeout"):
            await opening(via(proxy, postgres_url, connect_timeout=0.3))
        assert time.monotonic() - began < PATIENCE


async def test_a_server_that_falls_silent_when_it_is_connected_is_given_up(postgres_url: str) -> None:
    async with proxy_to(postgres_url) as proxy:
        proxy.lose_reply(to=b"set_config('synchronous_commit', 'on', false)", reset=False)
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="connect_timeout"):
            async with asyncio.timeout(2 * PATIENCE):
                await opening(via(proxy, postgres_url, connect_timeout=3, command_timeout=3 * PATIENCE))
        assert proxy.lost_replies == 1
        assert time.monotonic() - began < PATIENCE


async def test_a_host_without_tls_is_refused_by_default_with_the_way_out(postgres_url: str) -> None:
    with pytest.raises(BackendUnavailable, match="sslmode=disable"):
        await opening(with_parameters(postgres_url, sslmode="verify-full"))


# The pool


async def test_who_finds_no_free_connection_is_told_so_in_time_and_appends_go_on(postgres_url: str) -> None:
    let_go = asyncio.Event()

    async def hold(_: PostgresSession) -> None:
        await let_go.wait()

    url = with_parameters(postgres_url, pool_size=1, command_timeout=2)
    async with EventStore.open(url) as store:
        holding = asyncio.create_task(backend_of(store)._open.pool.run(hold))
        await asyncio.sleep(0)
        reads = asyncio.gather(*(store.version("a") for _ in range(20)), return_exceptions=True)
        assert (await store.append("a", happened(1))).versions == (1,)
        outcomes = await reads
        assert not holding.done()
        assert {type(outcome) for outcome in outcomes} == {ConnectionsBusy}
        assert "pool_size" in str(outcomes[0])
        let_go.set()
        await holding
        assert await asyncio.gather(*(store.version("a") for _ in range(50))) == [1] * 50


async def test_readers_that_wait_for_an_append_keep_no_connection(postgres_url: str) -> None:
    url = with_parameters(postgres_url, pool_size=1)
    async with EventStore.open(url) as store, unfinished_append(postgres_url, "held") as held:
        readers = [asyncio.create_task(store.read_page()) for _ in range(5)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(PATIENCE):
            assert await store.version("a") == 0
        await held.execute("COMMIT")
        assert [len(page.events) for page in await asyncio.gather(*readers)] == [1] * 5


async def test_cancelled_readers_leave_the_pool_as_it_was(postgres_url: str) -> None:
    async with EventStore.open(with_parameters(postgres_url, pool_size=2)) as store:
        await store.append("a", happened(1))
        for _ in range(5):
            tasks = [asyncio.create_task(store.version("a")) for _ in range(10)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert await asyncio.gather(*(store.version("a") for _ in range(20))) == [1] * 20
        ours = "application_name = 'eventstore' AND datname = current_database()"
        assert (await fetch(postgres_url, f"SELECT count(*) FROM pg_stat_activity WHERE {ours}"))[0][0] <= 3


# A proxy that pools connections


class TestThroughAProxyThatPools(SQLTransactions, Batches):
    @pytest.fixture
    def url(self, pooled_url: str) -> str:
        return pooled_url


@pytest.fixture
async def pooling_proxy(postgres_url: str):  # type: ignore[no-untyped-def]  # a fixture
    parts = urlsplit(postgres_url)
    async with PoolingProxy(parts.hostname or "", parts.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def pooled_url(postgres_url: str, pooling_proxy: PoolingProxy) -> str:
    parts = urlsplit(postgres_url)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@{pooling_proxy.host}:{pooling_proxy.port}").geturl()


async def test_a_proxy_that_pools_is_recognised_and_nothing_rests_on_a_session(
    pooled_url: str, pooling_proxy: PoolingProxy
) -> None:
    async with EventStore.open(pooled_url) as one, EventStore.open(pooled_url) as two:
        assert one.database.endswith(", behind a proxy that pools connections")
        for number in range(20):
            await one.append("a", happened(number))
            assert len(await numbers(two.read_all())) == number + 1
        await asyncio.gather(*(store.append(f"s-{n % 3}", happened(n)) for n in range(30) for store in (one, two)))
        await one.truncate("a", 5, reason="test")
        assert await two.claim("a") == 1
        assert (await two.version("s-0"), await two.version("a")) == (20, 20)
    assert pooling_proxy.changes > 20
    assert pooling_proxy.refused == []


async def test_commits_through_a_proxy_are_synchronous_whatever_session_each_has(
    postgres_url: str, pooled_url: str, pooling_proxy: PoolingProxy
) -> None:
    name = urlsplit(postgres_url).path.removeprefix("/")
    await execute(
        postgres_url,
        f"ALTER DATABASE {name} SET synchronous_commit = off; CREATE TABLE seen (setting text); "
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN "
        "INSERT INTO public.seen VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END'; "
        "CREATE TRIGGER seeing AFTER INSERT ON journal_events FOR EACH STATEMENT EXECUTE FUNCTION see()",
    )
    async with EventStore.open(pooled_url) as store:
        for number in range(10):
            await store.append("a", happened(number))
        await asyncio.gather(*(store.append(f"b-{number}", happened(number)) for number in range(10)))
    assert pooling_proxy.changes > 10
    settings = await fetch(postgres_url, "SELECT setting, count(*) FROM seen GROUP BY setting")
    assert [setting for setting, _ in settings] == ["on"]
    assert settings[0][1] > 10


async def test_without_the_recognition_the_proxy_breaks_a_store(pooled_url: str, pooling_proxy: PoolingProxy) -> None:
    # What the recognition is for: this proxy is as strict as the real one.
    with pytest.raises(BackendUnavailable, match="leave pooling=session out of the URL") as raised:
        async with EventStore.open(with_parameters(pooled_url, pooling="session")) as store:
            await store.append("a", happened(1))
    assert "statement_timeout" in str(raised.value)
    assert pooling_proxy.refused


async def test_settings_that_a_proxy_leaves_out_hold_for_its_sessions_all_the_same(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    await execute(postgres_url, f"ALTER DATABASE {parts.path[1:]} SET synchronous_commit = off")
    names = ("synchronous_commit", "statement_timeout", "idle_in_transaction_session_timeout", *PLANNING)
    query = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}"
    async with SessionProxy(parts.hostname or "", parts.port or 5432) as proxy:
        url = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{proxy.host}:{proxy.port}").geturl()
        async with EventStore.open(with_parameters(url, pooling="session", command_timeout=20)) as store:
            assert (await store.append("a", happened(1))).versions == (1,)
            assert await numbers(store.read_all()) == [1]
            opened = backend_of(store)._open
            session = opened.append._session
            assert session is not None
            assert not session.is_pooled
            expected = ("on", "18s", "18s", *PLANNING.values())
            assert [tuple(row) for row in await session.fetch(query)] == [expected]
            assert [tuple(row) for row in await opened.pool.run(lambda one: one.fetch(query))] == [expected]
        assert proxy.left_out >= {"statement_timeout", *PLANNING}


async def test_a_direct_connection_is_not_taken_for_a_proxy(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        session = backend_of(store)._open.append._session
        assert session is not None
        assert not session.is_pooled
        assert "proxy" not in store.database
    async with EventStore.open(with_parameters(postgres_url, pooling="transaction")) as store:
        assert (await store.append("a", happened(1))).versions == (1,)
        assert await numbers(store.read_all()) == [1]


# Hearing of each other


async def first_of(store: EventStore, *, poll_seconds: float, after: int = 0) -> int:
    async for recorded in store.subscribe(after=after, poll_seconds=poll_seconds):
        return int(recorded.json()["number"])
    raise AssertionError


async def listening(url: str) -> list[int]:
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    return [row[0] for row in await fetch(url, query)]


async def until_listening(url: str, *, other_than: int = 0) -> int:
    async with asyncio.timeout(PATIENCE):
        while True:
            if pids := [pid for pid in await listening(url) if pid != other_than]:
                return pids[0]
            await asyncio.sleep(0.02)


async def test_an_append_of_another_store_wakes_a_subscriber(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        waiting = asyncio.create_task(first_of(store, poll_seconds=60))
        await until_listening(postgres_url)
        began = time.monotonic()
        await other.append("a", happened(7))
        async with asyncio.timeout(PATIENCE):
            assert await waiting == 7
        # It would have looked by itself after a minute.
        assert time.monotonic() - began < 30


async def test_a_listener_that_is_killed_listens_again_and_has_missed_nothing(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "backends.postgres_wakeup")
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        waiting = asyncio.create_task(first_of(store, poll_seconds=60))
        pid = await until_listening(postgres_url)
        await execute(postgres_url, f"SELECT pg_terminate_backend({pid})")
        # While nobody listens: it is found when somebody listens again.
        await other.append("a", happened(7))
        async with asyncio.timeout(PATIENCE):
            assert await waiting == 7
        assert await until_listening(postgres_url, other_than=pid) != pid


async def test_without_any_notification_polling_finds_new_events(postgres_url: str) -> None:
    url = with_parameters(postgres_url, pooling="transaction")
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        waiting = asyncio.create_task(first_of(store, poll_seconds=0.1))
        await asyncio.sleep(0.05)
        await other.append("a", happened(7))
        async with asyncio.timeout(PATIENCE):
            assert await waiting == 7
        assert await listening(postgres_url) == []


async def test_a_store_that_nobody_waits_on_does_not_listen(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        assert await numbers(store.read_all()) == [1]
        assert await listening(postgres_url) == []


async def test_many_appends_are_few_notifications(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, connected(postgres_url) as listener:
        heard: list[str] = []
        channel = backend_of(store)._sql.channel
        await listener.execute("SELECT pg_advisory_lock_shared($1)", backend_of(store)._sql.listeners_lock)
        await listener.add_listener(channel, lambda *_: heard.append(channel))
        began = time.monotonic()
        for number in range(200):
            await store.append("a", happened(number))
        async with asyncio.timeout(PATIENCE):
            while not heard:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        # One for each 20 ms, not one for each append.
        assert len(heard) <= (time.monotonic() - began) / 0.02 + 1


async def test_where_nobody_listens_nothing_is_notified(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    fetch_rows = PostgresSession.fetch

    async def noted(self: PostgresSession, statement: str, *parameters: object) -> Sequence[Any]:
        rows = await fetch_rows(self, statement, *parameters)
        if "pg_notify" in statement:
            asked.append(rows)
        return rows

    monkeypatch.setattr(PostgresSession, "fetch", noted)
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a", happened(1))
        await until(lambda: len(asked) == 1)
        assert asked.pop() == []
        waiting = asyncio.create_task(first_of(other, poll_seconds=60, after=1))
        await until_listening(postgres_url)
        await store.append("a", happened(2))
        await until(lambda: len(asked) == 1)
        assert asked != [[]]
        async with asyncio.timeout(PATIENCE):
            assert await waiting == 2


async def test_where_nobody_listens_it_is_asked_less_often(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    fetch_rows = PostgresSession.fetch

    async def noted(self: PostgresSession, statement: str, *parameters: object) -> Sequence[Any]:
        nonlocal asked
        asked += "pg_notify" in statement
        return await fetch_rows(self, statement, *parameters)

    monkeypatch.setattr(PostgresSession, "fetch", noted)
    async with EventStore.open(postgres_url) as store:
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while time.monotonic() - began < 2 or asked < 2:
                await store.append("a", happened(1))
        # The first time after 20 ms, then for each 200 ms.
        assert asked <= (time.monotonic() - began) / 0.2 + 2


async def test_a_time_limit_that_is_over_between_two_steps_of_a_statement_is_told(postgres_url: str) -> None:
    async def fetch_late(session: PostgresSession) -> Sequence[Any]:
        connection: Any = session.connection
        fetching = asyncio.create_task(session.fetch("SELECT 1 AS never_prepared_before"))
        await asyncio.sleep(0)
        # Nothing else runs until the answer to the first step is there, and the time is over.
        select.select([connection._transport.get_extra_info("socket").fileno()], [], [], PATIENCE)
        time.sleep(1)
        return await fetching

    async with opened_patiently(with_parameters(postgres_url, command_timeout=1)) as store:
        with pytest.raises(BackendUnavailable, match="command_timeout"):
            await backend_of(store)._open.pool.run(fetch_late)


async def test_a_time_limit_that_is_over_as_the_server_has_answered_is_told(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_rows = PostgresSession.fetch
    answers = last = 0

    async def cut_after_the_last(self: PostgresSession, statement: str, *parameters: object) -> Sequence[Any]:
        nonlocal answers
        rows = await fetch_rows(self, statement, *parameters)
        answers += 1
        if answers == last:
            self.cut()
        return rows

    monkeypatch.setattr(PostgresSession, "fetch", cut_after_the_last)
    # After each of those that the opening needs.
    while answers >= last:
        answers, last = 0, last + 1
        with suppress(BackendUnavailable):
            async with EventStore.open(postgres_url):
                pass
    assert last > 2

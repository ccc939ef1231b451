"""What an audit's page costs: trips to Postgres, turns of SQLite's thread, and how sessions plan what others ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from backends.conformance.auditing import positions
from backends.conformance.events import Happened, Noted, collect
from backends.postgres_session import PLANNING, PLANNING_ANEW, PostgresSession
from backends.sqlite_page_thread import Ask, SQLitePageThread
from eventstore import BackendUnavailable, EventFilter, EventStore, Metadata, NewEvent
from eventstore.contract.audit_query import AuditQuery
from tests.patience import opened_patiently, patiently

from .pooling_proxy import PoolingProxy
from .postgres_help import PATIENCE, backend_of, connected, fetch, proxy_to, via, with_parameters

LABELS = Metadata(user="ann", correlation_id="request-1")


async def filled(store: EventStore) -> Mapping[str, AuditQuery]:
    """Questions that each have ten events as their answer."""
    for number in range(10):
        event = NewEvent(Happened(number=number), metadata=LABELS)
        await store.append("Order-1", [event])
        await store.append("Account-1", [Noted(text="something else")])
    times = [recorded.recorded_at for recorded in await collect(store.read_all())]
    return {
        "stream": AuditQuery(EventFilter(stream_ids=("Order-1",))),
        "kind": AuditQuery(EventFilter(kinds=("Order",))),
        "type": AuditQuery(EventFilter(types=("conformance.happened",))),
        "user": AuditQuery(users=("ann",)),
        "correlation id": AuditQuery(correlation_ids=("request-1",)),
        "time": AuditQuery(
            EventFilter(types=("conformance.happened",)),
            recorded_from=times[0],
            recorded_before=times[-1] + timedelta(hours=1),
        ),
    }


async def test_a_page_takes_one_trip_to_postgres_and_a_second_if_something_was_appended(postgres_url: str) -> None:
    async with (
        proxy_to(postgres_url) as proxy,
        EventStore.open(postgres_url) as writer,
        EventStore.open(via(proxy, postgres_url)) as reader,
    ):

        async def trips(query: AuditQuery) -> tuple[int, int]:
            before = proxy.pieces_from_clients
            found = await positions(reader, query)
            return len(found), proxy.pieces_from_clients - before

        questions = await filled(writer)
        for query in questions.values():
            # The statement is prepared, and the end of the log found out.
            await trips(query)
        found = {name: await trips(query) for name, query in questions.items()}
        assert found == dict.fromkeys(questions, (10, 1))
        for count, (name, query) in enumerate(questions.items(), start=11):
            await writer.append("Order-1", [NewEvent(Happened(number=count), metadata=LABELS)])
            assert (name, await trips(query)) == (name, (count, 2))
            assert (name, await trips(query)) == (name, (count, 1))


async def test_a_page_takes_one_turn_of_a_thread_of_sqlite(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    answer = SQLitePageThread.answer

    async def counted(thread: SQLitePageThread, question: Callable[[Ask], Any], **options: Any) -> Any:
        turns.append(1)
        return await answer(thread, question, **options)

    async with EventStore.open(f"sqlite:///{tmp_path}/journal.db") as store:
        questions = await filled(store)
        monkeypatch.setattr(SQLitePageThread, "answer", counted)
        for name, query in questions.items():
            turns.clear()
            assert len(await positions(store, query)) == 10
            assert (name, len(turns)) == (name, 1)


@pytest.mark.parametrize("name", ["kind", "user"])
async def test_an_audit_that_is_held_up_ends_in_time_and_the_next_one_answers(postgres_url: str, name: str) -> None:
    url = with_parameters(postgres_url, command_timeout=1, pool_size=1)
    async with EventStore.open(postgres_url) as writer:
        query = (await filled(writer))[name]
    async with opened_patiently(url) as store, connected(postgres_url) as other:
        assert len(await patiently(lambda: positions(store, query))) == 10
        await other.execute("BEGIN; LOCK TABLE journal_events")
        began = time.monotonic()
        with pytest.raises(BackendUnavailable):
            await positions(store, query)
        assert time.monotonic() - began < PATIENCE
        # The server gives it up by itself, on a busy machine a little after the client.
        async with asyncio.timeout(PATIENCE):
            while await fetch(postgres_url, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                await asyncio.sleep(0.01)
        await other.execute("ROLLBACK")
        assert len(await patiently(lambda: positions(store, query))) == 10


async def plan_mode(session: PostgresSession) -> str:
    return str((await session.fetch("SHOW plan_cache_mode"))[0][0])


@pytest.mark.parametrize("size", [1, 3])
async def test_what_an_audit_plans_anew_is_no_matter_of_other_reads(postgres_url: str, size: int) -> None:
    url = with_parameters(postgres_url, pool_size=size)
    async with EventStore.open(url) as store:
        questions, parts = await filled(store), backend_of(store)._open
        appends = parts.append._session
        assert appends is not None
        for _ in range(3):
            assert len(await positions(store, questions["kind"])) == 10
            assert await parts.pool.run(plan_mode) == "force_generic_plan"
            assert await parts.pool.run(plan_mode, planning=PLANNING_ANEW) == "force_custom_plan"
        asked = [PLANNING, PLANNING_ANEW] * 20
        modes = await asyncio.gather(*(parts.pool.run(plan_mode, planning=planning) for planning in asked))
        assert modes == ["force_generic_plan", "force_custom_plan"] * 20
        ours = "application_name = 'eventstore' AND datname = current_database() AND pid <> $1"
        own = appends.connection.get_server_pid()
        assert len(await fetch(postgres_url, f"SELECT FROM pg_stat_activity WHERE {ours}", own)) <= size


async def test_behind_a_proxy_that_pools_an_audit_leaves_no_setting_to_others(postgres_url: str) -> None:
    async with connected(postgres_url) as direct:
        host, port = direct._addr
    async with PoolingProxy(host, port) as proxy:
        user, at, _ = postgres_url.partition("://")[2].partition("/")[0].rpartition("@")
        url = postgres_url.replace(f"{user}{at}{host}:{port}", f"{user}{at}{proxy.host}:{proxy.port}")
        async with EventStore.open(url) as store:
            for name, query in (await filled(store)).items():
                for _ in range(4):
                    assert (name, len(await positions(store, query))) == (name, 10)
            for _ in range(6):
                assert await backend_of(store)._open.pool.run(plan_mode) == "auto"
        assert proxy.changes > 20

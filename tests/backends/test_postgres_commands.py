"""Commands on Postgres: one statement with their events, and what two sessions do to each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from backends import postgres_append
from backends.conformance.commands import append_alone, found_command, is_refused, remembered
from backends.conformance.events import collect, happened, outcome, versions, write
from backends.postgres_session import PostgresSession
from eventstore import EventStore, OutcomeUnknown
from eventstore.backend import Appended, Claim, CommandLookup, Expected
from eventstore.errors import (
    CommandForgotten,
    ConcurrencyError,
    DuplicateCommand,
    EventEncodeError,
    FencedError,
)
from tests.servers.proxy import FaultProxy

from .postgres_help import PATIENCE, backend_of, connected, execute, fetch, proxy_to, via

NOON = 1_500_000_000_000


@pytest_asyncio.fixture
async def proxy(postgres_url: str) -> AsyncGenerator[FaultProxy, None]:
    async with proxy_to(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that is run from here on."""
    seen: list[str] = []
    fetch_rows = PostgresSession.fetch

    async def noted(self: PostgresSession, statement: str, *parameters: object) -> Sequence[Any]:
        if "pg_notify" not in statement:
            seen.append(statement)
        return await fetch_rows(self, statement, *parameters)

    monkeypatch.setattr(PostgresSession, "fetch", noted)
    return seen


async def waiting_for_locks(url: str, count: int = 1) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(PATIENCE):
        while (await fetch(url, waiting))[0][0] < count:
            await asyncio.sleep(0.02)


# How many statements


@pytest.mark.parametrize("streams", [1, 40])
@pytest.mark.parametrize("payloads", [(), (b"1",), (b"1", b"2")], ids=["no event", "one event", "two events"])
async def test_outcomes_are_stored_by_the_statement_that_stores_their_events(
    postgres_url: str, statements: list[str], streams: int, payloads: tuple[bytes, ...]
) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        names = [f"a-{number}" for number in range(streams)]
        for round_, expected in enumerate((0, len(payloads), 2 * len(payloads))):
            statements.clear()
            batches = [[write(name, *payloads, expected=expected, commands=[outcome(f"c{round_}")])] for name in names]
            outcomes = await backend.append(batches)
            assert all(isinstance(each, Appended) and not each.is_duplicate for each in outcomes)
            assert len(statements) == 1
        for name in names:
            assert await remembered(backend, name) == {"c0", "c1", "c2"}


async def test_a_group_with_every_sort_of_write_is_one_statement(postgres_url: str, statements: list[str]) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        (epoch,) = await backend.claim([Claim("owned")])
        assert isinstance(epoch, int)
        await backend.append([[write(name, b"0")] for name in ("a", "b", "owned", "seen")])
        statements.clear()
        outcomes = await backend.append(
            [
                [write("a", b"1", expected=1, commands=[outcome("c"), outcome("d")])],
                [write("new", expected=0, commands=[outcome("c")])],
                [write("b", b"1", b"2", expected=1)],
                [write("seen", expected=1, commands=[outcome("c")])],
                [write("newer", b"1", expected=0, commands=[outcome("c")]), write("a", b"2", expected=2)],
                [write("owned", b"1", expected=1, epoch=epoch, commands=[outcome("c", is_rejection=True)])],
            ]
        )
        assert len(statements) == 1
        assert [each.versions for each in outcomes if isinstance(each, Appended)] == [
            (2,),
            (0,),
            (3,),
            (1,),
            (1, 3),
            (2,),
        ]
        places = [("a", "c"), ("a", "d"), ("new", "c"), ("seen", "c"), ("newer", "c"), ("owned", "c")]
        answers = [await found_command(backend, *place) for place in places]
        assert [(found.version, found.is_rejection) for found in answers if found] == [
            (2, False),
            (2, False),
            (0, False),
            (1, False),
            (1, False),
            (2, True),
        ]
        assert await versions(store.read("newer")) == [1]


async def test_groups_without_commands_name_no_table_of_commands(postgres_url: str, statements: list[str]) -> None:
    async with EventStore.open(postgres_url) as store:
        statements.clear()
        await store.append("a", happened(1), expected_version=0)
        await store.append("a", happened(2), expected_version=1)
        await store.append("a", happened(3, 4), expected_version=2)
        assert len(statements) == 3
        assert not [statement for statement in statements if "journal_commands" in statement]


async def test_forgetting_is_one_statement(postgres_url: str, statements: list[str]) -> None:
    async with EventStore.open(postgres_url) as store:
        await append_alone(backend_of(store), write("a", commands=[outcome("c"), outcome("d")]))
        statements.clear()
        assert await backend_of(store).forget_commands("a", keep=1, before=None) == 1
        assert len(statements) == 1


async def test_many_questions_are_one_statement(postgres_url: str, statements: list[str]) -> None:
    async with EventStore.open(postgres_url) as store:
        statements.clear()
        await backend_of(store).find_commands([CommandLookup(f"a-{n}", "c", recent=5) for n in range(500)])
        assert len(statements) == 1


# What was lost on the way


@pytest.mark.parametrize("stream_id", ["known", "new"])
@pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
async def test_an_append_with_commands_whose_answer_is_lost_is_answered_with_its_place(
    postgres_url: str, proxy: FaultProxy, payloads: tuple[bytes, ...], stream_id: str
) -> None:
    async with EventStore.open(via(proxy, postgres_url)) as store:
        backend = backend_of(store)
        await store.append("known", happened(0))
        batch = [write(stream_id, *payloads, commands=[outcome("c", payload=b'"find me"')])]
        proxy.lose_reply(to=b'"find me"')
        with pytest.raises(OutcomeUnknown):
            await backend.append([batch])
        assert proxy.lost_replies == 1
        (again,) = await backend.append([batch])
        assert isinstance(again, Appended)
        assert again.is_duplicate
        assert again.versions == (len(payloads) + (stream_id == "known"),)
        assert await remembered(backend, stream_id) == {"c"}
        assert len(await collect(store.read(stream_id))) == again.versions[0]


@pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
async def test_a_lost_append_with_commands_that_commits_later_is_waited_for(
    postgres_url: str, proxy: FaultProxy, payloads: tuple[bytes, ...]
) -> None:
    async with EventStore.open(via(proxy, postgres_url)) as store, connected(postgres_url) as holder:
        backend = backend_of(store)
        await store.append("a", happened(0))
        # The first try hangs on the server with its outcome stored and not committed.
        await holder.execute(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END'; "
            "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON journal_commands DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION hold(); SELECT pg_advisory_lock(7)"
        )
        batch = [write("a", *payloads, commands=[outcome("c")])]
        first = backend.append([batch])
        await waiting_for_locks(postgres_url)
        proxy.reset()
        with pytest.raises(OutcomeUnknown):
            await first
        again = backend.append([batch])
        await waiting_for_locks(postgres_url, 2)
        await holder.execute("SELECT pg_advisory_unlock(7); DROP TRIGGER hold ON journal_commands")
        async with asyncio.timeout(PATIENCE):
            (result,) = await again
        assert result == Appended(2 if payloads else 0, (1 + len(payloads),), is_duplicate=True)
        assert len(await collect(store.read("a"))) == 1 + len(payloads)


async def test_a_session_that_is_ended_before_its_commit_has_remembered_nothing(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, connected(postgres_url) as holder:
        backend = backend_of(store)
        await store.append("a", happened(0))
        await holder.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
        batch = [write("a", b"1", commands=[outcome("c")])]
        unknown = backend.append([batch])
        await waiting_for_locks(postgres_url)
        await execute(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()",
        )
        with pytest.raises(OutcomeUnknown):
            await unknown
        await holder.execute("ROLLBACK")
        assert await found_command(backend, "a", "c") is None
        (again,) = await backend.append([batch])
        assert isinstance(again, Appended)
        assert not again.is_duplicate


# Two stores


async def test_what_another_store_forgot_is_noticed_without_any_event(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as two:
        mine, others = backend_of(one), backend_of(two)
        for name in ("a", "b", "c"):
            await append_alone(mine, write(name, b"1", expected=0, commands=[outcome("old", issued_at=NOON)]))
            await others.forget_commands(name, keep=0, before=None)
        late = outcome("late", issued_at=NOON)
        # Each way of storing compares: one event, several, none.
        for name, payloads in (("a", (b"2",)), ("b", (b"2", b"3")), ("c", ())):
            result = await append_alone(mine, write(name, *payloads, expected=1, commands=[late]))
            assert isinstance(result, CommandForgotten)
            later = outcome("later", issued_at=NOON + 1)
            result = await append_alone(mine, write(name, *payloads, expected=1, commands=[later]))
            assert isinstance(result, Appended)


async def test_what_another_store_truncated_is_noticed_with_what_it_forgot(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as two:
        mine = backend_of(one)
        await append_alone(mine, write("a", b"1", expected=0, commands=[outcome("old", issued_at=NOON)]))
        await two.truncate("a", 1, reason="test")
        result = await append_alone(mine, write("a", expected=1, commands=[outcome("old", issued_at=NOON)]))
        assert isinstance(result, CommandForgotten)
        assert (await one.append("a", happened(2), expected_version=1)).versions == (2,)


async def test_what_another_store_claimed_is_noticed_by_commands_without_events(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as two:
        mine = backend_of(one)
        epoch = await one.claim("a")
        await append_alone(mine, write("a", b"1", expected=0, epoch=epoch, commands=[outcome("c")]))
        later = await two.claim("a")
        result = await append_alone(mine, write("a", expected=1, epoch=epoch, commands=[outcome("d")]))
        assert isinstance(result, FencedError)
        assert result.current == later
        assert await remembered(mine) == {"c"}


async def test_an_outcome_of_another_store_is_found_by_the_index_and_takes_no_neighbour_with_it(
    postgres_url: str, statements: list[str]
) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as two:
        mine = backend_of(one)
        await one.append("a", happened(1))
        await append_alone(backend_of(two), write("a", commands=[outcome("c")]))
        statements.clear()
        results = await mine.append(
            [
                [write("a", b"2", expected=1, commands=[outcome("c")])],
                [write("a", b"3", expected=1, commands=[outcome("d")])],
                [write("b", b"4", expected=Expected.ANY, commands=[outcome("c")])],
            ]
        )
        assert [type(result) for result in results] == [DuplicateCommand, Appended, Appended]
        # The guess that the index refused, what it takes to decide, and the decision.
        assert 4 <= len(statements) <= 6
        assert await remembered(mine) == {"c", "d"}


async def test_of_stores_that_execute_the_same_commands_each_is_stored_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def execute_all(store: EventStore, order: Sequence[int]) -> int:
        stored = 0
        for number in order:
            batch = [
                write(f"s-{number % 4}", b"1", commands=[outcome(f"c{number}")]),
                write(f"t-{number % 3}", commands=[outcome(f"c{number}")]),
            ]
            (result,) = await backend_of(store).append([batch])
            assert isinstance(result, Appended | DuplicateCommand)
            stored += isinstance(result, Appended)
        return stored

    monkeypatch.setattr(postgres_append, "_OPTIMISTIC_ROUNDS", 1)
    async with (
        EventStore.open(postgres_url) as one,
        EventStore.open(postgres_url) as two,
        EventStore.open(postgres_url) as three,
        asyncio.timeout(PATIENCE),
    ):
        numbers = range(40)
        stored = await asyncio.gather(
            execute_all(one, numbers), execute_all(two, numbers[::-1]), execute_all(three, numbers)
        )
        assert sum(stored) == 40
        assert len(await collect(one.read_all())) == 40
        assert await fetch(
            postgres_url, "SELECT count(*), count(DISTINCT (stream, command_id)) FROM journal_commands"
        ) == [(80, 80)]


async def test_forgetting_and_executing_the_same_command_wait_for_each_other_in_no_circle(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, connected(postgres_url) as holder:
        backend = backend_of(store)
        await append_alone(backend, write("a", b"1", commands=[outcome("c", issued_at=1), outcome("d", issued_at=2)]))
        # Forgetting hangs when c is gone and d is not.
        await holder.execute(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN OLD; END'; "
            "CREATE TRIGGER hold BEFORE DELETE ON journal_commands FOR EACH ROW WHEN (OLD.command_id = 'd') "
            "EXECUTE FUNCTION hold(); SELECT pg_advisory_lock(7)"
        )
        forgetting = asyncio.create_task(backend.forget_commands("a", keep=0, before=None))
        await waiting_for_locks(postgres_url)
        again = backend.append([[write("a", b"2", expected=1, commands=[outcome("c", issued_at=3)])]])
        await waiting_for_locks(postgres_url, 2)
        await holder.execute("SELECT pg_advisory_unlock(7)")
        async with asyncio.timeout(PATIENCE):
            count, (result,) = await asyncio.gather(forgetting, again)
        assert count == 2
        assert isinstance(result, Appended)
        assert await remembered(backend) == {"c"}
    await asyncio.sleep(0.1)
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await fetch(postgres_url, query) == [(0,)]


async def test_an_append_under_way_is_not_disturbed_by_what_changes_its_stream(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        await store.append("a", happened(1))
        fetch_rows = PostgresSession.fetch

        async def overtaken(self: PostgresSession, statement: str, *parameters: object) -> Sequence[Any]:
            rows = await fetch_rows(self, statement, *parameters)
            # It is stored, and before that is known here somebody has claimed the stream.
            backend._open.append.forget("a")
            return rows

        with monkeypatch.context() as patched:
            patched.setattr(PostgresSession, "fetch", overtaken)
            assert (await store.append("a", happened(2), expected_version=1)).versions == (2,)
        assert (await store.append("a", happened(3), expected_version=2)).versions == (3,)


# What cannot be stored


@pytest.mark.parametrize("payload", [b'"\xff"', b'"\x00"', b'"\x1e"'], ids=["no UTF-8", "NUL", "separator"])
async def test_a_reply_that_is_no_json_is_refused_and_nothing_is_stored(postgres_url: str, payload: bytes) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        with pytest.raises(EventEncodeError, match="nothing was stored"):
            await backend.append([[write("a", b"1")], [write("b", commands=[outcome("c", payload=payload)])]])
        assert await collect(store.read_all()) == []
        assert (await store.append("a", happened(1))).versions == (1,)


async def test_an_id_may_hold_what_stands_between_texts(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        ids = ["c\x1ed", "c", "\x1e", "{", "NULL", '"', ","]
        await append_alone(backend, write("a", b"1", commands=[outcome(each) for each in ids]))
        assert await remembered(backend) == set(ids)
        for each in ids:
            assert is_refused(await append_alone(backend, write("a", commands=[outcome(each)])), "a", each)


async def test_a_refused_version_is_told_beside_commands(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as two:
        await one.append("a", happened(1))
        await two.append("a", happened(2))
        result = await append_alone(backend_of(one), write("a", b"3", expected=1, commands=[outcome("c")]))
        assert isinstance(result, ConcurrencyError)
        assert result.actual == 2

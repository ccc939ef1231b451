"""Appends on Postgres: what was lost on the way, who was faster, and what cannot be stored."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeGuard

import pytest
import pytest_asyncio

from backends import postgres_append
from backends.conformance.events import collect, happened, numbers, outcome, versions, write
from backends.postgres import PostgresBackend
from backends.postgres_session import PostgresSession
from eventstore import BackendUnavailable, ConcurrencyError, EventStore, OutcomeUnknown, StoreClosed
from eventstore.backend import Appended, AppendOutcome, Backend, Batch, Claim, CommandLookup, Expected, Load
from eventstore.codec import new_event_id
from eventstore.errors import EventEncodeError, FencedError, StoreBusy
from eventstore.store import Append
from eventstore.url import parse_store_url
from tests.loop_clock import LoopClock
from tests.patience import patiently
from tests.servers.proxy import FaultProxy

from .postgres_help import (
    PATIENCE,
    WAITING,
    backend_of,
    connected,
    execute,
    fetch,
    proxy_to,
    unfinished_append,
    until,
    via,
    waiting_for_locks,
    with_parameters,
)


@pytest_asyncio.fixture
async def proxy(postgres_url: str) -> AsyncGenerator[FaultProxy, None]:
    async with proxy_to(postgres_url) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def distant(postgres_url: str, proxy: FaultProxy) -> AsyncGenerator[PostgresBackend, None]:
    """A backend behind the proxy, whose deadline is short."""
    backend = PostgresBackend(parse_store_url(via(proxy, postgres_url, command_timeout=2)))
    await backend.open()
    yield backend
    proxy.resume()
    await backend.close()


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


def is_stored(outcome: object) -> TypeGuard[Appended]:
    return isinstance(outcome, Appended)


async def stored(url: str, stream_id: str = "a") -> list[str]:
    query = (
        "SELECT payload FROM journal_events e JOIN journal_streams s ON s.id = e.stream WHERE stream_id = $1 ORDER BY 1"
    )
    return [row[0] for row in await fetch(url, query, stream_id)]


# How many statements


@pytest.mark.parametrize("batches", [1, 40])
async def test_an_append_to_streams_that_are_known_is_one_statement(
    postgres_url: str, statements: list[str], batches: int
) -> None:
    async with EventStore.open(postgres_url) as store:
        names = [f"a-{number}" for number in range(batches)]
        backend = backend_of(store)
        await backend.append([[write(name, b"1")] for name in names])
        statements.clear()
        await backend.append([[write(name, b"2", expected=1)] for name in names])
        assert len(statements) == 1


@pytest.mark.parametrize("meanwhile", ["nothing", "forgotten", "claimed", "under way", "overtaken"])
async def test_a_second_append_is_decided_while_the_first_is_stored_unless_it_rests_on_what_is_not_known(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, statements: list[str], meanwhile: str
) -> None:
    plans: list[object] = []
    plan = postgres_append.PostgresAppend._plan
    monkeypatch.setattr(
        postgres_append.PostgresAppend, "_plan", lambda *args, **named: plans.append(plan(*args, **named)) or plans[-1]
    )
    async with EventStore.open(postgres_url) as store, connected(postgres_url) as holder:
        backend = backend_of(store)
        await backend.append([[write(name, b"1")] for name in ("a", "b", "c")])
        await holder.execute("BEGIN; SELECT * FROM journal_streams WHERE stream_id = 'a' FOR UPDATE")
        # The last append was recorded a long time after the server's now.
        before = backend._open.append._last_recorded_at = 2**52
        appending = backend.append([[write("a" if meanwhile != "under way" else "b", b"2"), write("a", b"2")]])
        await waiting_for_locks(postgres_url)
        behind = backend.append([[write("b", b"2")], [write("c", b"2")]])
        if meanwhile == "forgotten":
            await store.truncate("b", 0, reason="nothing goes")
        elif meanwhile == "claimed":
            await store.claim("b")
        elif meanwhile == "overtaken":
            backend._open.append._is_careful_until = math.inf
        planned = len(plans)
        statements.clear()
        await holder.execute("ROLLBACK")
        outcomes = [*await appending, *await behind]
        assert [each.position for each in outcomes if isinstance(each, Appended)] == [5, 6, 7]
        assert len(plans) - planned == (meanwhile != "nothing")
        looked_up = [backend._open.append._sql.streams] if meanwhile in ("forgotten", "claimed") else []
        assert [statement for statement in statements if "INSERT" not in statement] == looked_up
        assert len(statements) == len(looked_up) + 1
        recorded = await fetch(postgres_url, "SELECT DISTINCT recorded_at FROM journal_events WHERE position > 3")
        assert [tuple(row) for row in recorded] == [(before,)]
        assert backend._open.append._under_way is None


@pytest.mark.parametrize("broken", ["first", "second"])
async def test_of_two_appends_one_that_cannot_be_encoded_does_not_harm_the_other(
    postgres_url: str, broken: str
) -> None:
    async with EventStore.open(postgres_url) as store, connected(postgres_url) as holder:
        backend = backend_of(store)
        await backend.append([[write(name, b"1")] for name in ("a", "b")])
        await holder.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
        appends: list[Awaitable[Sequence[AppendOutcome]]] = []
        for which, name in (("first", "a"), ("second", "b")):
            appends.append(backend.append([[write(name, b"\xff" if which == broken else b"2", expected=1)]]))
            if which == broken:
                await asyncio.sleep(0)
            else:
                await waiting_for_locks(postgres_url)
        await holder.execute("ROLLBACK")
        failed, fine = await asyncio.gather(*(appends if broken == "first" else appends[::-1]), return_exceptions=True)
        assert isinstance(failed, EventEncodeError)
        assert fine == [Appended(3, (2,))]


async def test_new_streams_are_made_by_the_append_itself(postgres_url: str, statements: list[str]) -> None:
    async with EventStore.open(postgres_url) as store:
        statements.clear()
        batches = [[write(f"new-{number}", b"1", b"2", expected=0)] for number in range(20)]
        outcomes = await backend_of(store).append(batches)
        assert len(statements) == 1
        assert [outcome.versions for outcome in outcomes if isinstance(outcome, Appended)] == [(2,)] * 20
        assert await versions(store.read("new-7")) == [1, 2]


async def test_new_and_old_streams_in_one_batch_stand_in_the_log_as_given(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("old", happened(0))
        await store.append_batch(
            [
                Append("z", happened(1), 0),
                Append("old", happened(2), 1),
                Append("a", happened(3), 0),
                Append("z", happened(4), 1),
                Append("old", happened(5), 2),
            ]
        )
        recorded = await collect(store.read_all())
        assert [(r.stream_id, r.version, r.json()["number"]) for r in recorded] == [
            ("old", 1, 0),
            ("z", 1, 1),
            ("old", 2, 2),
            ("a", 1, 3),
            ("z", 2, 4),
            ("old", 3, 5),
        ]


async def test_streams_are_found_by_an_index_though_all_was_planned_when_there_were_few(postgres_url: str) -> None:
    names = [f"a-{number}" for number in range(100)]
    async with EventStore.open(with_parameters(postgres_url, pool_size=1)) as store:
        backend = backend_of(store)
        for version in range(10):
            await backend.append([[write(name, b"1", expected=version)] for name in names])
            epochs = await backend.claim([Claim(name) for name in names])
            await backend.release(b"nobody's id 0000", dict.fromkeys(names, version))
            await backend.find_commands([CommandLookup(name, "c", 10) for name in names])
            await backend.load([Load(name) for name in names])
            assert epochs == [version + 1] * 100
    # Sessions tell what they did when they end.
    scans = "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'journal_streams'"
    async with asyncio.timeout(PATIENCE):
        while (found := (await fetch(postgres_url, scans))[0])[1] < 1000:
            await asyncio.sleep(0.02)
    assert found[0] == 0


# What was lost on the way


async def test_an_append_whose_answer_is_lost_is_stored_once_and_answered(postgres_url: str, proxy: FaultProxy) -> None:
    async with EventStore.open(via(proxy, postgres_url)) as store:
        await store.append("a", happened(1))
        proxy.lose_reply(to=b'{"number":2}')
        ack = await store.append("a", happened(2), expected_version=1)
        assert proxy.lost_replies == 1
        assert (ack.versions, ack.is_duplicate) == ((2,), True)
        assert await numbers(store.read("a")) == [1, 2]
        assert (await store.append("a", happened(3), expected_version=2)).versions == (3,)


async def test_an_append_of_a_new_stream_whose_answer_is_lost_is_stored_once(
    postgres_url: str, proxy: FaultProxy
) -> None:
    async with EventStore.open(via(proxy, postgres_url)) as store:
        proxy.lose_reply(to=b'{"number":1}')
        ack = await store.append("new", happened(1), expected_version=0)
        assert proxy.lost_replies == 1
        assert (ack.versions, ack.is_duplicate) == ((1,), True)
        assert await numbers(store.read_all()) == [1]


@pytest.mark.parametrize("stream_id", ["a", "new"])
async def test_a_lost_append_that_commits_later_is_waited_for(
    proxy: FaultProxy, postgres_url: str, stream_id: str
) -> None:
    batch = [write(stream_id, b"2", ids=[new_event_id()])]
    # The server gives no statement up here, however long it takes until both of them wait.
    async with (
        EventStore.open(via(proxy, postgres_url, command_timeout=600)) as store,
        connected(postgres_url) as holder,
    ):
        distant = backend_of(store)
        await distant.append([[write("a", b"1")]])
        # The first try hangs on the server with its event stored and not committed.
        await holder.execute(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END'; "
            "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON journal_events DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION hold(); SELECT pg_advisory_lock(7)"
        )
        first = distant.append([batch])
        await waiting_for_locks(postgres_url, 1)
        proxy.reset()
        with pytest.raises(OutcomeUnknown):
            await first
        again = distant.append([batch])
        await waiting_for_locks(postgres_url, 2)
        await holder.execute("SELECT pg_advisory_unlock(7); DROP TRIGGER hold ON journal_events")
        [outcome] = await again
    assert isinstance(outcome, Appended)
    assert outcome.is_duplicate
    assert (await stored(postgres_url, stream_id)).count("2") == 1


async def test_a_black_hole_ends_at_the_deadline_and_the_outcome_is_unknown(
    distant: PostgresBackend, proxy: FaultProxy, postgres_url: str
) -> None:
    await patiently(lambda: distant.append([[write("a", b"1")]]))
    proxy.stall()
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(OutcomeUnknown, match="did not answer within 2 s"):
            await distant.append([[write("a", b"2", expected=1)]])
    assert 1.9 < time.monotonic() - began < PATIENCE
    proxy.resume()
    [outcome] = await patiently(lambda: distant.append([[write("a", b"3")]]))
    assert isinstance(outcome, Appended)


async def test_a_read_from_a_black_hole_ends_at_the_deadline(distant: PostgresBackend, proxy: FaultProxy) -> None:
    await patiently(lambda: distant.read_stream("a", after=0, through=None, limit=1, backwards=False))
    proxy.stall()
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(BackendUnavailable, match="did not answer within 2 s"):
            await distant.read_stream("a", after=0, through=None, limit=1, backwards=False)
    assert time.monotonic() - began < PATIENCE


async def test_a_read_whose_connection_was_lost_is_done_again(distant: PostgresBackend, proxy: FaultProxy) -> None:
    await distant.append([[write("a", b"1")]])
    for _ in range(3):
        await distant.read_stream("a", after=0, through=None, limit=1, backwards=False)
        resets = proxy.resets
        # It is not known here yet when the next read begins.
        proxy.reset()
        assert (await distant.read_stream("a", after=0, through=None, limit=1, backwards=False)).version == 1
        assert proxy.resets > resets


async def test_a_caller_that_is_cancelled_before_a_black_hole_is_not_held(postgres_url: str, proxy: FaultProxy) -> None:
    async with EventStore.open(via(proxy, postgres_url, command_timeout=600)) as store:
        await is_not_held(backend_of(store), proxy)
        proxy.resume()


async def is_not_held(distant: Backend, proxy: FaultProxy) -> None:
    await distant.read_stream("a", after=0, through=None, limit=1, backwards=False)
    proxy.stall()
    before = proxy.accepted
    reading = asyncio.create_task(distant.read_stream("a", after=0, through=None, limit=1, backwards=False))
    await asyncio.sleep(0.05)
    reading.cancel()
    _, waiting = await asyncio.wait([reading], timeout=PATIENCE)
    assert not waiting
    # No second connection was opened to ask for a cancellation.
    assert proxy.accepted == before


async def test_a_server_that_is_not_there_has_stored_nothing(distant: PostgresBackend, proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.reset()
    await until(lambda: not distant._open.append._session.is_usable)  # type: ignore[union-attr]  # it is open
    with pytest.raises(BackendUnavailable):
        await distant.append([[write("a", b"1")]])
    await proxy.accept()
    [outcome] = await distant.append([[write("a", b"1")]])
    assert isinstance(outcome, Appended)
    assert not outcome.is_duplicate


async def test_connections_that_the_server_ended_are_made_again(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        await numbers(store.read("a"))
        ended = await fetch(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'eventstore' AND datname = current_database()",
        )
        assert len(ended) >= 2
        assert await numbers(store.read("a")) == [1]
        await store.append("a", happened(2), expected_version=1)
        assert await numbers(store.read("a")) == [1, 2]


async def test_a_session_that_is_ended_inside_an_append_leaves_it_unknown_and_the_store_resolves_it(
    postgres_url: str,
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
            unknown = backend_of(store).append([[write("a", b"2")]])
            await waiting_for_locks(postgres_url, 1)
            await execute(postgres_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {WAITING}")
            with pytest.raises(OutcomeUnknown):
                await unknown
            appending = asyncio.create_task(store.append("a", happened(3)))
            await waiting_for_locks(postgres_url, 1)
            await execute(postgres_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {WAITING}")
            await holder.execute("ROLLBACK")
            assert (await appending).versions == (2,)
        assert await numbers(store.read("a")) == [1, 3]


async def test_a_stream_that_stays_locked_is_given_up_and_nothing_is_stored_later(postgres_url: str) -> None:
    async with EventStore.open(with_parameters(postgres_url, command_timeout=6)) as store:
        await store.append("a", happened(1))
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
            # The server gives up a tenth of the time before the client does, so it is known.
            with pytest.raises(BackendUnavailable, match="time limit"):
                await store.append("a", happened(2))
            await holder.execute("ROLLBACK")
        assert (await store.append("a", happened(3))).versions == (2,)
        assert await numbers(store.read("a")) == [1, 3]


# Who was faster


async def test_what_another_store_appended_is_seen_before_the_next_append_decides(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        await one.append("a", happened(1), expected_version=0)
        await another.append("a", happened(2), expected_version=1)
        with pytest.raises(ConcurrencyError) as refused:
            await one.append("a", happened(3), expected_version=1)
        assert refused.value.actual == 2
        assert (await one.append("a", happened(4), expected_version=2)).versions == (3,)


async def test_a_loser_leaves_its_neighbours_in_the_group(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        await one.append_batch([Append("a", happened(1)), Append("b", happened(1))])
        await another.append("a", happened(2))
        outcomes = await backend_of(one).append(
            [[write("b", b"1", expected=1)], [write("a", b"2", expected=1)], [write("a", b"3")], [write("c", b"4")]]
        )
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "Appended",
            "ConcurrencyError",
            "Appended",
            "Appended",
        ]
        assert await versions(one.read("a")) == [1, 2, 3]


LOCKS_FIRST = "FOR NO KEY UPDATE"


async def test_who_was_overtaken_locks_before_it_moves_for_some_time(postgres_url: str, statements: list[str]) -> None:
    """The other way fails, which is a line in the server's log, and work in vain."""
    clock = LoopClock(asyncio.get_running_loop())
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        backend = backend_of(one)
        await one.append("a", happened(1))
        for overtaken in (True, False):
            await one.append("a", happened(2))
            await another.append("a", happened(3))
            statements.clear()
            await backend.append([[write("a", b"4")]])
            tried, *_, last = statements
            assert (LOCKS_FIRST in tried) is not overtaken
            assert LOCKS_FIRST in last
        statements.clear()
        await clock.forward(10)
        await backend.append([[write("a", b"5")]])
        assert len(statements) == 1
        assert LOCKS_FIRST not in statements[0]


async def test_an_append_that_was_overtaken_has_moved_nothing_and_taken_no_position(postgres_url: str) -> None:
    names = ["a", "b", "c"]
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        for overtaken in names:
            fresh = await backend_of(one).append([[write(name, b"1")] for name in names])
            version = {name: each.versions[0] for name, each in zip(names, fresh, strict=True) if is_stored(each)}
            await another.append(overtaken, happened(2))
            with pytest.raises(ConcurrencyError) as refused:
                await one.append_batch([Append(name, happened(3), version[name]) for name in names])
            assert refused.value.stream_id == overtaken
            assert {name: await one.version(name) for name in names} == {**version, overtaken: version[overtaken] + 1}
            backend_of(one)._open.append._is_careful_until = 0.0
        positions = [recorded.position async for recorded in one.read_all()]
        assert positions == list(range(1, 13))


@pytest.mark.parametrize("with_commands", [False, True])
async def test_an_owner_that_writes_on_is_fenced_in_the_very_statement(
    postgres_url: str, statements: list[str], *, with_commands: bool
) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        epoch = await one.claim("a")
        commands = [[outcome(f"c{number}")] if with_commands else [] for number in range(2)]
        await backend_of(one).append([[write("a", b"1", epoch=epoch, commands=commands[0])]])
        assert await another.claim("a") == epoch + 1
        statements.clear()
        [refused] = await backend_of(one).append([[write("a", b"2", epoch=epoch, commands=commands[1])]])
        assert isinstance(refused, FencedError)
        assert LOCKS_FIRST not in statements[0]
        assert "journal_events (position" in statements[0]
        assert await stored(postgres_url) == ["1"]


async def test_a_version_that_another_store_removed_is_not_used_again(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        await one.append("a", happened(1, 2))
        await another.append("a", happened(3, 4))
        await another.truncate("a", 4, reason="test")
        with pytest.raises(ConcurrencyError):
            await one.append("a", happened(5), expected_version=2)
        assert (await one.append("a", happened(6))).versions == (5,)


@pytest.mark.parametrize("payloads", [(b"2", b"3"), (b"3",)], ids=["one of two", "the only one"])
async def test_an_event_that_a_trigger_leaves_out_is_not_acknowledged(
    postgres_url: str, payloads: Sequence[bytes]
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        await execute(
            postgres_url,
            "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
            "CREATE TRIGGER meddling BEFORE INSERT ON journal_events FOR EACH ROW WHEN (NEW.payload = '3') "
            "EXECUTE FUNCTION leave_out()",
        )
        with pytest.raises(OutcomeUnknown, match=f"{len(payloads) - 1} of {len(payloads)} events were stored"):
            await backend_of(store).append([[write("a", *payloads, expected=1)]])


async def test_a_batch_between_whose_events_another_store_took_a_position_stands_in_order_and_is_told_where(
    postgres_url: str,
) -> None:
    async with (
        EventStore.open(postgres_url) as store,
        EventStore.open(postgres_url) as other,
        connected(postgres_url) as holder,
    ):
        await store.append("a", happened(1))
        # The batch's first event has its position, and its second will be given one when the trigger lets it go on.
        await holder.execute(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END'; "
            "CREATE TRIGGER hold BEFORE INSERT ON journal_events FOR EACH ROW WHEN (NEW.payload = '2') "
            "EXECUTE FUNCTION hold(); SELECT pg_advisory_lock(7)"
        )
        appending = asyncio.ensure_future(
            backend_of(store).append([[write("a", b"2", b"3", expected=1)], [write("b", b"4")]])
        )
        await waiting_for_locks(postgres_url, 1)
        between = await other.append("c", happened(5))
        await holder.execute("SELECT pg_advisory_unlock(7)")
        outcomes = await appending

        assert between.position == 3
        assert outcomes == [Appended(4, (3,)), Appended(5, (1,))]
        log = [(event.position, event.stream_id, event.version) async for event in store.read_all()]
        assert log == [(1, "a", 1), (2, "a", 2), (3, "c", 1), (4, "a", 3), (5, "b", 1)]


@pytest.mark.parametrize("with_commands", [False, True])
async def test_nothing_is_recorded_as_earlier_than_what_the_store_has_recorded(
    postgres_url: str, with_commands: bool
) -> None:
    hour = 3_600_000_000
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        # As if the server's clock had been ahead then, and were set back now.
        backend_of(store)._open.append._last_recorded_at += hour
        for number in range(3):
            commands = [outcome(f"c{number}")] if with_commands else []
            await backend_of(store).append([[write("a", b"2", commands=commands), write(f"b-{number}", b"3")]])
    times = [time for (time,) in await fetch(postgres_url, "SELECT recorded_at FROM journal_events ORDER BY position")]
    assert times == sorted(times)
    assert times[1] >= times[0] + hour


async def test_of_streams_that_are_changed_and_not_appended_to_nothing_is_kept(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        for number in range(10):
            await one.append(f"s-{number}", happened(1, 2))
            await another.truncate(f"s-{number}", 1, reason="test")
        assert not backend_of(another)._open.append._outdated
        assert (await another.append("s-0", happened(3), expected_version=2)).versions == (3,)


async def test_an_owner_that_was_fenced_elsewhere_is_fenced_where_no_claim_was_heard_of(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        await one.append("a", happened(1))
        earlier, current = await another.claim("a"), await another.claim("a")
        [outcome] = await backend_of(one).append([[write("a", b"2", expected=1, epoch=earlier)]])
        assert isinstance(outcome, FencedError)
        assert (outcome.epoch, outcome.current) == (earlier, current)


async def test_a_group_rests_on_the_streams_it_only_looked_at(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        await one.append_batch([Append("a", happened(1)), Append("seen", happened(1))])
        await another.append("seen", happened(2))
        with pytest.raises(ConcurrencyError) as refused:
            await one.append_batch([Append("a", happened(2), 1), Append("seen", [], 1)])
        assert (refused.value.stream_id, refused.value.actual) == ("seen", 2)
        assert await one.version("a") == 1


async def test_of_two_who_rest_on_the_absence_of_each_others_stream_one_loses(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as another:
        for number in range(10):
            left, right = f"left-{number}", f"right-{number}"
            outcomes = await asyncio.gather(
                one.append_batch([Append(left, [], 0), Append(right, happened(1), 0)]),
                another.append_batch([Append(right, [], 0), Append(left, happened(1), 0)]),
                return_exceptions=True,
            )
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Appended", "ConcurrencyError"]


@pytest.mark.parametrize("optimistic_rounds", [0, 3])
async def test_stores_that_fight_for_the_same_streams_in_opposite_orders_all_get_through(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, optimistic_rounds: int
) -> None:
    monkeypatch.setattr(postgres_append, "_OPTIMISTIC_ROUNDS", optimistic_rounds)
    names = ["a", "b", "c", "d"]

    async def fight(store: EventStore, order: Sequence[str]) -> None:
        for _ in range(15):
            ids = [new_event_id() for _ in order]
            batch: Batch = [write(name, b"{}", ids=[id_]) for name, id_ in zip(order, ids, strict=True)]
            [outcome] = await backend_of(store).append([batch])
            assert isinstance(outcome, Appended)

    async with (
        EventStore.open(postgres_url) as one,
        EventStore.open(postgres_url) as two,
        EventStore.open(postgres_url) as three,
        asyncio.timeout(PATIENCE),
    ):
        await asyncio.gather(fight(one, names), fight(two, names[::-1]), fight(three, names[1:] + names[:1]))
        for name in names:
            assert await versions(one.read(name)) == list(range(1, 46))
    assert await deadlocks(postgres_url) == 0


async def test_stores_that_make_the_same_streams_in_opposite_orders_all_get_through(postgres_url: str) -> None:
    async with (
        EventStore.open(postgres_url) as one,
        EventStore.open(postgres_url) as two,
        EventStore.open(postgres_url) as three,
        asyncio.timeout(PATIENCE),
    ):
        for number in range(5):
            names = [f"{letter}-{number}" for letter in "abcdefgh"]
            orders = (names, names[::-1], names[4:] + names[:4])
            batches = [[write(name, b"{}") for name in order] for order in orders]
            stores = (one, two, three)
            # Somebody who is making one of them too keeps all three under way at the same time.
            async with unfinished_append(postgres_url, names[5]) as held:
                appends = [backend_of(store).append([batch]) for store, batch in zip(stores, batches, strict=True)]
                await waiting_for_locks(postgres_url, 3)
                await held.execute("ROLLBACK")
                outcomes = await asyncio.gather(*appends)
            assert all(isinstance(outcome, Appended) for [outcome] in outcomes)
            assert await versions(one.read(names[0])) == [1, 2, 3]
    assert await deadlocks(postgres_url) == 0


async def deadlocks(url: str) -> int:
    """How often the server found one in the database, once all stores are closed: sessions tell it when they end."""
    await asyncio.sleep(0.1)
    [(count,)] = await fetch(url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(count)


async def test_who_loses_every_time_is_told_so(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object, **__: object) -> None:
        return None

    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        with monkeypatch.context() as patched:
            patched.setattr(postgres_append.PostgresAppend, "_store", lost)
            with pytest.raises(StoreBusy, match="nothing was stored"):
                await store.append("a", happened(2))
        assert (await store.append("a", happened(3))).versions == (2,)


async def test_a_truncation_beside_appends_of_the_stream_disturbs_neither(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a", happened(0))

        async def truncate() -> int:
            return sum([await other.truncate("a", through, reason="test") for through in range(1, 30)])

        async def append() -> None:
            for number in range(1, 40):
                await store.append("a", happened(number), expected_version=number)

        async with asyncio.timeout(PATIENCE):
            _, removed = await asyncio.gather(append(), truncate())
        assert await store.version("a") == 40
        assert len(await collect(store.read("a"))) == 40 - removed


# What cannot be stored


@pytest.mark.parametrize("payload", [b'"\xff"', b'"\x00"'], ids=["no UTF-8", "NUL"])
async def test_bytes_that_are_no_text_are_refused_and_nothing_is_stored(postgres_url: str, payload: bytes) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        with pytest.raises(EventEncodeError, match="nothing was stored"):
            await backend.append([[write("a", b"1")], [write("b", payload)]])
        assert await collect(store.read_all()) == []
        assert (await store.append("a", happened(1))).versions == (1,)


async def test_a_large_group_is_stored_whole_and_in_order(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(*range(3000)))
        assert await numbers(store.read("a")) == list(range(3000))


async def test_what_was_remembered_is_forgotten_when_it_is_too_much(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_append, "_MAX_REMEMBERED", 5)
    async with EventStore.open(postgres_url) as store:
        for number in range(20):
            await store.append(f"a-{number}", happened(1), expected_version=Expected.NO_STREAM)
        assert len(backend_of(store)._open.append._streams) <= 6
        assert (await store.append("a-0", happened(2), expected_version=1)).versions == (2,)


# Where it may be used


async def test_a_store_carried_over_a_fork_is_refused_in_the_child(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        parts = backend_of(store)._open
        parts.pid -= 1  # What the child of a fork would see.
        for use in (lambda: store.append("a", happened(1)), lambda: store.version("a")):
            with pytest.raises(StoreClosed, match="fork"):
                await use()
        parts.pid += 1
        assert await store.version("a") == 0


async def test_a_store_is_refused_in_another_event_loop(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        with pytest.raises(StoreClosed, match="event loop"):
            await asyncio.to_thread(asyncio.run, backend_of(store).statistics())


async def test_closing_leaves_no_connection(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        await asyncio.gather(*(store.version(f"{n}") for n in range(10)), backend_of(store).wait(10, 0.05))
    left = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'eventstore' AND datname = current_database()"
    )
    async with asyncio.timeout(PATIENCE):
        while await fetch(postgres_url, left) != [(0,)]:
            await asyncio.sleep(0.02)

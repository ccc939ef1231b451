"""Ownership on Postgres: what claims wait for, what ends in the middle of one, and leases on their own connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from backends.conformance.events import collect, happened, outcome, write
from backends.conformance.leases import Leases
from backends.postgres_lease import PostgresLease
from backends.postgres_session import PostgresSession
from eventstore import BackendUnavailable, EventStore, OutcomeUnknown, StoreClosed
from eventstore.backend import Appended, Claim, Holder, Holding, Owner, StoredSnapshot
from eventstore.codec import new_event_id
from eventstore.errors import FencedError
from tests.servers.proxy import FaultProxy

from .pooling_proxy import PoolingProxy
from .postgres_help import (
    PATIENCE,
    WAITING,
    backend_of,
    connected,
    execute,
    fetch,
    proxy_to,
    unfinished_append,
    via,
    waiting_for_locks,
    with_parameters,
)

LEASES = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%journal_owners%' AND pid <> pg_backend_pid()"


@pytest_asyncio.fixture
async def proxy(postgres_url: str) -> AsyncGenerator[FaultProxy, None]:
    async with proxy_to(postgres_url) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def leases(postgres_url: str) -> AsyncGenerator[Leases, None]:
    leases = Leases()
    try:
        yield leases
    finally:
        await leases.close()


def snapshot(version: int, epoch: int) -> StoredSnapshot:
    return StoredSnapshot("a", version, "fingerprint", "json", b"{}", bytes(16), datetime.now(UTC), epoch)


# How many statements


async def test_a_process_that_is_stopped_in_the_middle_holds_no_lock_because_there_is_no_middle(
    postgres_url: str, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"s-{number}" for number in range(50)]
    seen: list[str] = []
    run = {name: getattr(PostgresSession, name) for name in ("fetch", "execute")}

    def noting(name: str) -> Callable[..., Any]:
        async def noted(session: PostgresSession, statement: str, *parameters: object) -> object:
            assert not session.connection.is_in_transaction()
            seen.append(statement)
            return await run[name](session, statement, *parameters)

        return noted

    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        alice = await leases.begin(backend)
        await backend.append([[write(name, b"1")] for name in ("a", *names)])
        # It has made its plans, and prepared what the driver asks about types.
        await backend.claim([Claim("a", alice.id)])
        for name in run:
            monkeypatch.setattr(PostgresSession, name, noting(name))
        epochs = await backend.claim([Claim(name, alice.id) for name in ("a", *names)])
        assert epochs == [2, *[1] * 50]
        await backend.save_snapshot(snapshot(1, 2), keep=1)
        await backend.append([[write("a", b"2", epoch=2, commands=[outcome("c")])]])
        await backend.forget_commands("a", keep=0, before=None)
        await backend.release(alice.id, dict.fromkeys(names, 1))
        # One for each; and the append looks up what was claimed since the last one.
        assert len([statement for statement in seen if "pg_notify" not in statement]) == 6


# What a claim waits for


async def test_a_claim_waits_for_the_append_under_way_and_fences_the_next(postgres_url: str, leases: Leases) -> None:
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as two:
        mine, others = backend_of(one), backend_of(two)
        alice, bob = await leases.begin(mine, "alice"), await leases.begin(others, "bob")
        earlier = await alice.granted(mine, "a")
        await mine.append([[write("a", b"0", expected=0, epoch=earlier)]])
        async with connected(postgres_url) as holder:
            # The append hangs between its statement and its commit.
            await holder.execute(
                "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END'; "
                "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON journal_events DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION hold(); SELECT pg_advisory_lock(7)"
            )
            appending = mine.append([[write("a", b"1", expected=1, epoch=earlier)]])
            await waiting_for_locks(postgres_url)
            claiming = asyncio.create_task(others.claim([Claim("a", bob.id, lapsed=1)]))
            await waiting_for_locks(postgres_url, 2)
            assert not claiming.done()
            await holder.execute("SELECT pg_advisory_unlock(7)")
            ((result,), (epoch,)) = await asyncio.gather(appending, claiming)
            await holder.execute("DROP TRIGGER hold ON journal_events")
        assert isinstance(result, Appended)
        assert epoch == earlier + 1
        (fenced,) = await mine.append([[write("a", b"2", expected=2, epoch=earlier)]])
        assert isinstance(fenced, FencedError)
        assert [event.payload for event in await collect(one.read("a"))] == [b"0", b"1"]


async def test_an_append_that_waits_for_a_claim_is_fenced_by_it(postgres_url: str, leases: Leases) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        alice = await leases.begin(backend)
        epoch = await alice.granted(backend, "a")
        await backend.append([[write("a", b"1", expected=0, epoch=epoch)]])
        for payloads, commands in (((b"2",), ()), ((), [outcome("c")]), ((b"2",), [outcome("d")]), ((b"2", b"3"), ())):
            async with connected(postgres_url) as claimer:
                await claimer.execute("BEGIN; UPDATE journal_streams SET epoch = epoch + 1")
                late = backend.append([[write("a", *payloads, expected=1, epoch=epoch, commands=commands)]])
                await waiting_for_locks(postgres_url)
                await claimer.execute("COMMIT")
                (result,) = await late
            assert isinstance(result, FencedError)
            epoch = result.current
            # The owner's own claim, so that what was remembered is right again.
            (again,) = await backend.append([[write("a", expected=1, epoch=epoch)]])
            assert isinstance(again, Appended)
        assert await store.version("a") == 1


@pytest.mark.parametrize("change", ["snapshot", "truncation"])
async def test_a_change_that_waits_for_a_claim_is_fenced_by_it(postgres_url: str, change: str) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        epoch = await store.claim("a")
        await backend.append([[write("a", b"1", expected=0, epoch=epoch)]])
        async with connected(postgres_url) as claimer:
            await claimer.execute("BEGIN; UPDATE journal_streams SET epoch = epoch + 1")

            async def make() -> None:
                if change == "snapshot":
                    await backend.save_snapshot(snapshot(1, epoch), keep=1)
                else:
                    await backend.truncate("a", 1, reason="test", epoch=epoch)

            late = asyncio.create_task(make())
            await waiting_for_locks(postgres_url)
            await claimer.execute("COMMIT")
            with pytest.raises(FencedError):
                await late
        assert list(await backend.read_snapshots("a", through=None, limit=1)) == []
        assert len(await collect(store.read("a"))) == 1


async def test_a_claim_waits_for_the_snapshot_of_the_earlier_owner(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        epoch = await store.claim("a")
        async with connected(postgres_url) as holder:
            # The snapshot hangs behind its check of the epoch.
            await holder.execute(
                "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END'; "
                "CREATE TRIGGER hold BEFORE INSERT ON journal_snapshots FOR EACH ROW EXECUTE FUNCTION hold(); "
                "SELECT pg_advisory_lock(7)"
            )
            saving = asyncio.create_task(backend.save_snapshot(snapshot(1, epoch), keep=1))
            await waiting_for_locks(postgres_url)
            claiming = asyncio.create_task(store.claim("a"))
            await waiting_for_locks(postgres_url, 2)
            await holder.execute("SELECT pg_advisory_unlock(7)")
            await saving
            assert await claiming == epoch + 1


async def test_a_claim_that_waited_knows_the_lease_that_began_meanwhile(postgres_url: str, leases: Leases) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        alice = await leases.begin(backend, "alice")
        await store.append("a", happened(1))
        async with connected(postgres_url) as claimer:
            await claimer.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
            claiming = asyncio.create_task(alice.claim(backend, "a"))
            await waiting_for_locks(postgres_url)
            bob = await leases.begin(backend, "bob")
            await claimer.execute("UPDATE journal_streams SET owner = $1, epoch = 5", bob.id)
            await claimer.execute("COMMIT")
            holder = await claiming
        assert isinstance(holder, Holder)
        assert holder.name == "bob"


async def test_a_claim_of_a_stream_that_is_being_made_gets_it(postgres_url: str, leases: Leases) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        alice = await leases.begin(backend)
        async with unfinished_append(postgres_url, "new") as maker:
            claiming = asyncio.create_task(backend.claim([Claim("new", alice.id), Claim("newer", alice.id)]))
            await waiting_for_locks(postgres_url)
            await maker.execute("COMMIT")
            assert list(await claiming) == [1, 1]
        assert await store.version("new") == 1


async def test_claims_beside_appends_and_truncations_of_the_same_streams_never_deadlock(
    postgres_url: str, leases: Leases
) -> None:
    names = [f"s-{number}" for number in range(8)]
    async with EventStore.open(postgres_url) as one, EventStore.open(postgres_url) as two:
        mine, others = backend_of(one), backend_of(two)
        alice = await leases.begin(mine)
        # Half of the streams are made by whoever is first.
        await mine.append([[write(name, b"0") for name in names[::2]]])

        async def append(order: list[str]) -> None:
            for _ in range(15):
                (result,) = await mine.append([[write(name, b"1", commands=[outcome("c")]) for name in order]])
                assert not isinstance(result, Appended) or len(result.versions) == len(order)

        async def claim(order: list[str]) -> None:
            for _ in range(15):
                answers = await others.claim([Claim(name, alice.id) for name in order])
                epochs = {name: epoch for name, epoch in zip(order, answers, strict=True) if isinstance(epoch, int)}
                await others.release(alice.id, epochs)

        async def forget(order: list[str]) -> None:
            for number in range(15):
                await others.forget_commands(order[number % len(order)], keep=0, before=None)
                await others.truncate(order[number % len(order)], number, reason="test")

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(
                append(names), append(names[::-1]), claim(names), claim(names[::-1]), forget(names), forget(names[::-1])
            )
    await asyncio.sleep(0.1)
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await fetch(postgres_url, query) == [(0,)]


# What ends in the middle


async def test_a_session_that_is_ended_inside_a_claim_leaves_nothing_locked(postgres_url: str, leases: Leases) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        alice = await leases.begin(backend)
        await store.append("a", happened(1))
        await store.append("b", happened(1))
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams WHERE stream_id = 'b' FOR UPDATE")
            claiming = asyncio.create_task(backend.claim([Claim("a", alice.id), Claim("b", alice.id)]))
            await waiting_for_locks(postgres_url)
            await execute(postgres_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {WAITING}")
            with pytest.raises(OutcomeUnknown):
                await claiming
            # It had locked this one.
            assert await store.claim("a") == 1
            await holder.execute("ROLLBACK")
        assert list(await backend.claim([Claim("a", alice.id), Claim("b", alice.id)])) == [2, 1]


async def test_a_claim_whose_answer_is_lost_is_made_again_with_a_higher_epoch(
    postgres_url: str, proxy: FaultProxy, leases: Leases
) -> None:
    async with EventStore.open(via(proxy, postgres_url)) as distant, EventStore.open(postgres_url) as store:
        alice = await leases.begin(backend_of(store))
        await store.append("a", happened(1))
        await alice.granted(backend_of(distant), "a")
        proxy.lose_reply(to=alice.id)
        with pytest.raises(OutcomeUnknown):
            await alice.claim(backend_of(distant), "a")
        assert await alice.granted(backend_of(distant), "a") == 3


async def test_a_claimant_that_is_cancelled_leaves_no_lock(postgres_url: str, leases: Leases) -> None:
    async with EventStore.open(with_parameters(postgres_url, pool_size=1)) as store:
        backend = backend_of(store)
        alice = await leases.begin(backend)
        await store.append("a", happened(1))
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
            claiming = asyncio.create_task(alice.claim(backend, "a"))
            await waiting_for_locks(postgres_url)
            claiming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await claiming
            await holder.execute("ROLLBACK")
        async with asyncio.timeout(PATIENCE):
            # It goes on to its end, and the next one comes after it.
            assert await alice.granted(backend, "a") == 2
            (result,) = await backend.append([[write("a", b"2", expected=1, epoch=2)]])
        assert isinstance(result, Appended)


# Leases


async def test_a_lease_is_renewed_on_a_connection_of_its_own_that_is_gone_when_it_has_ended(
    postgres_url: str, leases: Leases
) -> None:
    async with EventStore.open(with_parameters(postgres_url, pool_size=1)) as store:
        backend = backend_of(store)

        released = asyncio.Event()

        async def hold(_: object) -> None:
            async with asyncio.timeout(PATIENCE):
                await released.wait()

        holding = asyncio.create_task(backend._open.pool.run(hold))
        await asyncio.sleep(0)
        # Though the pool's only connection is in use.
        alice = await leases.begin(backend)
        await alice.renew()
        assert not holding.done()
        released.set()
        await holding
        assert len(await fetch(postgres_url, LEASES)) == 1
        await alice.end()
        async with asyncio.timeout(PATIENCE):
            while await fetch(postgres_url, LEASES):
                await asyncio.sleep(0.02)


async def test_a_lease_whose_connection_was_ended_is_renewed_on_another(postgres_url: str, leases: Leases) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        alice = await leases.begin(backend)
        for renewals in (2, 3):
            await execute(postgres_url, LEASES.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
            await alice.renew()
            (info,) = await backend.owners()
            assert info.renewals == renewals
        await execute(postgres_url, LEASES.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
        await alice.end()
        assert list(await backend.owners()) == []


async def test_a_renewal_into_a_black_hole_is_given_up_before_the_lease_has_run_out(
    postgres_url: str, proxy: FaultProxy, leases: Leases
) -> None:
    async with EventStore.open(via(proxy, postgres_url)) as store, EventStore.open(postgres_url) as near:
        alice = await leases.begin(backend_of(store), seconds=9.0)
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(BackendUnavailable):
            await alice.renew()
        assert time.monotonic() - began < 9.0
        proxy.resume()
        await alice.renew()
        assert isinstance(await (await leases.begin(backend_of(near), "bob")).granted(backend_of(near), "a"), int)
        assert {info.name for info in await backend_of(near).owners()} == {"alice", "bob"}


async def test_a_renewal_that_is_cancelled_opens_no_connection_and_the_next_one_works(
    postgres_url: str, proxy: FaultProxy
) -> None:
    async with EventStore.open(via(proxy, postgres_url)) as store:
        lease = backend_of(store).lease(Owner(new_event_id(), "alice", 60.0))
        await lease.renew(b"{}")
        proxy.stall()
        before = proxy.accepted
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await lease.renew(b"{}")
        assert time.monotonic() - began < PATIENCE
        # None to ask the server for the end of the statement, either.
        await asyncio.sleep(0.2)
        assert proxy.accepted == before
        proxy.resume()
        await lease.renew(b"{}")
        (info,) = await backend_of(store).owners()
        assert info.renewals >= 2
        await lease.end()


async def test_a_lease_that_begins_removes_those_that_ran_out_more_than_a_day_ago(
    postgres_url: str, leases: Leases
) -> None:
    day = 24 * 60 * 60 * 1_000_000
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        for name in ("carol", "dave"):
            await (await leases.begin(backend, name)).granted(backend, name)
        moved = (
            "UPDATE journal_owners SET ends_at = (extract(epoch FROM now()) * 1000000)::bigint - {} WHERE name = '{}'"
        )
        await execute(postgres_url, moved.format(day + 60_000_000, "carol"))
        await execute(postgres_url, moved.format(day - 60_000_000, "dave"))
        alice = await leases.begin(backend, "alice")
        assert [info.name for info in await backend.owners()] == ["alice", "dave"]
        # What carol held is nobody's, and can be seen to be so.
        assert "carol" in [held.stream_id for held in await backend.holdings(after="", limit=9)]
        assert await alice.granted(backend, "carol") == 2


async def test_a_lease_that_has_ended_frees_its_streams_though_one_of_them_is_locked(
    postgres_url: str, leases: Leases
) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        for name in ("a", "b"):
            await alice.granted(backend, name)
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams WHERE stream_id = 'a' FOR UPDATE")
            ending = asyncio.create_task(alice.end())
            await waiting_for_locks(postgres_url)
            assert await bob.granted(backend, "b") == 2
            await holder.execute("ROLLBACK")
            await ending
        assert list(await backend.holdings(after="", limit=9)) == [Holding("b", 2, bob.id)]


async def test_a_lease_needs_an_open_store_of_this_process(postgres_url: str) -> None:
    owner = Owner(new_event_id(), "alice", 60.0)
    async with EventStore.open(postgres_url) as store:
        backend = backend_of(store)
        assert isinstance(await asyncio.to_thread(backend.lease, owner), PostgresLease)
        parts = backend._open
        parts.pid -= 1  # What the child of a fork would see.
        with pytest.raises(StoreClosed, match="fork"):
            backend.lease(owner)
        parts.pid += 1
    with pytest.raises(StoreClosed):
        backend.lease(owner)


async def test_claims_leases_and_commands_work_through_a_proxy_that_pools(postgres_url: str, leases: Leases) -> None:
    parts = urlsplit(postgres_url)
    async with PoolingProxy(parts.hostname or "", parts.port or 5432) as pooling:
        user = parts.netloc.rpartition("@")[0]
        url = parts._replace(netloc=f"{user}@{pooling.host}:{pooling.port}").geturl()
        async with EventStore.open(url) as one, EventStore.open(url) as two:
            mine, others = backend_of(one), backend_of(two)
            alice, bob = await leases.begin(mine, "alice"), await leases.begin(others, "bob")
            for number in range(10):
                name = f"s-{number}"
                epoch = await alice.granted(mine, name)
                commands = [outcome("c", issued_at=7)]
                (stored,) = await mine.append([[write(name, b"1", expected=0, epoch=epoch, commands=commands)]])
                assert isinstance(stored, Appended)
                await alice.renew()
                assert isinstance(await bob.claim(others, name), Holder)
                await mine.release(alice.id, {name: epoch})
                assert await bob.granted(others, name) == epoch + 1
                (fenced,) = await mine.append([[write(name, b"2", expected=1, epoch=epoch)]])
                assert isinstance(fenced, FencedError)
                assert await others.forget_commands(name, keep=0, before=None) == 1
            await alice.end()
            await bob.end()
        assert pooling.changes > 10
        assert pooling.refused == []

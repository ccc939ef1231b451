"""Ownership: a stream is claimed by one owner at a time, for as long as that owner's lease runs."""

from __future__ import annotations

import asyncio

import pytest

from backends.conformance.events import collect, happened, write
from backends.conformance.fixtures import StoreFixtures, backend_of, reopened
from backends.conformance.leases import HeldLease, Leases
from eventstore.backend import Appended, Backend, Claim, Holder, Holding, Owner, OwnerInfo
from eventstore.codec import new_event_id
from eventstore.errors import FencedError, LeaseLost
from eventstore.store import EventStore

# A lease that is to run out, and a while in which it does.
SHORT = 0.3
UNTIL_IT_RAN_OUT = 0.4


async def _may_write(backend: Backend, stream_id: str, epoch: int) -> bool:
    (result,) = await backend.append([[write(stream_id, b"1", epoch=epoch)]])
    assert isinstance(result, Appended | FencedError)
    return isinstance(result, Appended)


async def _all_holdings(backend: Backend) -> list[Holding]:
    return list(await backend.holdings(after="", limit=1000))


async def _granted_in_time(held: HeldLease, backend: Backend, stream_id: str) -> int:
    answer = await _claimed_in_time(held, backend, stream_id)
    assert isinstance(answer, int), f"{stream_id!r} is held: {answer}"
    return answer


async def _claimed_in_time(held: HeldLease, backend: Backend, stream_id: str) -> int | Holder:
    """A claim under a short lease, which on a busy machine may be over before."""
    while True:
        try:
            return await held.claim(backend, stream_id)
        except LeaseLost:
            await held.renew()


async def _names(backend: Backend) -> list[str]:
    return [info.name for info in await backend.owners()]


class Ownership(StoreFixtures):
    # Leases

    async def test_an_owner_without_a_lease_claims_nothing(
        self, store: EventStore, backend: Backend, leases: Leases
    ) -> None:
        alice = await leases.begin(backend, "alice")
        await store.append("a", happened(1))
        epoch = await alice.granted(backend, "b")
        with pytest.raises(LeaseLost):
            await backend.claim([Claim("a", alice.id), Claim("b", new_event_id()), Claim("c")])
        assert await _all_holdings(backend) == [Holding("b", epoch, alice.id)]
        assert await _may_write(backend, "b", epoch)

    async def test_a_lease_that_was_not_renewed_once_has_not_begun(self, backend: Backend, leases: Leases) -> None:
        alice = await leases.make(backend, Owner(new_event_id(), "alice", 30.0))
        with pytest.raises(LeaseLost):
            await alice.claim(backend, "a")
        assert await _names(backend) == []
        await alice.renew()
        await alice.granted(backend, "a")

    async def test_a_lease_that_ran_out_claims_nothing_until_it_is_renewed(
        self, backend: Backend, leases: Leases
    ) -> None:
        alice = await leases.begin(backend, seconds=SHORT)
        await asyncio.sleep(UNTIL_IT_RAN_OUT)
        with pytest.raises(LeaseLost):
            await alice.claim(backend, "a")
        assert await _all_holdings(backend) == []
        await alice.renew()
        await _granted_in_time(alice, backend, "a")

    async def test_a_lease_that_is_renewed_runs_on(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice", seconds=2.0), await leases.begin(backend, "bob")
        await alice.granted(backend, "a")
        for _ in range(3):
            await asyncio.sleep(0.7)
            await alice.renew()
        assert isinstance(await bob.claim(backend, "a"), Holder)
        await alice.granted(backend, "a")

    async def test_a_lease_that_is_ended_claims_nothing(self, backend: Backend, leases: Leases) -> None:
        alice = await leases.begin(backend)
        await alice.end()
        with pytest.raises(LeaseLost):
            await alice.claim(backend, "a")
        assert await _names(backend) == []

    async def test_a_lease_that_ran_out_can_be_ended(self, backend: Backend, leases: Leases) -> None:
        alice = await leases.begin(backend, seconds=SHORT)
        await asyncio.sleep(UNTIL_IT_RAN_OUT)
        await alice.end()
        assert await _names(backend) == []

    async def test_a_claim_without_an_owner_needs_no_lease(self, backend: Backend) -> None:
        (epoch,) = await backend.claim([Claim("a")])
        assert isinstance(epoch, int)
        assert await _may_write(backend, "a", epoch)

    # Claims

    async def test_who_has_claimed_a_stream_may_write(self, backend: Backend, leases: Leases) -> None:
        alice = await leases.begin(backend)
        epoch = await alice.granted(backend, "a")
        assert await _may_write(backend, "a", epoch)

    async def test_a_claim_is_refused_while_anothers_lease_runs(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob", seconds=5)
        epoch = await alice.granted(backend, "a")
        await alice.renew()
        holder = await bob.claim(backend, "a")
        assert isinstance(holder, Holder)
        assert holder[:4] == (alice.id, "alice", 2, 30.0)
        assert 20 < holder.remaining <= 30
        assert await _may_write(backend, "a", epoch)
        assert await _all_holdings(backend) == [Holding("a", epoch, alice.id)]

    async def test_a_stream_is_free_when_its_owners_lease_has_run_out(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice", seconds=SHORT), await leases.begin(backend, "bob")
        earlier = await _granted_in_time(alice, backend, "a")
        await asyncio.sleep(UNTIL_IT_RAN_OUT)
        # Until somebody takes it, it is the owner's, who may write.
        assert await _may_write(backend, "a", earlier)
        later = await bob.granted(backend, "a")
        assert later > earlier
        assert not await _may_write(backend, "a", earlier)
        await alice.renew()
        assert isinstance(await _claimed_in_time(alice, backend, "a"), Holder)

    async def test_a_stream_is_free_when_its_owners_lease_has_ended(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        earlier = await alice.granted(backend, "a")
        await alice.end()
        later = await bob.granted(backend, "a")
        assert later > earlier
        assert not await _may_write(backend, "a", earlier)

    async def test_a_stream_is_free_for_who_has_seen_the_lease_lapse(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        earlier = await alice.granted(backend, "a")
        holder = await bob.claim(backend, "a")
        assert isinstance(holder, Holder)
        later = await bob.granted(backend, "a", lapsed=holder.renewals)
        assert later > earlier
        assert not await _may_write(backend, "a", earlier)

    async def test_a_lease_that_was_renewed_since_has_not_lapsed(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        epoch = await alice.granted(backend, "a")
        holder = await bob.claim(backend, "a")
        assert isinstance(holder, Holder)
        await alice.renew()
        again = await bob.claim(backend, "a", lapsed=holder.renewals)
        assert isinstance(again, Holder)
        assert again.renewals == holder.renewals + 1
        assert isinstance(await bob.claim(backend, "a", lapsed=again.renewals + 1), Holder)
        assert await _may_write(backend, "a", epoch)

    async def test_an_owner_may_claim_its_stream_again(self, backend: Backend, leases: Leases) -> None:
        alice = await leases.begin(backend)
        earlier, later = [await alice.granted(backend, "a") for _ in range(2)]
        assert later > earlier
        assert not await _may_write(backend, "a", earlier)
        assert await _may_write(backend, "a", later)

    async def test_a_claim_without_an_owner_takes_the_stream_from_anyone(
        self, backend: Backend, leases: Leases
    ) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        earlier = await alice.granted(backend, "a")
        (epoch,) = await backend.claim([Claim("a")])
        assert isinstance(epoch, int)
        assert epoch > earlier
        assert not await _may_write(backend, "a", earlier)
        assert await _all_holdings(backend) == []
        # Nobody owns it now.
        assert await bob.granted(backend, "a") > epoch

    async def test_a_claim_of_many_gives_each_its_own_answer(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        stream_ids = [f"s-{number}" for number in range(200)]
        before = [await bob.granted(backend, stream_id) for stream_id in stream_ids[100:110]]
        await alice.granted(backend, stream_ids[150])
        await backend.release(bob.id, {stream_ids[105]: before[5]})
        # Not in the order of their ids, and two without an owner.
        asked = [Claim(stream_id, alice.id) for stream_id in reversed(stream_ids)]
        asked[0], asked[98] = Claim(stream_ids[199]), Claim(stream_ids[101])
        answers = dict(zip((claim.stream_id for claim in asked), await backend.claim(asked), strict=True))
        refused = {stream_id for stream_id, answer in answers.items() if isinstance(answer, Holder)}
        assert refused == {f"s-{number}" for number in (100, 102, 103, 104, 106, 107, 108, 109)}
        assert {answer.name for answer in answers.values() if isinstance(answer, Holder)} == {"bob"}
        epochs = {stream_id: answer for stream_id, answer in answers.items() if isinstance(answer, int)}
        assert (epochs["s-0"], epochs["s-101"], epochs["s-105"], epochs["s-150"]) == (1, 2, 2, 2)
        held = {holding.stream_id: (holding.epoch, holding.owner) for holding in await _all_holdings(backend)}
        assert held == {
            **{f"s-{number}": (1, bob.id) for number in (100, 102, 103, 104, 106, 107, 108, 109)},
            **{
                stream_id: (epoch, alice.id)
                for stream_id, epoch in epochs.items()
                if stream_id not in ("s-199", "s-101")
            },
        }
        assert list(await backend.claim([])) == []

    async def test_a_claim_by_an_owner_is_no_event_and_makes_no_stream(
        self, store: EventStore, backend: Backend, leases: Leases
    ) -> None:
        alice = await leases.begin(backend)
        await alice.granted(backend, "a")
        assert await collect(store.streams()) == []
        assert await collect(store.read_all()) == []
        counted = await store.statistics()
        assert (counted.streams, counted.events) == (0, 0)
        assert (await store.append("a", happened(1), expected_version=0)).versions == (1,)

    # Release

    async def test_a_released_stream_is_free_and_its_epoch_stays(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        earlier = await alice.granted(backend, "a")
        await backend.release(alice.id, {"a": earlier})
        assert await _all_holdings(backend) == []
        assert await _may_write(backend, "a", earlier)
        assert await bob.granted(backend, "a") > earlier
        assert not await _may_write(backend, "a", earlier)

    async def test_only_what_the_owner_still_holds_with_these_epochs_is_released(
        self, store: EventStore, backend: Backend, leases: Leases
    ) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        epochs = {stream_id: await alice.granted(backend, stream_id) for stream_id in ("a", "b", "c")}
        await alice.granted(backend, "b")
        bobs = await bob.granted(backend, "d")
        # Claimed again since, another's, not claimed, unknown to the store: none of them is released, and no error.
        await store.append("e", happened(1))
        await backend.release(alice.id, {**epochs, "c": epochs["c"] + 1, "d": bobs, "e": 0, "nobody's": 1})
        await backend.release(bob.id, {"c": epochs["c"]})
        assert [holding.stream_id for holding in await _all_holdings(backend)] == ["b", "c", "d"]
        await backend.release(alice.id, {})

    async def test_a_late_release_takes_nothing_from_the_next_owner(self, backend: Backend, leases: Leases) -> None:
        alice, bob = await leases.begin(backend, "alice", seconds=SHORT), await leases.begin(backend, "bob")
        earlier = await _granted_in_time(alice, backend, "a")
        await asyncio.sleep(UNTIL_IT_RAN_OUT)
        later = await bob.granted(backend, "a")
        await backend.release(alice.id, {"a": earlier})
        await alice.end()
        assert await _all_holdings(backend) == [Holding("a", later, bob.id)]
        assert await _may_write(backend, "a", later)

    # Who holds what

    async def test_owners_are_listed_by_name_with_what_they_say_of_themselves(
        self, backend: Backend, leases: Leases
    ) -> None:
        assert list(await backend.owners()) == []
        report = '{"actors": 3, "say": "\u00e9 \\"\U0001f600\\""}'.encode()
        carol = await leases.begin(backend, "carol", seconds=5)
        alice = await leases.begin(backend, "alice", report=b'{"actors": 1}')
        bob = await leases.begin(backend, "bob", report=report)
        await alice.renew(b'{"actors": 2}')
        infos = await backend.owners()
        assert [_without_time(info) for info in infos] == [
            (alice.id, "alice", 2, b'{"actors": 2}'),
            (bob.id, "bob", 1, report),
            (carol.id, "carol", 1, b"{}"),
        ]
        assert all(20 < info.remaining <= 30 for info in infos[:2])
        assert 0 < infos[2].remaining <= 5

    async def test_two_owners_may_have_one_name(self, backend: Backend, leases: Leases) -> None:
        alice, other_alice = [await leases.begin(backend, "alice") for _ in range(2)]
        assert {info.id for info in await backend.owners()} == {alice.id, other_alice.id}
        await alice.granted(backend, "a")
        assert isinstance(await other_alice.claim(backend, "a"), Holder)

    async def test_a_lease_that_ran_out_is_shown_as_such(self, backend: Backend, leases: Leases) -> None:
        await leases.begin(backend, "alice", seconds=SHORT)
        await leases.begin(backend, "bob")
        await asyncio.sleep(UNTIL_IT_RAN_OUT)
        remaining = {info.name: info.remaining for info in await backend.owners()}
        assert -10 < remaining["alice"] < 0 < remaining["bob"]

    async def test_holdings_come_in_the_order_of_their_ids_bytes_page_by_page(
        self, store: EventStore, backend: Backend, leases: Leases
    ) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend, "bob")
        stream_ids = ["b", "B", "\u00e9", "e\u0301", "a-2", "a-10", "a", "\U0001f600", "\uffff", "a ", "_", "~"]
        expected: list[Holding] = []
        for number, stream_id in enumerate(stream_ids):
            held = (alice, bob)[number % 2]
            expected.append(Holding(stream_id, await held.granted(backend, stream_id), held.id))
        expected.sort(key=lambda holding: holding.stream_id.encode())
        # Neither held: one that was claimed by nobody, and one that nobody claimed.
        await store.claim("c")
        await store.append("d", happened(1))
        assert await _all_holdings(backend) == expected
        for size in (1, 5, len(expected)):
            found: list[Holding] = []
            while page := await backend.holdings(after=found[-1].stream_id if found else "", limit=size):
                assert len(page) <= size
                assert len(found) < len(expected)
                found += page
            assert found == expected

    async def test_a_stream_is_held_until_it_is_released_though_the_lease_has_run_out(
        self, backend: Backend, leases: Leases
    ) -> None:
        alice = await leases.begin(backend, seconds=SHORT)
        epoch = await _granted_in_time(alice, backend, "a")
        await asyncio.sleep(UNTIL_IT_RAN_OUT)
        assert await _all_holdings(backend) == [Holding("a", epoch, alice.id)]

    async def test_what_is_held_is_there_after_the_store_was_closed_and_opened(
        self, store: EventStore, backend: Backend, leases: Leases
    ) -> None:
        alice = await leases.begin(backend)
        epoch = await alice.granted(backend, "a")
        async with reopened(store) as again:
            assert await _all_holdings(backend_of(again)) == [Holding("a", epoch, alice.id)]

    # Several stores

    async def test_another_store_sees_leases_and_holdings(
        self, backend: Backend, other: EventStore, leases: Leases
    ) -> None:
        alice, bob = await leases.begin(backend, "alice"), await leases.begin(backend_of(other), "bob")
        epoch = await alice.granted(backend, "a")
        holder = await bob.claim(backend_of(other), "a")
        assert isinstance(holder, Holder)
        assert holder.name == "alice"
        assert await _names(backend) == await _names(backend_of(other)) == ["alice", "bob"]
        assert await _all_holdings(backend_of(other)) == [Holding("a", epoch, alice.id)]
        await backend.release(alice.id, {"a": epoch})
        assert await bob.granted(backend_of(other), "a") > epoch
        assert not await _may_write(backend, "a", epoch)

    async def test_of_two_owners_that_claim_at_once_one_gets_the_stream(
        self, backend: Backend, other: EventStore, leases: Leases
    ) -> None:
        owners = [await leases.begin(backend, "alice"), await leases.begin(backend_of(other), "bob")]
        backends = [backend, backend_of(other)]

        async def claim_all(held: HeldLease, through: Backend) -> list[int | Holder]:
            return [await held.claim(through, f"s-{number}") for number in range(20)]

        answers = await asyncio.gather(*map(claim_all, owners, backends))
        for pair in zip(*answers, strict=True):
            assert sorted(type(answer).__name__ for answer in pair) == ["Holder", "int"]

    async def test_claims_of_many_streams_in_opposite_orders_are_all_answered(
        self, backend: Backend, other: EventStore, leases: Leases
    ) -> None:
        # A database that locks rows in the order of the claims would deadlock.
        owners = [await leases.begin(backend, "alice"), await leases.begin(backend_of(other), "bob")]
        stream_ids = [f"s-{number}" for number in range(50)]
        for _ in range(5):
            answers = await asyncio.gather(
                backend.claim([Claim(stream_id, owners[0].id) for stream_id in stream_ids]),
                backend_of(other).claim([Claim(stream_id, owners[1].id) for stream_id in reversed(stream_ids)]),
            )
            for pair in zip(answers[0], reversed(answers[1]), strict=True):
                assert {type(answer) for answer in pair} == {int, Holder}
            for held, epochs in zip(owners, (answers[0], reversed(answers[1])), strict=True):
                await backend.release(
                    held.id, {s: e for s, e in zip(stream_ids, epochs, strict=True) if isinstance(e, int)}
                )

    async def test_a_claim_while_others_append_fences_and_loses_nothing(
        self, store: EventStore, backend: Backend, other: EventStore, leases: Leases
    ) -> None:
        alice = await leases.begin(backend_of(other))
        earlier = await alice.granted(backend_of(other), "a")

        async def append(number: int) -> bool:
            (result,) = await backend.append([[write("a", b"%d" % number, epoch=earlier)]])
            return isinstance(result, Appended)

        appends = [asyncio.create_task(append(number)) for number in range(50)]
        later = await alice.granted(backend_of(other), "a")
        stored = await asyncio.gather(*appends)
        assert await store.version("a") == sum(stored)
        assert not await _may_write(backend, "a", earlier)
        assert await _may_write(backend, "a", later)


def _without_time(info: OwnerInfo) -> tuple[bytes, str, int, bytes]:
    return info.id, info.name, info.renewals, info.report

"""A command with an id is handled once, and answered with what came of it from then on."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, Field

from actors import (
    ActorSystem,
    BackendUnavailable,
    Command,
    CommandForgotten,
    CommandRejected,
    CommandRetention,
    ConcurrencyError,
    DuplicateCommandMismatch,
    InvalidCommandId,
    OutcomeUnknown,
    PersistentActor,
    command_handler,
    event_handler,
    new_command_id,
)
from backends.conformance.cases import case
from eventstore import CodecError, Event, EventStore, ReplyDecodeError, ReplyEncodeError
from eventstore.backend import CommandLookup
from tests.actors.faults import Faults, answer_lost, refused, request_lost
from tests.actors.notebook import served, until


class Bought(Event, name="once.bought"):
    what: str


class Receipt(BaseModel):
    number: int
    at: datetime
    lines: tuple[str, ...]


class Buy(Command[Receipt]):
    what: str


class BuySlowly(Command[int]):
    what: str


class BuyInSteps(Command[int]):
    what: str


class BuyAndRegret(Command[None]):
    what: str


class Count(Command[int]):
    pass


class Label(Command[str]):
    tags: frozenset[str] = frozenset()
    values: dict[str, int] = Field(default_factory=dict[str, int])


class Lie(Command[int]):
    pass


class Fail(Command[int]):
    pass


class TooDear(CommandRejected):
    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} too dear")
        self.missing = missing


AT = datetime(2024, 2, 29, 12, tzinfo=UTC)


class Shop(PersistentActor[list[str]]):
    handled: ClassVar[list[str]] = []

    @command_handler
    def buy(self, command: Buy) -> Receipt:
        self.handled.append(command.what)
        if command.what == "castle":
            raise TooDear(7)
        self.persist(Bought(what=command.what))
        return Receipt(number=len(self.state), at=AT, lines=tuple(self.state))

    @command_handler
    async def buy_slowly(self, command: BuySlowly) -> int:
        self.handled.append(command.what)
        await asyncio.sleep(0)
        self.persist(Bought(what=command.what))
        return len(self.state)

    @command_handler
    async def buy_in_steps(self, command: BuyInSteps) -> int:
        self.handled.append(command.what)
        await self.persist(Bought(what=command.what))
        self.persist(Bought(what="a bag"))
        return len(self.state)

    @command_handler
    def buy_and_regret(self, command: BuyAndRegret) -> None:
        self.handled.append(command.what)
        self.persist(Bought(what=command.what))
        raise CommandRejected("no, thanks")

    @command_handler
    def count(self, command: Count) -> int:
        self.handled.append("count")
        return len(self.state)

    @command_handler
    def label(self, command: Label) -> str:
        self.handled.append("label")
        return ",".join(sorted(command.tags))

    @command_handler
    def lie(self, command: Lie) -> int:
        self.persist(Bought(what="a lie"))
        return "no number"  # type: ignore[return-value]  # what is tested

    @command_handler
    def fail(self, command: Fail) -> int:
        self.handled.append("fail")
        raise RuntimeError("broken")

    @event_handler
    def bought(self, event: Bought) -> None:
        self.state.append(event.what)


@pytest.fixture(autouse=True)
def nothing_handled() -> None:
    Shop.handled.clear()


async def events_of(store: EventStore, stream_id: str = "Shop-a") -> list[str]:
    return [recorded.json()["what"] async for recorded in store.read(stream_id)]


async def test_the_same_id_again_returns_the_first_reply_and_handles_nothing(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    first = await shop.ask(Buy(what="tea"), command_id="1")
    await shop.ask(Buy(what="milk"))
    assert await shop.ask(Buy(what="tea"), command_id="1") == first == Receipt(number=1, at=AT, lines=("tea",))
    assert Shop.handled == ["tea", "milk"]
    assert await events_of(store) == ["tea", "milk"]


@case("C051")
async def test_after_a_restart_it_is_not_handled_again(store: EventStore, other: EventStore):
    async with ActorSystem(store) as system:
        first = await system.ref(Shop, "a").ask(Buy(what="tea"), command_id="1")
        await system.ref(Shop, "a").ask(BuySlowly(what="milk"), command_id="2")
    async with ActorSystem(other) as system:
        assert await system.ref(Shop, "a").ask(Buy(what="tea"), command_id="1") == first
        assert await system.ref(Shop, "a").ask(BuySlowly(what="milk"), command_id="2") == 2
    assert Shop.handled == ["tea", "milk"]


async def test_a_rejection_is_remembered_with_its_class_and_what_it_carries(system: ActorSystem, store: EventStore):
    for _ in range(2):
        with pytest.raises(TooDear, match="^7 too dear$") as caught:
            await system.ref(Shop, "a").ask(Buy(what="castle"), command_id="1")
        assert caught.value.missing == 7
    assert Shop.handled == ["castle"]
    assert await events_of(store) == []


async def test_a_rejection_after_persist_is_remembered_without_the_events(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    await shop.ask(Buy(what="tea"))
    for _ in range(3):
        with pytest.raises(CommandRejected, match="no, thanks"):
            await shop.ask(BuyAndRegret(what="hat"), command_id="1")
    assert Shop.handled == ["tea", "hat"]
    assert await shop.ask(Count()) == 1
    assert await events_of(store) == ["tea"]


async def test_a_command_that_stored_nothing_is_remembered_too(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    assert await shop.ask(Count(), command_id="how many") == 0
    await shop.ask(Buy(what="tea"))
    assert await shop.ask(Count(), command_id="how many") == 0
    assert await shop.ask(Count()) == 1
    assert await store.version("Shop-a") == 1


async def test_an_error_that_is_no_rejection_is_not_remembered(system: ActorSystem):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            await system.ref(Shop, "a").ask(Fail(), command_id="1")
    assert Shop.handled == ["fail", "fail"]


async def test_another_command_under_the_same_id_is_an_error(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    await shop.ask(Buy(what="tea"), command_id="1")
    for other in (Buy(what="milk"), BuySlowly(what="tea"), Count()):
        with pytest.raises(DuplicateCommandMismatch, match="'1'") as caught:
            await shop.ask(other, command_id="1")
        assert (caught.value.stream_id, caught.value.command_id) == ("Shop-a", "1")
    assert await events_of(store) == ["tea"]


async def test_the_same_id_is_another_command_for_another_actor(system: ActorSystem):
    assert (await system.ref(Shop, "a").ask(Buy(what="tea"), command_id="1")).number == 1
    assert (await system.ref(Shop, "b").ask(Buy(what="tea"), command_id="1")).number == 1
    assert Shop.handled == ["tea", "tea"]


async def test_sent_many_times_at_once_it_is_handled_once(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    replies = await asyncio.gather(*(shop.ask(Buy(what="tea"), command_id="1") for _ in range(50)))
    assert {reply.number for reply in replies} == {1}
    slow = await asyncio.gather(*(shop.ask(BuySlowly(what="milk"), command_id="2") for _ in range(50)))
    assert slow == [2] * 50
    assert Shop.handled == ["tea", "milk"]
    assert await events_of(store) == ["tea", "milk"]


async def test_many_different_ids_at_once_are_each_handled_once(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    ids = [new_command_id() for _ in range(300)] + [f"order {n}" for n in range(300)]
    for _ in range(2):
        replies = await asyncio.gather(*(shop.ask(Buy(what=sent), command_id=sent) for sent in ids))
        assert sorted(reply.number for reply in replies) == list(range(1, 601))
    assert sorted(await events_of(store)) == sorted(ids) == sorted(Shop.handled)


async def test_two_processes_handle_it_once_between_them(store: EventStore, other: EventStore):
    """Both have the actor in memory, and neither knows what the other does."""
    async with ActorSystem(store) as one, ActorSystem(other) as two:
        shops = [system.ref(Shop, "a") for system in (one, two)]
        for shop in shops:
            await shop.ask(Count(), command_id=f"begin {id(shop)}")
        for number in range(1, 21):
            asked = (shop.ask(Buy(what=f"{number}"), command_id=f"{number}") for shop in shops for _ in range(2))
            assert {reply.number for reply in await asyncio.gather(*asked)} == {number}
        assert await events_of(store) == [f"{number}" for number in range(1, 21)]


async def test_an_async_handler_beside_a_command_that_was_handled_elsewhere_is_told_of_a_conflict(faults: Faults):
    """They were on their way together, so nothing of it is stored, and it cannot be decided again."""
    async with faults.store() as store, ActorSystem(store) as one, ActorSystem(store) as two:
        shop = one.ref(Shop, "a")
        await shop.ask(Count(), command_id="0")
        with pytest.raises(TooDear):
            await two.ref(Shop, "a").ask(Buy(what="castle"), command_id="1")
        faults.hold()
        before = len(faults.appends)
        first = asyncio.create_task(one.ref(Shop, "b").ask(Buy(what="bread")))
        await faults.held(before + 1)
        asked = (shop.ask(BuySlowly(what="milk")), shop.ask(Buy(what="castle"), command_id="1"))
        results = asyncio.gather(*asked, return_exceptions=True)
        await until(lambda: Shop.handled[-2:] == ["milk", "castle"])
        faults.release()
        assert [type(error) for error in await results] == [ConcurrencyError, TooDear]
        assert (await first).number == 1
        assert await events_of(store) == []


async def test_an_async_handler_is_not_run_for_what_another_process_has_handled(store: EventStore, other: EventStore):
    async with ActorSystem(store) as one, ActorSystem(other) as two:
        await two.ref(Shop, "a").ask(BuySlowly(what="milk"), command_id="0")
        assert await one.ref(Shop, "a").ask(BuySlowly(what="tea"), command_id="1") == 2
        assert await two.ref(Shop, "a").ask(BuySlowly(what="tea"), command_id="1") == 2
    assert Shop.handled == ["milk", "tea"]


async def test_an_async_handler_that_stores_in_steps_is_remembered_at_its_end(system: ActorSystem, store: EventStore):
    for _ in range(2):
        assert await system.ref(Shop, "a").ask(BuyInSteps(what="tea"), command_id="1") == 2
    assert await events_of(store) == ["tea", "a bag"]


async def test_tell_with_an_id_is_handled_once(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    for _ in range(3):
        await shop.tell(Buy(what="tea"), command_id="1")
    assert (await shop.ask(Buy(what="tea"), command_id="1")).number == 1
    assert await events_of(store) == ["tea"]


async def test_events_name_the_command_they_came_of(system: ActorSystem, store: EventStore):
    await system.ref(Shop, "a").ask(Buy(what="tea"), command_id='say "hi"')
    await system.ref(Shop, "a").ask(Buy(what="milk"))
    found = [recorded.metadata async for recorded in store.read("Shop-a")]
    assert found[0] is not None
    assert found[0].command_id == 'say "hi"'
    assert found[1] is None


async def test_the_order_of_sets_and_dicts_makes_no_other_command(system: ActorSystem):
    shop = system.ref(Shop, "a")
    names = [f"name {n}" for n in range(50)]
    one = Label(tags=frozenset(names), values={name: n for n, name in enumerate(names)})
    two = Label(tags=frozenset(reversed(names)), values={name: 49 - n for n, name in enumerate(reversed(names))})
    assert await shop.ask(one, command_id="1") == await shop.ask(two, command_id="1")
    assert Shop.handled == ["label"]
    with pytest.raises(DuplicateCommandMismatch):
        await shop.ask(Label(tags=frozenset(names[1:]), values=one.values), command_id="1")


async def test_a_reply_that_is_not_what_was_promised_is_refused_before_anything_is_stored(
    system: ActorSystem, store: EventStore
):
    with pytest.raises(ReplyEncodeError, match="Lie"):
        await system.ref(Shop, "a").ask(Lie(), command_id="1")
    assert await system.ref(Shop, "a").ask(Count()) == 0
    assert await events_of(store) == []


async def test_a_remembered_reply_that_no_longer_fits_says_so(system: ActorSystem, store: EventStore):
    class Old(Command[str]):
        pass

    class New(Command[int]):
        pass

    New.__name__ = "Old"  # The class after its reply was changed.

    class Early(PersistentActor[list[str]], kind="Both"):
        @command_handler
        def old(self, command: Old) -> str:
            return "not a number"

    class Late(PersistentActor[list[str]], kind="Both"):
        @command_handler
        def new(self, command: New) -> int:
            return 1

    await system.ref(Early, "a").ask(Old(), command_id="1")
    async with ActorSystem(store) as later:
        with pytest.raises(ReplyDecodeError, match="does not fit"):
            await later.ref(Late, "a").ask(New(), command_id="1")


@pytest.mark.parametrize("command_id", ["", "\0", "x" * 256, "\ud800", "ä" * 128])
async def test_an_id_that_cannot_be_stored_is_refused(system: ActorSystem, command_id: str):
    with pytest.raises(InvalidCommandId):
        await system.ref(Shop, "a").ask(Count(), command_id=command_id)
    assert Shop.handled == []


LIKE_A_UUID = (
    "-192abcd-abcd-7abc-8abc-abcdabcdabcd",
    "+192abcd-abcd-7abc-8abc-abcdabcdabcd",
    "0_92abcd-abcd-7abc-8abc-abcdabcdabcd",
    " 192abcd-abcd-7abc-8abc-abcdabcdabcd",
    "٠١٢٣٤٥٦٧-٠١٢٣-7abc-8abc-abcdabcdabcd",
)
"""What Python takes for a number, and no UUID begins with."""


@pytest.mark.parametrize("command_id", ["x", "x" * 255, " ", "'; drop table", "日本", "a:b/{c}", *LIKE_A_UUID])
async def test_any_other_id_is_remembered_as_it_is(system: ActorSystem, command_id: str):
    shop = system.ref(Shop, "a")
    assert await shop.ask(Count(), command_id=command_id) == 0
    await shop.ask(Buy(what="tea"))
    assert await shop.ask(Count(), command_id=command_id) == 0
    assert await shop.ask(Count(), command_id=command_id + "." if len(command_id) < 255 else "other") == 1


async def test_a_command_that_cannot_be_written_cannot_have_an_id(system: ActorSystem):
    class Odd(Command[None]):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: Any

    class Taker(PersistentActor[list[str]]):
        @command_handler
        def take(self, command: Odd) -> None: ...

    with pytest.raises(CodecError, match="Odd"):
        await system.ref(Taker, "a").ask(Odd(thing=object()), command_id="1")
    assert await system.ref(Taker, "a").ask(Odd(thing=object())) is None


# What is forgotten


async def test_what_is_forgotten_is_refused_if_its_id_tells_its_age(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    ids = [new_command_id() for _ in range(5)]
    for sent in ids:
        await shop.ask(Buy(what=sent), command_id=sent)
        await asyncio.sleep(0.002)
    assert await store.forget_commands("Shop-a", keep=2) == 3
    async with ActorSystem(store) as later:
        shop = later.ref(Shop, "a")
        for sent in ids[:3]:
            with pytest.raises(CommandForgotten, match=sent) as caught:
                await shop.ask(Buy(what=sent), command_id=sent)
            assert (caught.value.stream_id, caught.value.command_id) == ("Shop-a", sent)
        for number, sent in enumerate(ids[3:], start=4):
            assert (await shop.ask(Buy(what=sent), command_id=sent)).number == number
        assert (await shop.ask(Buy(what="new"), command_id=new_command_id())).number == 6
    assert await events_of(store) == [*ids, "new"]


async def test_a_live_actor_is_told_by_the_store_what_was_forgotten_meanwhile(store: EventStore, other: EventStore):
    """It knows the id to be new, because it was handled and forgotten elsewhere."""
    async with ActorSystem(store) as one, ActorSystem(other) as two:
        await one.ref(Shop, "a").ask(Count(), command_id="begin")
        sent = new_command_id()
        await two.ref(Shop, "a").ask(Buy(what="tea"), command_id=sent)
        await other.forget_commands("Shop-a", keep=0)
        await asyncio.sleep(0.002)
        with pytest.raises(CommandForgotten):
            await one.ref(Shop, "a").ask(Buy(what="tea"), command_id=sent)
        assert (await one.ref(Shop, "a").ask(Buy(what="milk"), command_id=new_command_id())).number == 2
    assert await events_of(store) == ["tea", "milk"]


async def test_truncation_forgets_what_was_remembered_below_it(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    old, new = new_command_id(), new_command_id()
    await shop.ask(Buy(what="tea"), command_id=old)
    await asyncio.sleep(0.002)
    assert (await shop.ask(Buy(what="milk"), command_id=new)).number == 2
    await store.truncate("Shop-a", 1, reason="a test")
    assert (await shop.ask(Buy(what="milk"), command_id=new)).number == 2
    with pytest.raises(CommandForgotten):
        await shop.ask(Buy(what="tea"), command_id=old)


async def test_retention_keeps_the_newest_and_forgets_the_oldest_in_time(system: ActorSystem, store: EventStore):
    class Kiosk(Shop):
        command_retention = CommandRetention(count=100)

    kiosk = system.ref(Kiosk, "a")
    ids = [f"{n:05}" for n in range(1500)]
    for sent in ids:
        await kiosk.ask(Count(), command_id=sent)
    Shop.handled.clear()
    for sent in ids[-100:]:
        assert await kiosk.ask(Count(), command_id=sent) == 0
    assert Shop.handled == []
    for _ in range(2000):
        found = [await store.find_command(CommandLookup("Kiosk-a", sent)) for sent in ids[:50]]
        if all(each.outcome is None for each in found):
            break
        await asyncio.sleep(0.01)
    # One in 64 has the oldest forgotten: that none of 1,400 did so has a probability of 10 to the minus 10.
    assert all(each.outcome is None for each in found)


async def test_an_id_that_only_looks_like_a_uuid_tells_no_time(system: ActorSystem, store: EventStore):
    shop = system.ref(Shop, "a")
    for command_id in LIKE_A_UUID:
        await shop.ask(Buy(what="tea"), command_id=command_id)
    await store.forget_commands("Shop-a", keep=0)
    for command_id in LIKE_A_UUID:
        found = await store.find_command(CommandLookup("Shop-a", command_id))
        assert (found.outcome, found.forgotten) == (None, 0)


async def test_beyond_the_ids_an_actor_knows_it_asks_for_each(store: EventStore, other: EventStore):
    ids = [f"{n * 7919 % 1009:04}" for n in range(1000)]
    async with ActorSystem(store) as system:
        await asyncio.gather(*(system.ref(Shop, "a").ask(Count(), command_id=sent) for sent in ids))
    Shop.handled.clear()
    async with ActorSystem(other) as system:
        shop = system.ref(Shop, "a")
        assert await asyncio.gather(*(shop.ask(Count(), command_id=sent) for sent in ids)) == [0] * 1000
        assert Shop.handled == []
        await shop.ask(Count(), command_id="0000.5")
        assert Shop.handled == ["count"]


def _lookup(stream_id: str, command_id: str):
    from eventstore.backend import CommandLookup

    return CommandLookup(stream_id, command_id)


# When the store does not answer


async def test_a_lost_answer_is_resolved_with_the_same_outcome(faults: Faults, faulty: ActorSystem):
    shop = faulty.ref(Shop, "a")
    await shop.ask(Count(), command_id="0")
    faults.next.extend([answer_lost, request_lost, answer_lost])
    assert (await shop.ask(Buy(what="tea"), command_id="1")).number == 1
    faults.next.extend([answer_lost, request_lost])
    assert await shop.ask(Count(), command_id="2") == 1
    assert Shop.handled == ["count", "tea", "count"]


async def test_an_unknown_outcome_names_the_command_and_asking_again_finds_out(faults: Faults):
    async with faults.store(resolve_within=0.2) as store, ActorSystem(store) as system:
        shop = system.ref(Shop, "a")
        await shop.ask(Count(), command_id="0")
        faults.always = answer_lost
        with pytest.raises(OutcomeUnknown, match="'1'") as caught:
            await shop.ask(Buy(what="tea"), command_id="1")
        assert caught.value.command_id == "1"
        faults.always = None
        await until(lambda: store.commits.refusal() is None)
        assert (await shop.ask(Buy(what="tea"), command_id="1")).number == 1
        assert Shop.handled == ["count", "tea"]
        assert await events_of(store) == ["tea"]


async def test_while_the_store_does_not_serve_an_actor_answers_from_memory(faults: Faults, faulty: ActorSystem):
    async def no_load(_: object) -> None:
        raise BackendUnavailable("gone")

    shop, other = faulty.ref(Shop, "a"), faulty.ref(Shop, "b")
    await shop.ask(Buy(what="tea"))
    faults.always = refused(BackendUnavailable("gone"))
    faults.before_load = no_load
    for _ in range(10):
        with pytest.raises(BackendUnavailable):
            await other.ask(Buy(what="milk"))
    loads = len(faults.loads)
    with pytest.raises(BackendUnavailable):
        await shop.ask(Buy(what="milk"))
    assert await shop.ask(Count()) == 1
    faults.always = faults.before_load = None
    assert (await served(shop.ask, Buy(what="milk"))).number == 2
    assert [load.stream_id for load in faults.loads[loads:]] == []

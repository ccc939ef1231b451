"""Commands, events, replies: one command at a time, all of its events or none, and nothing but them changes state."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel, JsonValue

from actors import (
    ActorSystem,
    Command,
    CommandRejected,
    DefinitionError,
    PersistentActor,
    command_handler,
    event_handler,
)
from backends.conformance.cases import case
from eventstore import ActorError, Event, EventEncodeError, EventStore, Metadata, PayloadTooLarge
from tests.actors.notebook import (
    Break,
    Notebook,
    Page,
    Read,
    Refuse,
    Torn,
    Unhandled,
    Wait,
    Write,
    WriteAll,
    WriteAndBreak,
    WriteAndRefuse,
    WriteSlowly,
    Written,
    texts,
)


async def test_a_command_is_answered_with_what_its_handler_returns(system: ActorSystem):
    assert await system.ref(Notebook, "a").ask(Write(text="x")) == 1


async def test_a_handler_sees_the_state_after_all_earlier_commands(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    assert [await notebook.ask(Write(text=text)) for text in "xyz"] == [1, 2, 3]
    assert await notebook.ask(Read()) == ["x", "y", "z"]


async def test_commands_sent_together_are_handled_one_after_another_in_their_order(
    system: ActorSystem, store: EventStore
):
    notebook = system.ref(Notebook, "a")
    numbers = [str(number) for number in range(300)]
    assert await asyncio.gather(*(notebook.ask(Write(text=text)) for text in numbers)) == list(range(1, 301))
    assert await texts(store) == numbers


async def test_actors_of_one_class_share_nothing(system: ActorSystem):
    await system.ref(Notebook, "a").ask(Write(text="x"))
    assert await system.ref(Notebook, "b").ask(Read()) == []


async def test_an_actor_knows_its_key_its_stream_and_its_version(system: ActorSystem):
    class Introspective(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            before = self.version
            self.persist(Written(text="x"))
            assert (self.key, self.persistence_id, before, self.version) == ("a-b", "Introspective-a-b", 0, 1)
            return self.version

    assert await system.ref(Introspective, "a-b").ask(Wait()) == 1


async def test_an_event_handler_sees_the_version_of_its_event_live_and_at_replay_alike(url: str):
    seen: list[int] = []

    class Counting(Notebook):
        @event_handler
        def written(self, event: Written) -> None:
            seen.append(self.version)

    async with EventStore.open(url) as store:
        for _ in range(2):
            async with ActorSystem(store) as system:
                await system.ref(Counting, "a").ask(WriteAll(texts=("x", "y")))
    assert seen == [1, 2, *(1, 2), 3, 4]


async def test_the_events_of_a_command_are_stored_in_order_with_versions_from_one(
    system: ActorSystem, store: EventStore
):
    await system.ref(Notebook, "a").ask(WriteAll(texts=("x", "y", "z")))
    recorded = [record async for record in store.read("Notebook-a")]
    assert [(record.version, record.type, record.json()) for record in recorded] == [
        (1, "tests.written", {"text": "x"}),
        (2, "tests.written", {"text": "y"}),
        (3, "tests.written", {"text": "z"}),
    ]


async def test_the_events_of_one_command_are_one_batch(system: ActorSystem, store: EventStore):
    notebook = system.ref(Notebook, "a")
    # Sent together, so that both commands go into the journal with one commit.
    await asyncio.gather(notebook.ask(WriteAll(texts=("x", "y"))), notebook.ask(WriteAll(texts=("z", "w"))))
    batches = [record.batch_id async for record in store.read("Notebook-a")]
    assert batches[0] == batches[1] != batches[2] == batches[3]


@case("C164")
async def test_events_of_several_persists_keep_their_order_and_are_one_batch(system: ActorSystem, store: EventStore):
    class Nested(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"), Written(text="y"))
            self.persist(Written(text=f"after {self.state.lines[-1]}"))
            return len(self.state.lines)

    replies = await asyncio.gather(system.ref(Nested, "a").ask(Wait()), system.ref(Nested, "a").ask(Write(text="next")))
    records = [record async for record in store.read("Nested-a")]
    assert replies == [3, 4]
    assert [record.json()["text"] for record in records] == ["x", "y", "after y", "next"]
    assert len({record.batch_id for record in records[:3]}) == 1


@case("C057")
async def test_persisting_no_events_is_answered_and_stores_nothing(system: ActorSystem, store: EventStore):
    assert await system.ref(Notebook, "a").ask(WriteAll(texts=())) == 0
    assert (await store.statistics()).streams == 0


async def test_an_event_is_applied_at_once_so_that_the_handler_sees_its_effect(system: ActorSystem):
    class Seeing(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            assert self.state.lines == ["x"]
            return 0

    await system.ref(Seeing, "a").ask(Wait())


async def test_the_metadata_of_an_ask_is_stored_with_every_event_of_the_command_and_no_other(
    system: ActorSystem, store: EventStore
):
    notebook = system.ref(Notebook, "a")
    metadata = Metadata(user="ann", tags=("red",))
    await asyncio.gather(
        notebook.ask(Write(text="w")),
        notebook.ask(WriteAll(texts=("x", "y")), metadata=metadata),
        notebook.ask(WriteSlowly(text="z"), metadata=Metadata(user="bob")),
    )
    await notebook.ask(Write(text="v"))
    stored = [record.metadata async for record in store.read("Notebook-a")]
    assert stored == [None, metadata, metadata, Metadata(user="bob"), None]


# Refusals and failures


@pytest.mark.parametrize(
    "command", [Refuse(reason="too late"), WriteAndRefuse(text="x")], ids=lambda c: type(c).__name__
)
async def test_a_refusal_reaches_the_asker_stores_nothing_and_the_actor_goes_on(
    system: ActorSystem, store: EventStore, command: Command[None]
):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Write(text="before"))
    with pytest.raises(CommandRejected):
        await notebook.ask(command)
    assert await notebook.ask(Read()) == ["before"]
    assert await notebook.ask(Write(text="after")) == 2
    assert await texts(store) == ["before", "after"]


async def test_a_refusal_is_no_failure_of_the_actor(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    for command in (Refuse(), WriteAndRefuse(text="x")):
        with pytest.raises(CommandRejected):
            await notebook.ask(command)
    assert system.stats().failures == {}


async def test_an_exception_before_anything_was_persisted_is_no_failure_of_the_actor(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Write(text="x"))
    with pytest.raises(ValueError, match=r"^broken$"):
        await notebook.ask(Break())
    assert await notebook.ask(Read()) == ["x"]
    assert system.stats().failures == {}


async def test_the_users_own_exception_reaches_the_asker_as_it_is(system: ActorSystem):
    class Mine(Exception):
        def __init__(self, code: int, *, detail: str) -> None:
            super().__init__(code)
            self.detail = detail

    mine = Mine(7, detail="d")

    class Failing(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            raise mine

    with pytest.raises(Mine) as raised:
        await system.ref(Failing, "a").ask(Wait())
    assert raised.value is mine


async def test_an_exception_after_persist_drops_the_events_and_the_touched_state(
    system: ActorSystem, store: EventStore
):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Write(text="before"))
    with pytest.raises(ValueError, match="broken after x"):
        await notebook.ask(WriteAndBreak(text="x"))
    assert await notebook.ask(Read()) == ["before"]
    assert await notebook.ask(Write(text="after")) == 2
    assert await texts(store) == ["before", "after"]


async def test_an_exception_after_persist_is_supervised(system: ActorSystem):
    with pytest.raises(ValueError, match="broken after x"):
        await system.ref(Notebook, "a").ask(WriteAndBreak(text="x"))
    assert system.stats().failures == {"Notebook-a": (1, "ValueError: broken after x")}


async def test_commands_behind_one_that_broke_after_persist_do_not_see_its_events(
    system: ActorSystem, store: EventStore
):
    notebook = system.ref(Notebook, "a")
    replies = await asyncio.gather(
        notebook.ask(Write(text="1")),
        notebook.ask(WriteAndBreak(text="x")),
        notebook.ask(Write(text="2")),
        notebook.ask(Read()),
        return_exceptions=True,
    )
    assert [replies[0], replies[2], replies[3]] == [1, 2, ["1", "2"]]
    assert await texts(store) == ["1", "2"]


class Careful(Notebook, kind="careful"):
    """Persists an event whose handler raises, alone or behind a good one."""

    @command_handler
    def wait(self, command: Wait) -> int:
        good = [Written(text="good")] if command.text else []
        self.persist(*good, Torn())
        return 0


@pytest.mark.parametrize("text", ["", "a good one first"])
async def test_an_event_handler_that_raises_ends_the_command_and_nothing_of_it_is_stored(
    system: ActorSystem, store: EventStore, text: str
):
    notebook = system.ref(Careful, "a")
    await notebook.ask(Write(text="before"))
    with pytest.raises(ValueError, match="torn"):
        await notebook.ask(Wait(text=text))
    assert await notebook.ask(Read()) == ["before"]
    assert await notebook.ask(Write(text="after")) == 2
    assert await texts(store, kind="careful") == ["before", "after"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_command_whose_event_handler_raised_fails_even_if_the_command_handler_swallows_that(
    system: ActorSystem, store: EventStore, is_async: bool
):
    def swallow(actor: Notebook) -> int:
        try:
            actor.persist(Torn())
        except ValueError:
            return len(actor.state.lines)
        return 0

    class Swallowing(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            return swallow(self)

    class SwallowingAsync(Notebook, kind="Swallowing"):
        @command_handler
        async def wait(self, command: Wait) -> int:
            return swallow(self)

    notebook = system.ref(SwallowingAsync if is_async else Swallowing, "a")
    await notebook.ask(Write(text="before"))
    with pytest.raises(ValueError, match="torn"):
        await notebook.ask(Wait())
    assert await notebook.ask(Read()) == ["before"]
    assert await notebook.ask(Write(text="after")) == 2
    assert await texts(store, kind="Swallowing") == ["before", "after"]


async def test_a_handler_that_raises_stop_iteration_fails_its_own_command_alone(system: ActorSystem):
    # A future refuses to carry a StopIteration: `next()` without a default must not stop the actor.
    class Iterating(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            return next(iter(()))

    notebook = system.ref(Iterating, "a")
    await notebook.ask(Read())
    with pytest.raises(RuntimeError):
        await notebook.ask(Wait())
    replies = await asyncio.gather(
        notebook.ask(Write(text="x")),
        notebook.ask(Wait(), timeout=20),
        notebook.ask(Write(text="y"), timeout=20),
        return_exceptions=True,
    )
    assert isinstance(replies[1], RuntimeError)
    assert [replies[0], replies[2]] == [1, 2]
    assert await notebook.ask(Read(), timeout=20) == ["x", "y"]


# What cannot be persisted


class Odd(Event, name="tests.odd"):
    value: object = None


class Persisting(Notebook, kind="persisting"):
    """Persists a good event, then the one it is given."""

    event: Event = Unhandled()

    @command_handler
    def wait(self, command: Wait) -> int:
        if command.text:
            self.persist(Written(text=command.text))
        self.persist(type(self).event)
        return 0

    @event_handler
    def odd(self, event: Odd) -> None:
        self.state.lines.append("odd")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([Written(text="x")], r"persists a list: give it the events one by one, as in self\.persist\(\*events\)"),
        (Wait(), "persists Wait, which is a command: persist an event that says what has happened"),
        ("text", "persists str, which is no Event"),
        (Written, r"persists the class Written: persist an instance, Written\(…\)"),
    ],
)
async def test_what_is_no_event_is_refused(
    monkeypatch: pytest.MonkeyPatch, system: ActorSystem, given: object, why: str
):
    monkeypatch.setattr(Persisting, "event", given)
    with pytest.raises(DefinitionError, match=why):
        await system.ref(Persisting, "a").ask(Wait())


@case("C166")
@pytest.mark.parametrize("text", ["", "a good one first"])
async def test_an_event_without_a_handler_is_refused_when_it_is_persisted_and_nothing_is_stored(
    system: ActorSystem, store: EventStore, text: str
):
    notebook = system.ref(Persisting, "a")
    with pytest.raises(DefinitionError, match=r"Persisting persists Unhandled but has no @event_handler"):
        await notebook.ask(Wait(text=text))
    assert await notebook.ask(Read()) == []
    assert await notebook.ask(Write(text="after")) == 1
    assert await texts(store, kind="persisting") == ["after"]


@case("C161")
@pytest.mark.parametrize("text", ["", "a good one first"])
async def test_an_event_that_cannot_be_written_as_json_changes_nothing_and_takes_no_version(
    system: ActorSystem, store: EventStore, text: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Persisting, "event", Odd(value=object()))
    notebook = system.ref(Persisting, "a")
    with pytest.raises(EventEncodeError):
        await notebook.ask(Wait(text=text))
    assert await notebook.ask(Read()) == []
    assert await notebook.ask(Write(text="after")) == 1
    assert await store.version("persisting-a") == 1


@case("C161")
async def test_an_event_that_cannot_be_written_is_no_failure_of_the_actor(
    system: ActorSystem, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Persisting, "event", Odd(value=object()))
    with pytest.raises(EventEncodeError):
        await system.ref(Persisting, "a").ask(Wait())
    assert system.stats().failures == {}


async def test_an_event_over_the_limit_is_refused_and_the_actor_goes_on(url: str):
    async with EventStore.open(url, max_payload_bytes=1000) as store, ActorSystem(store) as system:
        notebook = system.ref(Notebook, "a")
        with pytest.raises(PayloadTooLarge):
            await notebook.ask(Write(text="x" * 1000))
        assert await notebook.ask(Write(text="y" * 900)) == 1
        assert await texts(store) == ["y" * 900]


async def test_a_large_event_behind_a_good_one_takes_both_with_it(url: str):
    async with EventStore.open(url, max_payload_bytes=1000) as store, ActorSystem(store) as system:
        notebook = system.ref(Notebook, "a")
        with pytest.raises(PayloadTooLarge):
            await notebook.ask(WriteAll(texts=("good", "x" * 1000)))
        assert await notebook.ask(Read()) == []
        assert await store.version("Notebook-a") == 0


async def test_metadata_that_cannot_be_written_fails_the_command_alone(system: ActorSystem, store: EventStore):
    notebook = system.ref(Notebook, "a")
    value: JsonValue = "\ud800"
    with pytest.raises(EventEncodeError):
        await notebook.ask(Write(text="x"), metadata=Metadata(values={"k": value}))
    assert await notebook.ask(Write(text="y")) == 1
    assert await texts(store) == ["y"]


async def test_an_event_is_stored_as_it_was_when_it_was_persisted(system: ActorSystem, store: EventStore):
    class Listed(Event, name="tests.listed"):
        items: list[str]

    class Mutating(PersistentActor[Page]):
        @command_handler
        def wait(self, command: Wait) -> int:
            event = Listed(items=["x"])
            self.persist(event)
            event.items.append("later")
            return 0

        @event_handler
        def listed(self, event: Listed) -> None:
            self.state.lines = [*event.items]

    await system.ref(Mutating, "a").ask(Wait())
    assert [record.json() async for record in store.read("Mutating-a")] == [{"items": ["x"]}]


# Where persist may be called


async def test_persist_is_refused_outside_of_a_command_handler(system: ActorSystem):
    kept: list[Notebook] = []

    class Leaking(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            kept.append(self)
            return 0

    await system.ref(Leaking, "a").ask(Wait())
    with pytest.raises(ActorError, match="only while a command handler"):
        kept[0].persist(Written(text="x"))
    assert kept[0].state.lines == []


async def test_persist_is_refused_inside_an_event_handler(system: ActorSystem, store: EventStore):
    class Recursive(Notebook):
        @event_handler
        def written(self, event: Written) -> None:
            self.persist(event)

    with pytest.raises(ActorError, match="only while a command handler"):
        await system.ref(Recursive, "a").ask(Write(text="x"))
    assert await store.version("Recursive-a") == 0


async def test_a_plain_handler_cannot_wait_for_its_events(system: ActorSystem):
    class Impatient(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            next(iter(self.persist(Written(text="x")).__await__()))
            return 0

    with pytest.raises(ActorError, match="only an `async def` handler"):
        await system.ref(Impatient, "a").ask(Wait())


async def test_a_command_that_the_actor_does_not_know_is_refused_with_both_names(system: ActorSystem):
    with pytest.raises(DefinitionError, match="Notebook has no @command_handler for Wait"):
        await system.ref(Notebook, "a").ask(Wait())
    with pytest.raises(DefinitionError, match="Notebook has no @command_handler for Wait"):
        await system.ref(Notebook, "a").tell(Wait())


async def test_one_handler_may_serve_several_commands_and_several_events(system: ActorSystem):
    class Pair(BaseModel):
        names: list[str] = []

    class Versatile(PersistentActor[Pair]):
        @command_handler
        def any_of_them(self, command: Refuse | Break) -> None:
            self.persist(Written(text="x") if isinstance(command, Refuse) else Odd())

        @command_handler
        def read(self, command: Read) -> list[str]:
            return list(self.state.names)

        @event_handler
        def happened(self, event: Written | Odd) -> None:
            self.state.names.append(type(event).__name__)

    actor = system.ref(Versatile, "a")
    await actor.ask(Refuse())
    await actor.ask(Break())
    assert await actor.ask(Read()) == ["Written", "Odd"]

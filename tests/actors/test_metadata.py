"""Metadata goes from where a command is sent to its events, and from its handler to what that sends further."""

from __future__ import annotations

import asyncio
import json

import pytest

from actors import ActorSystem, Command, PersistentActor, command_handler, event_handler, with_metadata
from eventstore import DefinitionError, Event, EventEncodeError, EventStore, Metadata


class Noted(Event, name="metadata.noted"):
    text: str


class Marked(Event, name="metadata.marked", tags=("marked",)):
    text: str

    def event_tags(self) -> list[str]:
        return [self.text]


class Note(Command[None]):
    text: str


class Mark(Command[None]):
    text: str


class NoteThere(Command[None]):
    """Notes here, and asks another actor to note."""

    there: str
    text: str


class Notes(PersistentActor[list[str]], kind="notes"):
    systems: dict[str, ActorSystem] = {}  # noqa: RUF012

    @command_handler
    def note(self, command: Note) -> None:
        self.persist(Noted(text=command.text))

    @command_handler
    async def note_there(self, command: NoteThere) -> None:
        self.persist(Noted(text=command.text))
        await self.systems["current"].ref(Notes, command.there).ask(Note(text=command.text))

    @command_handler
    def mark(self, command: Mark) -> None:
        self.persist(Noted(text=command.text), Marked(text=command.text))

    @event_handler
    def marked(self, event: Marked) -> None:
        self.state.append(event.text)

    @event_handler
    def noted(self, event: Noted) -> None:
        self.state.append(event.text)


async def stored(store: EventStore, key: str) -> list[Metadata | None]:
    return [recorded.metadata async for recorded in store.read(f"notes-{key}")]


async def test_what_is_set_around_an_ask_is_stored_with_its_events_and_with_no_others(system: ActorSystem):
    ref = system.ref(Notes, "a")
    await ref.ask(Note(text="before"))
    with with_metadata(Metadata(user="ann", tags=("x",))):
        await ref.ask(Note(text="within"))
        await ref.ask(Note(text="more"), metadata=Metadata(correlation_id="c", tags=("y",)))
        with with_metadata(Metadata(user="bob", values={"k": 1})):
            await ref.ask(Note(text="inner"))
    await ref.ask(Note(text="after"))
    assert await stored(system.store, "a") == [
        None,
        Metadata(user="ann", tags=("x",)),
        Metadata(user="ann", correlation_id="c", tags=("x", "y")),
        Metadata(user="bob", tags=("x",), values={"k": 1}),
        None,
    ]


async def test_callers_at_the_same_time_do_not_get_each_others(system: ActorSystem):
    async def ask(user: str) -> None:
        with with_metadata(Metadata(user=user)):
            for _ in range(5):
                await system.ref(Notes, "a").ask(Note(text=user))

    await asyncio.gather(*(ask(f"user-{number}") for number in range(8)))
    async for recorded in system.store.read("notes-a"):
        assert recorded.metadata == Metadata(user=recorded.json()["text"])


async def test_a_handler_passes_it_on_to_what_it_sends_with_its_command_as_the_cause(system: ActorSystem):
    Notes.systems["current"] = system
    with with_metadata(Metadata(user="ann", traceparent="00-1-2-01")):
        await system.ref(Notes, "a").ask(NoteThere(there="b", text="1"), command_id="order-1")
    assert await stored(system.store, "a") == [Metadata(user="ann", traceparent="00-1-2-01", command_id="order-1")]
    assert await stored(system.store, "b") == [
        Metadata(user="ann", traceparent="00-1-2-01", correlation_id="order-1", causation_id="order-1")
    ]


async def test_what_ask_is_given_is_passed_on_and_tags_are_not(system: ActorSystem):
    Notes.systems["current"] = system
    given = Metadata(correlation_id="c", tags=("x",))
    await system.ref(Notes, "a").ask(NoteThere(there="b", text="1"), metadata=given)
    await system.ref(Notes, "a").ask(NoteThere(there="b", text="2"))
    assert await stored(system.store, "a") == [given, None]
    assert await stored(system.store, "b") == [Metadata(correlation_id="c"), None]


async def test_a_transaction_takes_it_too(system: ActorSystem):
    with with_metadata(Metadata(user="ann", correlation_id="c")):
        async with system.transaction() as transaction:
            await transaction.ask(system.ref(Notes, "a"), Note(text="1"))
    assert await stored(system.store, "a") == [Metadata(user="ann", correlation_id="c")]


async def test_tags_that_an_event_declares_are_stored_with_it_and_with_no_other_of_the_command(system: ActorSystem):
    ref = system.ref(Notes, "a")
    await ref.ask(Mark(text="1"))
    await ref.ask(Mark(text="2"), metadata=Metadata(user="ann", tags=("x",)), command_id="c-2")
    given = Metadata(user="ann", tags=("x",), command_id="c-2")
    assert await stored(system.store, "a") == [
        None,
        Metadata(tags=("marked", "1")),
        given,
        given.model_copy(update={"tags": ("x", "marked", "2")}),
    ]


async def test_tags_that_an_event_declares_are_stored_in_a_transaction_too(system: ActorSystem):
    async with system.transaction(metadata=Metadata(correlation_id="c", values={"big": 2**70})) as tx:
        await tx.ask(system.ref(Notes, "a"), Mark(text="1"))
    given = Metadata(correlation_id="c", values={"big": 2**70})
    assert await stored(system.store, "a") == [given, given.model_copy(update={"tags": ("marked", "1")})]


@pytest.mark.parametrize("wrong", ["", "\0"])
async def test_what_is_no_tag_refuses_the_command_and_leaves_the_actor_as_it_was(system: ActorSystem, wrong: str):
    ref = system.ref(Notes, "a")
    with pytest.raises(EventEncodeError, match=r"'metadata.marked': event_tags gives texts that are not empty"):
        await ref.ask(Mark(text=wrong))
    await ref.ask(Mark(text="1"))
    assert len(await stored(system.store, "a")) == 2


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("within", ["{}", "[{}]", '{{"a": {}}}'])
async def test_a_number_that_json_does_not_have_is_not_stored_as_none(
    system: ActorSystem, store: EventStore, number: float, within: str
):
    value = json.loads(within.format(json.dumps(number)))
    notes = system.ref(Notes, "a")
    with pytest.raises(EventEncodeError, match=f"JSON has no number {number}"):
        await notes.ask(Note(text="1"), metadata=Metadata(values={"ok": 1.5, "measured": value}))
    assert [recorded async for recorded in store.read_all()] == []


def test_tags_of_a_class_are_several_texts_and_its_subclasses_have_them_too():
    class Paid(Marked, name="metadata.paid", tags=("money",)):
        pass

    assert Paid.__tags__ == ("marked", "money")
    for wrong in ("money", ("",), ("a", 1)):
        with pytest.raises(DefinitionError, match="tags are several texts that are not empty"):
            type("Wrong", (Event,), {"__module__": __name__}, tags=wrong)

"""The test kit: what a scenario answers, and every breach of the rules of recovery that it finds."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, Field

from actors import (
    ActorError,
    Command,
    CommandRejected,
    DefinitionError,
    PersistentActor,
    RecoveryError,
    command_handler,
    event_handler,
)
from actors.testing import KitFailure, Scenario
from eventstore import Event, EventEncodeError
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
)


async def test_a_command_has_a_reply_events_and_a_state():
    outcome = await Scenario(Notebook).given(Written(text="1")).when(Write(text="2"))
    assert outcome.reply == 2
    assert outcome.rejection is None
    assert outcome.events == (Written(text="2"),)
    assert outcome.state == Page(lines=["1", "2"])


async def test_a_command_may_persist_nothing_or_much():
    scenario = Scenario(Notebook)
    assert (await scenario.when(WriteAll(texts=()))).events == ()
    assert (await scenario.when(WriteAll(texts=("1", "2")))).events == (Written(text="1"), Written(text="2"))


async def test_commands_go_on_from_one_another():
    scenario = Scenario(Notebook)
    first = await scenario.when(Write(text="1"))
    second = await scenario.when(Write(text="2"))
    assert (first.reply, second.reply) == (1, 2)
    assert second.events == (Written(text="2"),)
    assert first.state == Page(lines=["1"])
    assert scenario.state == Page(lines=["1", "2"])


async def test_events_may_be_given_between_commands():
    scenario = Scenario(Notebook).given(Written(text="1"))
    await scenario.when(Write(text="2"))
    assert (await scenario.given(Written(text="3")).when(Read())).reply == ["1", "2", "3"]


async def test_an_async_handler_may_wait_for_its_events():
    class Stepping(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await self.persist(Written(text="1"))
            self.persist(Written(text="2"))
            await self.persist()
            return self.version

    outcome = await Scenario(Stepping).when(Wait())
    assert (outcome.reply, outcome.events) == (2, (Written(text="1"), Written(text="2")))
    assert (await Scenario(Notebook).when(WriteSlowly(text="x"))).reply == 1


async def test_a_refusal_is_the_outcomes_rejection():
    outcome = await Scenario(Notebook).given(Written(text="1")).when(Refuse(reason="too late"))
    assert isinstance(outcome.rejection, CommandRejected)
    assert str(outcome.rejection) == "too late"
    assert (outcome.events, outcome.state) == ((), Page(lines=["1"]))


@pytest.mark.parametrize(
    "command", [WriteAndRefuse(text="x"), WriteAndBreak(text="x"), Break()], ids=lambda c: type(c).__name__
)
async def test_whatever_a_handler_raises_is_the_rejection_and_drops_what_was_persisted(command: Command[None]):
    scenario = Scenario(Notebook).given(Written(text="1"))
    outcome = await scenario.when(command)
    assert isinstance(outcome.rejection, (CommandRejected, ValueError))
    assert (outcome.events, outcome.state) == ((), Page(lines=["1"]))
    assert (await scenario.when(Write(text="2"))).reply == 2


async def test_the_reply_of_a_command_that_failed_raises_what_it_failed_with():
    outcome = await Scenario(Notebook).when(Break())
    with pytest.raises(ValueError, match="broken"):
        _ = outcome.reply


async def test_events_that_were_durable_before_a_handler_raised_stay():
    class Halfway(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await self.persist(Written(text="kept"))
            self.persist(Written(text="dropped"))
            raise CommandRejected("enough")

    outcome = await Scenario(Halfway).when(Wait())
    assert isinstance(outcome.rejection, CommandRejected)
    assert (outcome.events, outcome.state.lines) == ((Written(text="kept"),), ["kept"])


async def test_an_event_handler_that_raises_fails_the_command_even_if_that_is_swallowed():
    class Swallowing(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            try:
                self.persist(Written(text="x"), Torn())
            except ValueError:
                return 1
            return 0

    outcome = await Scenario(Swallowing).when(Wait())
    assert str(outcome.rejection) == "torn"
    assert (outcome.events, outcome.state) == ((), Page())


async def test_an_event_that_cannot_be_persisted_is_the_rejection():
    class Odd(Event, name="tests.kit-odd"):
        value: object

    class Persisting(Notebook):
        event: ClassVar[Event] = Unhandled()

        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"), type(self).event)
            return 0

        @event_handler
        def odd(self, event: Odd) -> None: ...

    assert isinstance((await Scenario(Persisting).when(Wait())).rejection, DefinitionError)
    Persisting.event = Odd(value=object())
    outcome = await Scenario(Persisting).when(Wait())
    assert isinstance(outcome.rejection, EventEncodeError)
    assert outcome.events == ()


async def test_a_plain_handler_cannot_wait_for_its_events():
    class Impatient(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            next(iter(self.persist(Written(text="x")).__await__()))
            return 0

    assert isinstance((await Scenario(Impatient).when(Wait())).rejection, ActorError)


async def test_an_actor_knows_its_key_in_a_scenario_too():
    class Keyed(Notebook):
        @command_handler
        def read(self, command: Read) -> list[str]:
            return [self.key, self.persistence_id, str(self.version)]

    scenario = Scenario(Keyed, "alice").given(Written(text="1"))
    assert (await scenario.when(Read())).reply == ["alice", "Keyed-alice", "1"]


async def test_the_hook_is_called_once_before_the_first_command():
    called: list[int] = []

    class Hooked(Notebook):
        async def recovered(self) -> None:
            called.append(self.version)

    scenario = Scenario(Hooked).given(Written(text="1"))
    await scenario.when(Read())
    await scenario.when(Read())
    assert called == [1]


async def test_the_state_before_the_first_event_is_the_initial_one():
    class Prepared(Notebook):
        def initial_state(self) -> Page:
            return Page(lines=["prepared"])

    assert (await Scenario(Prepared).when(Read())).reply == ["prepared"]


async def test_a_command_without_a_handler_is_a_mistake_in_the_test():
    with pytest.raises(DefinitionError, match="Notebook has no @command_handler for Wait"):
        await Scenario(Notebook).when(Wait())


async def test_a_given_event_that_does_not_fit_is_what_a_recovery_would_say():
    with pytest.raises(DefinitionError, match="Notebook has no @event_handler for Unhandled"):
        Scenario(Notebook).given(Unhandled())
    with pytest.raises(RecoveryError, match=r"'tests\.torn' raised ValueError at version 1"):
        Scenario(Notebook).given(Torn())


# Breaches


def failing(handler: str, message: str) -> Any:
    return pytest.raises(KitFailure, match=rf"{handler}: .*{message}")


def test_a_failure_is_an_assertion_error_and_one_of_ours():
    failure = KitFailure("Account.deposit", "what happened")
    assert isinstance(failure, AssertionError)
    assert isinstance(failure, ActorError)
    assert (failure.handler, str(failure)) == ("Account.deposit", "Account.deposit: what happened")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_command_that_changes_the_state_without_an_event(is_async: bool, is_refused: bool):
    def scribble(actor: Notebook) -> int:
        actor.state.lines.append("scribble")
        if is_refused:
            raise CommandRejected("no")
        return 0

    class Scribbling(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            return scribble(self)

    class ScribblingAsync(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            return scribble(self)

    name = "ScribblingAsync" if is_async else "Scribbling"
    with failing(rf"\S+\.{name}\.wait", "changed the state without an event") as raised:
        await Scenario(ScribblingAsync if is_async else Scribbling).when(Wait())
    assert raised.value.handler.endswith(f"{name}.wait")


async def test_a_command_that_changes_the_state_beside_its_event():
    class Scribbling(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            self.state.lines.append("scribble")
            return 0

    with failing(r"\S+\.Scribbling\.wait", "all events give"):
        await Scenario(Scribbling).when(Wait())


async def test_a_command_that_replaces_the_state():
    class Replacing(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            self.state = Page(lines=["new"])
            return 0

    with failing(r"\S+\.Replacing\.wait", "changed the state without an event"):
        await Scenario(Replacing).when(Wait())


async def test_a_hook_that_changes_the_state():
    class Hooked(Notebook):
        def recovered(self) -> None:
            self.state.lines.append("recovered")

    with failing(r"\S+\.Hooked\.recovered", "changed the state without an event"):
        await Scenario(Hooked).when(Read())


async def test_an_event_handler_that_uses_what_is_not_stored():
    class Impure(Notebook):
        counter = 0

        @event_handler
        def written(self, event: Written) -> None:
            type(self).counter += 1
            self.state.lines.append(f"{event.text} {self.counter}")

    with failing(r"\S+\.Impure\.write", "all events give"):
        await Scenario(Impure).when(Write(text="x"))


async def test_an_event_handler_that_uses_a_field_of_the_actor():
    class Remembering(PersistentActor[Page]):
        last = ""

        @command_handler
        def write(self, command: Write) -> int:
            self.last = command.text
            self.persist(Written(text="x"))
            return 0

        @event_handler
        def written(self, event: Written) -> None:
            self.state.lines.append(self.last)

    with failing(r"\S+\.Remembering\.write", "all events give"):
        await Scenario(Remembering).when(Write(text="x"))


async def test_a_state_with_a_part_that_no_snapshot_keeps():
    @dataclass
    class Hidden:
        lines: list[str] = field(default_factory=list[str])

        def __post_init__(self) -> None:
            self.hidden = 0

    class Hiding(PersistentActor[Hidden]):
        @command_handler
        def write(self, command: Write) -> int:
            self.persist(Written(text=command.text))
            return 0

        @event_handler
        def written(self, event: Written) -> None:
            self.state.hidden += 1
            self.state.lines.append(str(self.state.hidden))

    scenario = Scenario(Hiding)
    await scenario.when(Write(text="x"))
    with failing(r"\S+\.Hiding\.write", "a snapshot taken before it and the events after that give"):
        await scenario.when(Write(text="y"))


async def test_a_state_that_holds_an_instance_of_a_subclass():
    class Ink(BaseModel):
        colour: str = "black"

    class Scented(Ink):
        scent: str = "rose"

    class Pot(BaseModel):
        ink: Ink = Ink()

    class Filling(PersistentActor[Pot]):
        @command_handler
        def write(self, command: Write) -> int:
            self.persist(Written(text=command.text))
            return 0

        @event_handler
        def written(self, event: Written) -> None:
            self.state.ink = Scented()

    with failing(r"\S+\.Filling\.write", "ink, a .*Scented, would be read as a .*Ink"):
        await Scenario(Filling).when(Write(text="x"))


async def test_a_state_whose_snapshot_is_read_as_another():
    class Doubling(BaseModel):
        amount: int = 1

        def model_post_init(self, _: object) -> None:
            self.amount *= 2

    class Doubled(PersistentActor[Doubling]):
        @command_handler
        def write(self, command: Write) -> int:
            return self.state.amount

    with failing(r"\S+\.Doubled", "a snapshot of the state .*2.* is read as .*4"):
        await Scenario(Doubled).when(Write(text="x"))


async def test_a_state_that_cannot_be_written():
    class Loose(BaseModel):
        value: object = None

    class Storing(PersistentActor[Loose]):
        @command_handler
        def write(self, command: Write) -> int:
            self.persist(Written(text=command.text))
            return 0

        @event_handler
        def written(self, event: Written) -> None:
            self.state.value = object()

    with failing(r"\S+\.Storing\.write", "no snapshot can be made of the state and used"):
        await Scenario(Storing).when(Write(text="x"))


async def test_a_state_that_cannot_be_read_again():
    class Ratio(BaseModel):
        value: float = Field(default=0.0, le=1)

    class Dividing(PersistentActor[Ratio]):
        @command_handler
        def write(self, command: Write) -> int:
            self.persist(Written(text=command.text))
            return 0

        @event_handler
        def written(self, event: Written) -> None:
            self.state.value = 2.0

    with failing(r"\S+\.Dividing\.write", "no snapshot can be made of the state and used"):
        await Scenario(Dividing).when(Write(text="x"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (lambda: str(random.random()), r"written: .* calls .*random\.random"),
        (lambda: str(datetime.now(UTC)), r"written: .* calls .*datetime\.now"),
        (lambda: str(id(object())), r": two replays of the same events give"),
    ],
)
def test_replays_that_differ_are_found(source: Any, found: str):
    counter = iter(range(1000))

    class Random(Notebook):
        @event_handler
        def written(self, event: Written) -> None:
            self.state.lines.append(f"{source()} {next(counter)}")

    scenario = Scenario(Random).given(Written(text="x"))
    with pytest.raises(KitFailure, match=r"Random" + (found if found[0] == ":" else rf"\.{found}")):
        scenario.check_determinism()


def test_replays_that_agree_pass():
    Scenario(Notebook).given(Written(text="1"), Written(text="2")).check_determinism()


async def test_a_set_is_the_same_in_whatever_order_it_is_written():
    class Names(BaseModel):
        names: set[str] = set()
        by_name: dict[str, int] = {}

    class Collecting(PersistentActor[Names]):
        @command_handler
        def write_all(self, command: WriteAll) -> int:
            self.persist(*(Written(text=text) for text in command.texts))
            return len(self.state.names)

        @command_handler
        def read(self, command: Read) -> list[str]:
            return sorted(self.state.names)

        @event_handler
        def written(self, event: Written) -> None:
            # Removed and added again: the order inside a set depends on its past.
            self.state.names.add(event.text)
            self.state.names.discard(event.text)
            self.state.names.add(event.text)
            self.state.by_name = {event.text: 1, **self.state.by_name}

    scenario = Scenario(Collecting)
    assert (await scenario.when(WriteAll(texts=tuple(str(number) for number in range(0, 4000, 8))))).reply == 500
    assert len((await scenario.when(Read())).reply) == 500
    scenario.check_determinism()


async def test_a_reply_is_a_copy_as_it_is_in_a_system():
    class Lending(Notebook):
        @command_handler
        def read(self, command: Read) -> list[str]:
            return self.state.lines

    scenario = Scenario(Lending).given(Written(text="1"))
    lines = (await scenario.when(Read())).reply
    lines.append("not a line")
    assert (await scenario.when(Read())).reply == ["1"]


async def test_an_outcome_shows_what_it_is_about():
    outcome = await Scenario(Notebook).when(Write(text="x"))
    assert repr(outcome) == "Outcome(reply=1, events=(Written(text='x'),), state=Page(lines=['x']))"
    assert "rejection=ValueError('broken')" in repr(await Scenario(Notebook).when(Break()))

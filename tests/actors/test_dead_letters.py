"""Dead letters: what becomes of a command that was told, when nobody waits for its reply."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from datetime import UTC, datetime
from typing import Any

import pytest

from actors import ActorStopped, ActorSystem, DeadLetter, DefinitionError, Restart, Resume, Stop, command_handler
from eventstore import BackendUnavailable
from tests.actors.faults import Faults, refused, request_lost
from tests.actors.notebook import Break, Notebook, Read, Refuse, Wait, Write, WriteAndBreak, Written, until


def errors(system: ActorSystem) -> list[tuple[str, str]]:
    return [(type(letter.command).__name__, letter.error) for letter in system.dead_letters()]


class Stopping(Notebook):
    supervision = Stop()


# What becomes one


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Break(), "ValueError: broken"),
        (Refuse(reason="too late"), "CommandRejected: too late"),
        (WriteAndBreak(text="x"), "ValueError: broken after x"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_told_command_that_fails_is_a_dead_letter(system: ActorSystem, command: Any, error: str):
    before = datetime.now(UTC)
    await system.ref(Notebook, "a").tell(command)
    await until(lambda: bool(system.dead_letters()))
    (letter,) = system.dead_letters()
    assert letter == DeadLetter("Notebook-a", command, error, error.partition(":")[0], letter.at)
    assert before <= letter.at <= datetime.now(UTC)


async def test_a_told_command_that_succeeds_is_none_and_neither_is_an_ask_that_fails(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    await notebook.tell(Write(text="1"))
    for command in (Break(), Refuse(), WriteAndBreak(text="x")):
        with pytest.raises(Exception, match=r"broken|no"):
            await notebook.ask(command)
    assert await notebook.ask(Read()) == ["1"]
    assert system.dead_letters() == []


async def test_what_was_told_to_an_actor_that_stops_is_dead(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Stopping, "a")
    await notebook.ask(Read())
    faults.hold()
    for command in (Write(text="stored"), WriteAndBreak(text="x"), Write(text="behind")):
        await notebook.tell(command)
    faults.release()
    await until(lambda: len(faulty.dead_letters()) == 2)
    (first, by), (second, why) = errors(faulty)
    assert (first, by, second) == ("WriteAndBreak", "ValueError: broken after x", "Write")
    assert why.startswith("ActorStopped: actor 'Stopping-a' was stopped after ValueError: broken after x")


async def test_a_tell_that_is_not_accepted_is_the_tellers_to_know_and_no_dead_letter(system: ActorSystem):
    notebook = system.ref(Stopping, "a")
    await notebook.tell(WriteAndBreak(text="x"))
    await until(lambda: system.stats().stopped == 1)
    with pytest.raises(ActorStopped):
        await notebook.tell(Write(text="y"))
    assert errors(system) == [("WriteAndBreak", "ValueError: broken after x")]


async def test_what_waits_for_a_recovery_that_fails_is_dead(system: ActorSystem):
    class Failing(Notebook):
        supervision = Resume()

        def recovered(self) -> None:
            raise LookupError("nothing there")

    for text in "12":
        await system.ref(Failing, "a").tell(Write(text=text))
    await until(lambda: len(system.dead_letters()) == 2)
    error = "RecoveryError: actor 'Failing-a' cannot recover: LookupError: nothing there"
    assert errors(system) == [("Write", error), ("Write", error)]


async def test_what_the_database_refused_is_dead(faults: Faults, faulty: ActorSystem):
    faults.next.append(refused(BackendUnavailable("gone")))
    await faulty.ref(Notebook, "a").tell(Write(text="x"))
    await until(lambda: bool(faulty.dead_letters()))
    assert errors(faulty) == [("Write", "BackendUnavailable: gone")]


async def test_what_may_or_may_not_be_stored_is_dead_and_says_so(
    faults: Faults, faulty: ActorSystem, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(faulty.store.commits, "_resolve_within", 0.05)
    faults.always = request_lost
    await faulty.ref(Notebook, "a").tell(Write(text="x"))
    await until(lambda: bool(faulty.dead_letters()))
    assert [letter.error_type for letter in faulty.dead_letters()] == ["OutcomeUnknown"]


async def test_what_is_not_done_when_the_system_closes_is_dead_and_can_be_read_afterwards(url: str):
    class Hanging(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await asyncio.sleep(30)
            return 0

    async with ActorSystem(url, shutdown_timeout=0.05) as system:
        for command in (Wait(), Write(text="behind")):
            await system.ref(Hanging, "a").tell(command)
    assert [(type(letter.command), letter.error_type) for letter in system.dead_letters()] == [
        (Wait, "ActorStopped"),
        (Write, "ActorStopped"),
    ]


# What is kept of it


async def test_the_newest_are_kept_and_all_are_counted(url: str):
    async with ActorSystem(url, dead_letters=3) as system:
        for number in range(10):
            await system.ref(Notebook, "a").tell(Refuse(reason=str(number)))
        await system.ref(Notebook, "a").ask(Read())
        assert [letter.error for letter in system.dead_letters()] == [f"CommandRejected: {n}" for n in (7, 8, 9)]
        assert (system.stats().dead_letters, system.stats().dead_letters_dropped) == (10, 7)


async def test_none_are_kept_if_none_are_wanted(url: str):
    told: list[DeadLetter] = []
    async with ActorSystem(url, dead_letters=0, on_dead_letter=told.append) as system:
        await system.ref(Notebook, "a").tell(Break())
        await system.ref(Notebook, "a").ask(Read())
        assert system.dead_letters() == []
        assert (system.stats().dead_letters, len(told)) == (1, 1)


async def test_the_error_is_kept_as_text_so_that_nothing_else_stays_alive(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    class Load:
        """Something large in the hands of the handler."""

    alive: list[weakref.ref[Load]] = []

    class Loaded(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

        @command_handler
        def wait(self, command: Wait) -> int:
            load = Load()
            alive.append(weakref.ref(load))
            self.persist(Written(text="x"))
            raise ValueError("x" * 10_000)

    # What is captured of the log holds on to the errors in it.
    caplog.set_level(logging.CRITICAL)
    await system.ref(Loaded, "a").tell(Wait())
    await system.ref(Loaded, "a").ask(Read())
    (letter,) = system.dead_letters()
    assert len(letter.error) < 600
    assert len(system.stats().failures["Loaded-a"][1]) < 600
    gc.collect()
    assert [reference() for reference in alive] == [None]


# Being told


async def test_the_callback_is_told_of_each(url: str):
    told: list[DeadLetter] = []
    async with ActorSystem(url, on_dead_letter=told.append) as system:
        for reason in "ab":
            await system.ref(Notebook, "a").tell(Refuse(reason=reason))
        await system.ref(Notebook, "a").ask(Read())
        assert told == system.dead_letters()
        assert [letter.error for letter in told] == ["CommandRejected: a", "CommandRejected: b"]


async def test_a_callback_that_raises_is_logged_and_changes_nothing(url: str, caplog: pytest.LogCaptureFixture):
    def fail(_: DeadLetter) -> None:
        raise OSError("no line")

    async with ActorSystem(url, on_dead_letter=fail) as system:
        notebook = system.ref(Notebook, "a")
        for _ in range(2):
            await notebook.tell(Break())
        await notebook.tell(Write(text="1"))
        assert await notebook.ask(Read()) == ["1"]
        assert len(system.dead_letters()) == 2
        assert system.stats().failures == {}
    assert "on_dead_letter failed for a Break to 'Notebook-a'" in caplog.text
    assert "OSError: no line" in caplog.text


async def test_a_callback_may_wake_the_actor_that_stopped_even_while_the_system_closes(url: str):
    class Hanging(Stopping):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await asyncio.sleep(30)
            return 0

    async with ActorSystem(
        url, shutdown_timeout=0.05, on_dead_letter=lambda letter: system.ref(Hanging, letter.stream_id[-1]).restart()
    ) as system:
        for key in "abc":
            await system.ref(Hanging, key).tell(Wait())
            await system.ref(Hanging, key).tell(Write(text="behind"))
    assert system.stats().dead_letters == 6


def _later(_: DeadLetter) -> None: ...


async def _async(_: DeadLetter) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dead_letters": -1}, "dead_letters is how many are kept, 0 or more, not -1"),
        ({"dead_letters": "x"}, "dead_letters is how many are kept, 0 or more, not 'x'"),
        ({"on_dead_letter": 5}, "on_dead_letter is a function, not 5"),
        ({"on_dead_letter": _async}, "on_dead_letter is a plain function"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(DefinitionError, match=message):
        ActorSystem("memory://", **options)
    ActorSystem("memory://", dead_letters=0, on_dead_letter=_later)

"""What event handlers must not call, and how they are caught at it."""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from time import time as time_by_another_name
from typing import Any

import pytest
import uuid_utils
from pydantic import BaseModel, Field

from actors import ActorSystem, Command, PersistentActor, RecoveryError, command_handler, event_handler
from actors.replaying.determinism import breaches_noted
from actors.testing import KitFailure, NotDeterministic, Scenario, deterministic
from eventstore import Event


class Did(Event, name="determinism.did"):
    what: str


class Do(Command[int]):
    what: str


class Count(BaseModel):
    count: int = 0


class Entry(BaseModel):
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


FORBIDDEN: dict[str, tuple[Callable[[], Any], str]] = {
    "time": (time.time, "time.time"),
    "time by another name": (time_by_another_name, "time.time"),
    "monotonic": (time.monotonic, "time.monotonic"),
    "sleep": (lambda: time.sleep(0), "time.sleep"),
    "now": (lambda: datetime.now(UTC), "datetime.datetime.now"),
    "today": (date.today, "datetime.date.today"),
    "default": (Entry, "datetime.datetime.now"),
    "random": (random.random, "random.random"),
    "choice": (lambda: random.choice("ab"), "random.getrandbits"),
    "unseeded": (random.Random, "random.Random"),
    "system random": (lambda: random.SystemRandom().getrandbits(8), "random.Random"),
    "secrets": (secrets.token_hex, "posix.urandom"),
    "urandom": (lambda: os.urandom(1), "posix.urandom"),
    "uuid4": (uuid.uuid4, "posix.urandom"),
    "uuid7": (uuid_utils.uuid7, "uuid7"),
    "open": (lambda: open(os.devnull).close(), "io.open"),
    "path": (lambda: Path(os.devnull).exists(), "posix.stat"),
    "socket": (lambda: socket.socket().close(), "socket.socket"),
    "resolve": (lambda: socket.getaddrinfo("127.0.0.1", 1), "_socket.getaddrinfo"),
    "process": (lambda: subprocess.run(["true"], check=True), "posix.pipe"),
    "print": (lambda: print(end=""), "builtins.print"),
    "stream": (lambda: sys.stdout.write(""), "write"),
}

ALLOWED: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "seeded": lambda: random.Random(5).random(),
    "derived id": lambda: uuid.uuid5(uuid.NAMESPACE_DNS, "x"),
    "parsed time": lambda: datetime.fromisoformat("2026-01-31T12:00:00+00:00").astimezone(UTC),
    "paths": lambda: Path("a") / os.fspath("b"),
    "log": lambda: logging.getLogger(__name__).warning("a line"),
    "import": lambda: __import__("wave"),
}


class Doer(PersistentActor[Count]):
    @command_handler
    def do(self, command: Do) -> int:
        # What a command handler calls is its own affair.
        time.time()
        self.persist(Did(what=command.what))
        return self.state.count

    @event_handler
    def did(self, event: Did) -> None:
        self.state.count += 1
        if event.what in FORBIDDEN:
            FORBIDDEN[event.what][0]()
        elif event.what == "swallowed":
            try:
                time.time()
            except NotDeterministic:
                pass
        else:
            ALLOWED[event.what]()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_not_the_handler_s_to_call_is_named(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = Scenario(Doer)
    with breaches_noted(Doer) as breaches:
        scenario.given(Did(what="nothing"), Did(what=what), Did(what=what))
    first = breaches[0]
    assert (first.handler, first.event_type, first.version) == ("Doer.did", "determinism.did", 2)
    assert first.call.endswith(FORBIDDEN[what][1])
    assert len({breach.call for breach in breaches}) == len(breaches)


@pytest.mark.parametrize("what", ALLOWED)
def test_what_depends_on_nothing_is_let_be(what: str) -> None:
    sys.modules.pop("wave", None)
    with deterministic(Doer):
        assert Scenario(Doer).given(Did(what=what)).state.count == 1


def test_the_call_is_not_done_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Writer(PersistentActor[Count]):
        @event_handler
        def did(self, event: Did) -> None:
            made.write_text(event.what)

    with (
        pytest.raises(NotDeterministic, match="let the command handler call it") as caught,
        deterministic(Writer),
        pytest.raises(RecoveryError, match=r"its handler for 'determinism\.did' raised NotDeterministic"),
    ):
        Scenario(Writer).given(Did(what="x"))
    # Python 3.13 has the module in parts, and goes one step more.
    assert re.fullmatch(
        r"pathlib\S*\.Path\.write_text -> .*pathlib\S*\.Path\.open -> io\.open", caught.value.breach.call
    )
    assert not made.exists()


def test_one_that_is_swallowed_is_raised_at_the_end() -> None:
    scenario = Scenario(Doer)
    with pytest.raises(NotDeterministic) as caught, deterministic(Doer):
        scenario.given(Did(what="swallowed"))
    assert caught.value.breach.call == "time.time"


async def test_a_live_actor_is_guarded_and_its_command_fails() -> None:
    async with ActorSystem("memory://") as system:
        with pytest.raises(NotDeterministic), deterministic(Doer):
            assert await system.ref(Doer, "a").ask(Do(what="nothing")) == 1
            await system.ref(Doer, "a").ask(Do(what="uuid4"))
        assert await system.ref(Doer, "a").ask(Do(what="nothing")) == 2


def test_another_class_is_not_guarded() -> None:
    class Other(PersistentActor[Count]):
        @event_handler
        def did(self, event: Did) -> None:
            time.time()

    with deterministic(Doer):
        Scenario(Other).given(Did(what="x"))


def test_a_handler_that_wraps_another_is_guarded_too() -> None:
    def wrapping(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapper(*arguments: Any) -> None:
            function(*arguments)

        return wrapper

    class Wrapped(PersistentActor[Count]):
        @event_handler
        @wrapping
        def did(self, event: Did) -> None:
            time.time()

    with breaches_noted(Wrapped) as breaches:
        Scenario(Wrapped).given(Did(what="x"))
    (breach,) = breaches
    assert breach.handler.endswith("Wrapped.did")
    assert (breach.event_type, breach.version) == ("determinism.did", 1)
    assert breach.call.endswith("time.time")


def test_threads_guard_each_for_themselves() -> None:
    inside, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def guarded() -> None:
        with breaches_noted(Doer) as breaches:
            inside.set()
            assert done.wait(30)
            Scenario(Doer).given(Did(what="now"))
        found.append(list(breaches))

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        assert inside.wait(30)
        with breaches_noted(Doer) as breaches:
            Scenario(Doer).given(Did(what="random"))
        # Outside of the block, in this thread, nothing is watched while it is in that one.
        Scenario(Doer).given(Did(what="time"))
    finally:
        done.set()
        thread.join(30)
    assert [breach.call for breach in breaches] == ["random.random"]
    assert [[breach.call.rpartition(" -> ")[2] for breach in each] for each in found] == [["datetime.datetime.now"]]


def test_what_was_there_before_is_put_back() -> None:
    seen: list[str] = []

    def before(frame: Any, event: str, argument: Any) -> None:
        seen.append(event)

    clock = time.time
    sys.setprofile(before)
    try:
        with pytest.raises(NotDeterministic), deterministic(Doer), pytest.raises(RecoveryError):
            Scenario(Doer).given(Did(what="time"))
        assert sys.getprofile() is before
    finally:
        sys.setprofile(None)
    assert time.time is clock


def test_the_kit_s_check_names_the_handler() -> None:
    # Two replays in one year agree, and only the call gives it away.
    class Yearly(PersistentActor[Count]):
        @event_handler
        def did(self, event: Did) -> None:
            self.state.count = datetime.now(UTC).year

    scenario = Scenario(Yearly).given(Did(what="x"))
    with pytest.raises(KitFailure, match=r"Yearly\.did.*calls datetime\.datetime\.now") as caught:
        scenario.check_determinism()
    assert caught.value.handler.endswith("Yearly.did")

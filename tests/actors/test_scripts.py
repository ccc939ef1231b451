"""Random scripts of commands, other writers, passivations, restarts, faults: no reply contradicts the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import ActorSystem, Command, CommandRejected, PersistentActor, Restart, SnapshotPolicy, fold
from actors import command_handler as on_command
from actors import event_handler as on_event
from eventstore import BackendUnavailable, ConcurrencyError, EventStore
from tests.actors.faults import Fault, Faults, answer_lost, refused, request_lost
from tests.actors.journals import new_journal
from tests.actors.notebook import Page, Written


class Script(Command[list[str]]):
    """Answered with all lines, as they are once the command is done."""

    lines: tuple[str, ...] = ()
    ends: str = "well"


class Plainly(Script):
    """Handled by a plain handler: all lines in one persist."""


class Slowly(Script):
    """Handled by an `async def` handler: each line is durable before the next; the last one is left to the reply."""


class Scripted(PersistentActor[Page]):
    supervision = Restart(first_pause_seconds=0.0)
    snapshot_policy = SnapshotPolicy(every=3, on_passivation=True)

    @on_command
    def plainly(self, command: Plainly) -> list[str]:
        self._end(command.ends, "refused at once")
        if command.lines:
            self.persist(*(Written(text=line) for line in command.lines))
        self._end(command.ends, "broken", "refused")
        return list(self.state.lines)

    @on_command
    async def slowly(self, command: Slowly) -> list[str]:
        self._end(command.ends, "refused at once")
        for line in command.lines[:-1]:
            await self.persist(Written(text=line))
        for line in command.lines[-1:]:
            self.persist(Written(text=line))
        self._end(command.ends, "broken", "refused")
        return list(self.state.lines)

    @on_event
    def written(self, event: Written) -> None:
        self.state.lines.append(event.text)

    def _end(self, ends: str, *here: str) -> None:
        if ends in here:
            raise ValueError(ends) if ends == "broken" else CommandRejected(ends)


class Send(NamedTuple):
    """Commands sent at once to one actor; with `others`, another writer is at work meanwhile."""

    key: str
    commands: tuple[tuple[type[Script], int, str], ...]
    others: int


class Overtake(NamedTuple):
    key: str
    count: int


class Restarted(NamedTuple):
    pass


class Fail(NamedTuple):
    """Something goes wrong with the next append. Only where there is a fault injector."""

    fault: str


FAULTS: dict[str, Fault] = {
    "the answer is lost": answer_lost,
    "the request is lost": request_lost,
    "refused": refused(BackendUnavailable("gone")),
}

KEYS = st.sampled_from("ab")
COMMANDS = st.tuples(
    st.sampled_from([Plainly, Plainly, Slowly]),
    st.integers(0, 3),
    st.sampled_from(["well", "well", "well", "refused at once", "refused", "broken"]),
)
STEPS = st.one_of(
    st.builds(Send, KEYS, st.lists(COMMANDS, min_size=1, max_size=6).map(tuple), st.integers(0, 2)),
    st.builds(Send, KEYS, st.lists(COMMANDS, min_size=1, max_size=6).map(tuple), st.just(0)),
    st.builds(Overtake, KEYS, st.integers(1, 2)),
    st.builds(Restarted),
    st.builds(Fail, st.sampled_from(sorted(FAULTS))),
)
SCRIPTS = st.lists(STEPS, min_size=1, max_size=12)


@dataclass
class Model:
    """What is known about one actor: which lines are in its journal, or not, and how long it was at least."""

    stored: list[tuple[str, ...]] = field(default_factory=list)
    batches: list[tuple[str, ...]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    undecided: list[tuple[str, ...]] = field(default_factory=list)
    replies: list[list[str]] = field(default_factory=list)

    def note(self, command: Script, outcome: Any) -> None:
        lines = command.lines
        durable = lines[:-1] if isinstance(command, Slowly) else ()
        match outcome:
            case list():
                self.stored.append(lines)
                self.replies.append(outcome)
                if lines and isinstance(command, Plainly):
                    self.batches.append(lines)
                assert outcome[len(outcome) - len(lines) :] == list(lines), "a reply shows the command's own events"
            case CommandRejected() | ValueError() if command.ends == "refused at once":
                self.absent.extend(lines)
            case CommandRejected() | ValueError():
                assert command.ends != "well"
                self.stored.extend((line,) for line in durable)
                self.absent.extend(lines[len(durable) :])
            case ConcurrencyError() | BackendUnavailable():
                # Not stored, but for what an async handler had made durable before.
                self.undecided.extend((line,) for line in durable)
                self.absent.extend(lines[len(durable) :])
            case _:
                raise AssertionError(f"an outcome that no script can have: {outcome!r}")

    def check(self, journal: list[str]) -> None:
        assert len(set(journal)) == len(journal), "nothing is stored twice"
        for lines in self.stored:
            if lines:
                assert [line for line in journal if line in lines] == list(lines), "all is stored, in its order"
        for lines in self.batches:
            start = journal.index(lines[0])
            assert journal[start : start + len(lines)] == list(lines), "one persist is stored as one"
        assert not set(self.absent) & set(journal), "what failed is not stored"
        for reply in self.replies:
            assert reply == journal[: len(reply)], "a reply shows what the journal held"
        known = {line for lines in (*self.stored, *self.undecided) for line in lines}
        assert set(journal) <= known, "nothing is stored that nobody sent"


class World:
    """The journal, the system on it, and the other writer."""

    def __init__(self, url: str, faults: Faults | None) -> None:
        self._url = url
        self._faults = faults
        self._stack = contextlib.AsyncExitStack()
        self._numbers = count()
        self.models = {"a": Model(), "b": Model()}
        self.store: EventStore
        self.system: ActorSystem

    async def start(self) -> None:
        self.store = EventStore.open(self._url) if self._faults is None else self._faults.store()
        await self._stack.enter_async_context(self.store)
        # One live actor at most: talking to the other one passivates it.
        self.system = await self._stack.enter_async_context(ActorSystem(self.store, max_live=1, shutdown_timeout=10))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def play(self, step: Send | Overtake | Restarted | Fail) -> None:
        match step:
            case Send():
                await asyncio.gather(self._send(step), self._overtake(step.key, step.others))
            case Overtake():
                await self._overtake(step.key, step.count)
            case Restarted():
                await self.stop()
                await self.start()
            case Fail() if self._faults is not None:
                self._faults.next.append(FAULTS[step.fault])
            case Fail():
                pass

    async def _send(self, step: Send) -> None:
        model, actor = self.models[step.key], self.system.ref(Scripted, step.key)
        commands = [cls(lines=self._lines(number), ends=ends) for cls, number, ends in step.commands]
        before = len(model.replies)
        longest = max((len(reply) for reply in model.replies), default=0)
        outcomes = await asyncio.gather(*(actor.ask(command) for command in commands), return_exceptions=True)
        for command, outcome in zip(commands, outcomes, strict=True):
            model.note(command, outcome)
        lengths = [longest, *(len(reply) for reply in model.replies[before:])]
        assert lengths == sorted(lengths), "no reply goes back behind an earlier one"

    async def _overtake(self, key: str, number: int) -> None:
        for _ in range(number):
            lines = self._lines(1)
            events = [Written(text=line) for line in lines]
            if self._faults is None:
                async with EventStore.open(self._url) as other:
                    await other.append(f"Scripted-{key}", events)
            else:
                await self._faults.direct.append(f"Scripted-{key}", events)
            self.models[key].stored.append(lines)
            await asyncio.sleep(0)

    def _lines(self, number: int) -> tuple[str, ...]:
        return tuple(str(next(self._numbers)) for _ in range(number))

    async def check(self) -> None:
        for key, model in self.models.items():
            journal = [record.json()["text"] async for record in self.store.read(f"Scripted-{key}")]
            model.check(journal)
            whole = await fold(self.store, Scripted, key, use_snapshots=False)
            assert whole.state.lines == journal
            assert (await fold(self.store, Scripted, key)).state.lines == journal
        await self.stop()
        await self.start()
        for key in self.models:
            journal = [record.json()["text"] async for record in self.store.read(f"Scripted-{key}")]
            assert await self.system.ref(Scripted, key).ask(Plainly()) == journal


@contextlib.asynccontextmanager
async def opened(kind: str) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults() if kind == "faulty memory" else None
        world = World(new_journal("sqlite" if kind == "sqlite" else "memory", Path(folder)), faults)
        await world.start()
        try:
            yield world
        finally:
            await world.stop()


def run(kind: str, script: list[Any]) -> None:
    async def play() -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        async with asyncio.timeout(60), opened(kind) as world:
            for step in script:
                await world.play(step)
            await world.check()
        assert reports == []

    asyncio.run(play())


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Failures are logged by design, and here there are thousands of them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


KINDS = ["memory", "sqlite", "faulty memory"]
few = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("kind", KINDS)
@few
@given(script=SCRIPTS)
def test_replies_never_contradict_the_journal(kind: str, script: list[Any]):
    run(kind, script)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
@many
@given(script=SCRIPTS)
def test_replies_never_contradict_the_journal_in_many_more_scripts(kind: str, script: list[Any]):
    run(kind, script)

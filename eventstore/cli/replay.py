"""`eventstore replay`: fold actors again from their first events, and compare their snapshots with that."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.actor import PersistentActor, stream_id_of
from eventstore.cli.arguments import Address, Json, Target, Tenant, Url, whole
from eventstore.cli.checking import fold_checker
from eventstore.cli.escaping import escaped, one_line
from eventstore.cli.exits import Exit, WrongUsage
from eventstore.cli.folding import Problem, Replayed, replay_actor
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import View, counted, listing, write_json, write_line
from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.cli.resuming import ResumeFile
from eventstore.cli.targets import actor_class, actor_keys
from eventstore.store import EventStore
from eventstore.url import parse_store_url

_MOST_JOBS = 32


def replay(
    context: typer.Context,
    url: Url,
    target: Target,
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY", help="The actors' keys; all of the class if none is given."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Fold in other processes too, and from each snapshot, and compare.")
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            metavar="COUNT", parser=whole(1, _MOST_JOBS), help="Read so many actors at the same time, up to 32."
        ),
    ] = 4,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Note here how far it is, and go on from there the next time."),
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Fold actors again from their first events, and compare every stored snapshot with the state at its version.

    It writes nothing to the store. Snapshots that were taken of another schema of the state are left aside, as recovery
    does. The exit code is 1 if a snapshot differs, or an actor cannot be folded; the others are replayed all the same.

    With --check every actor is folded in two more processes, whose hashes, clocks and time zones differ, and from each
    of its snapshots to the end; the first event after which the states differ is named. What its event handlers call
    that is not theirs to call is named too: the clock, random numbers, files, the network.

    With --resume a replay that was ended, however it was, goes on behind the last actor that was done, and the summary
    counts what was done before.

    \b
    Examples:
      eventstore replay sqlite:///bank.db bank:Account
      eventstore replay sqlite:///bank.db bank:Account alice bob --check
      eventstore replay sqlite:///bank.db bank:Account --resume replay.json
    """
    cls = actor_class(target)
    if resume is not None and keys:
        raise WrongUsage("--resume is for all actors of the class: name no keys with it")
    file = None
    if resume is not None:
        replayed = {"replay": str(parse_store_url(url)), "tenant": tenant or "", "class": target, "check": check}
        file = ResumeFile(resume, replayed)
    work = _Replaying(Address(url, tenant), target, cls, keys or (), jobs, file, is_checking=check, is_json=json)
    return asyncio.run(work.run(context.obj))


@dataclass
class Summary:
    """The sum over all actors."""

    actors: int = 0
    events: int = 0
    snapshots_compared: int = 0
    snapshots_of_other_schema: int = 0
    truncated_actors: int = 0
    problems: int = 0

    @classmethod
    def so_far(cls, counts: Mapping[str, int]) -> Summary:
        """The sum that a run before this one had come to."""
        return cls(**{name: count for name, count in counts.items() if name in vars(cls())})

    def add(self, replayed: Replayed) -> None:
        """Count one actor in."""
        self.actors += 1
        self.events += replayed.events
        self.snapshots_compared += replayed.compared
        self.snapshots_of_other_schema += replayed.other_schema
        self.truncated_actors += replayed.truncated > 0
        self.problems += len(replayed.problems)


@dataclass(frozen=True)
class _Replaying:
    """One run of the command."""

    address: Address
    target: str
    cls: type[PersistentActor[Any]]
    keys: Sequence[str]
    jobs: int
    file: ResumeFile | None
    is_checking: bool
    is_json: bool

    async def run(self, messages: Messages) -> Exit:
        summary = Summary() if self.file is None else Summary.so_far(self.file.so_far)
        problems = listing(_PROBLEMS, json=self.is_json)
        async with self.address.store() as store, AsyncExitStack() as stack:
            checker = None
            if self.is_checking:
                checker = await stack.enter_async_context(fold_checker(store, self.address, self.target, os.getcwd()))
            progress: Progress = Silent()
            if is_shown():
                total = await _count_events(store, self.cls, self.keys) - summary.events
                progress = stack.enter_context(bar(f"{self.cls.kind}: events", max(0, total)))
            replaying = self._replayed(store, progress)
            async with aclosing(replaying):
                async for key, replayed in replaying:
                    if checker is not None:
                        await checker.check(key, replayed)
                    summary.add(replayed)
                    if replayed.base or replayed.problems:
                        with progress.aside():
                            _note_truncation(replayed, messages)
                            for problem in replayed.problems:
                                problems.add(problem)
                            problems.flush()
                    if self.file is not None:
                        self.file.save(key, vars(summary))
            if not summary.actors:
                await note_nothing(messages, store, "actor", kinds=(self.cls.kind,), is_narrowed=False)
        if self.file is not None:
            self.file.remove()
        if self.is_json:
            write_json({"summary": vars(summary)})
        else:
            _write_summary(self.cls, summary)
        return Exit.WRONG if summary.problems else Exit.FINE

    async def _replayed(self, store: EventStore, progress: Progress) -> AsyncGenerator[tuple[str, Replayed], None]:
        """Every actor, in the order of the keys. While one is folded, the events of the next ones are on their way."""
        after = None if self.file is None else self.file.after
        under_way: deque[tuple[str, asyncio.Task[Replayed]]] = deque()
        try:
            async for key in actor_keys(store, self.cls, self.keys):
                # Ids are in the order of their bytes.
                if after is not None and key.encode() <= after.encode():
                    continue
                replaying = replay_actor(store, self.cls, key, on_events=progress.advance)
                under_way.append((key, asyncio.create_task(replaying, name=f"eventstore-replay-{key}")))
                if len(under_way) >= self.jobs:
                    yield under_way[0][0], await under_way[0][1]
                    under_way.popleft()
            while under_way:
                yield under_way[0][0], await under_way[0][1]
                under_way.popleft()
        finally:
            for _, task in under_way:
                task.cancel()
            if under_way:
                await asyncio.wait([task for _, task in under_way])


async def _count_events(store: EventStore, cls: type[PersistentActor[Any]], keys: Sequence[str]) -> int:
    """How many events there are to fold."""
    total = 0
    if not keys:
        async for info in store.streams(kind=cls.kind):
            total += info.version - info.truncated
    for key in keys:
        head = await store.head(stream_id_of(cls, key))
        total += head.version - head.truncated
    return total


def _note_truncation(replayed: Replayed, messages: Messages) -> None:
    if replayed.base:
        messages.note(
            f"{replayed.stream_id!r}: the events up to version {replayed.truncated} were removed; it was folded from "
            f"the snapshot at version {replayed.base}, which could not be checked"
        )


def _write_summary(cls: type[PersistentActor[Any]], summary: Summary) -> None:
    text = (
        f"{counted(summary.actors, cls.kind + ' actor')}, {counted(summary.events, 'event')} folded, "
        f"{counted(summary.snapshots_compared, 'snapshot')} compared: "
    )
    if summary.snapshots_of_other_schema:
        text = f"{text.removesuffix(': ')} ({summary.snapshots_of_other_schema:,} of another schema left aside): "
    verdict = (
        ("no differences", "bold green")
        if not summary.problems
        else (
            counted(summary.problems, "problem"),
            "bold red",
        )
    )
    write_line((text, ""), verdict)


def _cells(problem: Problem) -> tuple[str, ...]:
    return (
        escaped(problem.stream_id),
        "" if problem.version is None else str(problem.version),
        one_line(problem.problem),
    )


_PROBLEMS = View(("STREAM", "VERSION", "PROBLEM"), _cells, Problem._asdict, 2, frozenset({"VERSION"}))

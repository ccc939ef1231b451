"""`eventstore replay`: fold actors again from their first events, and compare their snapshots with that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from actors.actor import PersistentActor, stream_id_of
from eventstore.backend import Load
from eventstore.cli.arguments import Address, Json, Target, Tenant, Url
from eventstore.cli.escaping import escaped, one_line
from eventstore.cli.exits import Exit
from eventstore.cli.folding import Problem, Replayed, replay_actor
from eventstore.cli.messages import Messages
from eventstore.cli.output import View, listing, write_json, write_line
from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.cli.targets import actor_class, actor_keys
from eventstore.store import EventStore


def replay(
    context: typer.Context,
    url: Url,
    target: Target,
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY", help="The actors' keys; all of the class if none is given."),
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Fold actors again from their first events, and compare every stored snapshot with the state at its version.

    It writes nothing. Snapshots that were taken of another schema of the state are left aside, as recovery does. The
    exit code is 1 if a snapshot differs, or an actor cannot be folded; the others are replayed all the same.

    \b
    Examples:
      eventstore replay sqlite:///bank.db bank:Account
      eventstore replay sqlite:///bank.db bank:Account alice bob
    """
    return asyncio.run(_replay(Address(url, tenant), actor_class(target), keys or (), context.obj, json=json))


@dataclass
class Summary:
    """The sum over all actors."""

    actors: int = 0
    events: int = 0
    snapshots_compared: int = 0
    snapshots_of_other_schema: int = 0
    truncated_actors: int = 0
    problems: int = 0

    def add(self, replayed: Replayed) -> None:
        """Count one actor in."""
        self.actors += 1
        self.events += replayed.events
        self.snapshots_compared += replayed.compared
        self.snapshots_of_other_schema += replayed.other_schema
        self.truncated_actors += replayed.truncated > 0
        self.problems += len(replayed.problems)


async def _replay(
    address: Address, cls: type[PersistentActor[Any]], keys: Sequence[str], messages: Messages, *, json: bool
) -> Exit:
    summary = Summary()
    problems = listing(_PROBLEMS, json=json)
    async with address.store() as store:
        with ExitStack() as stack:
            progress: Progress = Silent()
            if is_shown():
                progress = stack.enter_context(bar(f"{cls.kind}: events", await _count_events(store, cls, keys)))
            async for key in actor_keys(store, cls, keys):
                replayed = await replay_actor(store, cls, key, on_events=progress.advance)
                summary.add(replayed)
                if replayed.base or replayed.problems:
                    with progress.aside():
                        _note_truncation(replayed, messages)
                        for problem in replayed.problems:
                            problems.add(problem)
                        problems.flush()
    if json:
        write_json({"summary": vars(summary)})
    else:
        _write_summary(cls, summary)
    return Exit.WRONG if summary.problems else Exit.FINE


async def _count_events(store: EventStore, cls: type[PersistentActor[Any]], keys: Sequence[str]) -> int:
    """How many events there are to fold."""
    total = 0
    if not keys:
        async for info in store.streams(kind=cls.kind):
            total += info.version - info.truncated
    for key in keys:
        head = await store.load(Load(stream_id_of(cls, key), use_snapshot=False, limit=0))
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
        f"{_count(summary.actors, cls.kind + ' actor')}, {_count(summary.events, 'event')} folded, "
        f"{_count(summary.snapshots_compared, 'snapshot')} compared: "
    )
    if summary.snapshots_of_other_schema:
        text = f"{text.removesuffix(': ')} ({summary.snapshots_of_other_schema:,} of another schema left aside): "
    verdict = (
        ("no differences", "bold green")
        if not summary.problems
        else (
            _count(summary.problems, "problem"),
            "bold red",
        )
    )
    write_line((text, ""), verdict)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _cells(problem: Problem) -> tuple[str, ...]:
    return (
        escaped(problem.stream_id),
        "" if problem.version is None else str(problem.version),
        one_line(problem.problem),
    )


_PROBLEMS = View(("STREAM", "VERSION", "PROBLEM"), _cells, Problem._asdict, 2, frozenset({"VERSION"}))

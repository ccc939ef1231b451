"""`eventstore whatif`: what other code would make of the journal as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from actors.time_travel.state_changes import StateChange, state_changes
from eventstore.backend import StreamInfo
from eventstore.cli.arguments import Address, Json, Tenant, Url
from eventstore.cli.candidates import candidate
from eventstore.cli.changes import record_of, short
from eventstore.cli.escaping import escaped, one_line
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.fold_process import FoldAnswer, FoldError, FoldProcess, fold_process
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import View, counted, listing, write_json, write_line
from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.cli.versions import head_of
from eventstore.events import checked_stream_id
from eventstore.store import EventStore

_STRIDE = 256
_MOST_CHANGES = 100
_SHOWN_CHANGES = 10

# The same hashes in both: what is looked for is what the code makes, not what it leaves to chance. And no byte code is
# left in folders that are only looked at.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

# Errors that tell of an event that cannot be read, not of a handler that raised.
_UNDECODABLE = frozenset({"UnknownEventType", "EventDecodeError", "EventTooNew", "UpcasterMissing"})

Code = Annotated[str, typer.Option(metavar="CODE", help="A folder, or a requirement for pip.", show_default=False)]


def whatif(
    context: typer.Context,
    url: Url,
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:CLASS", help="The actor's class, such as bank:Account, in both.", show_default=False
        ),
    ],
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY", help="The actors' keys; all of the class if none is given."),
    ] = None,
    old: Code = ".",
    new: Code = ".",
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Fold actors with two versions of your code, each in a process of its own, and list the states that differ and the
    events that can no longer be read. It writes nothing to the store. The exit code is 1 if anything differs, or if an
    actor could not be compared because neither can fold it.

    CODE is a folder that the module is imported from, or a requirement such as bank==1.2, which pip installs into a
    virtual environment that is removed afterwards. The current folder is the default of each. Code that is installed
    runs with your rights.

    Commands are not tried: the journal keeps what came of them, not the commands.

    Columns: stream id, the first version at which the states differ, and how they differ at the end.

    \b
    Examples:
      eventstore whatif sqlite:///bank.db bank:Account --old deployed --new .
      eventstore whatif sqlite:///bank.db bank:Account --old bank==1.2 --new . --json
    """
    if not old or not new or Path(old).resolve() == Path(new).resolve():
        raise WrongUsage("--old and --new are the same code: give at least one of them, and another one than the other")
    return asyncio.run(_whatif(context.obj, Address(url, tenant), target, keys or (), old, new, json=json))


class Difference(NamedTuple):
    """One actor of which the two make different things, or neither makes anything, which compares nothing. `version` is
    the first at which they part, or at which one stops."""

    stream_id: str
    version: int
    changes: Sequence[StateChange]
    left_out: int
    old_error: FoldError | None
    new_error: FoldError | None


@dataclass
class Summary:
    """The sum over all actors. Those that both can fold are `compared`, and the `events` are theirs. `undecodable` are
    the events at which the new code stops and the old does not: the first of each kind, and how many actors have one.
    """

    actors: int = 0
    compared: int = 0
    events: int = 0
    differ: int = 0
    only_old_can_fold: int = 0
    only_new_can_fold: int = 0
    neither_can_fold: int = 0
    undecodable: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add_undecodable(self, stream_id: str, version: int, type_: str, schema_version: int, error: str) -> None:
        """Count one actor that stops at such an event."""
        kind = {"type": type_, "schema_version": schema_version, "error": error}
        for known in self.undecodable:
            if kind.items() <= known.items():
                known["actors"] += 1
                return
        self.undecodable.append({**kind, "stream_id": stream_id, "version": version, "actors": 1})

    @property
    def is_same(self) -> bool:
        """Whether both make the same of all that one of them can fold."""
        return not (self.differ or self.only_old_can_fold or self.only_new_can_fold)


async def _whatif(
    messages: Messages, address: Address, target: str, keys: Sequence[str], old: str, new: str, *, json: bool
) -> Exit:
    rows = listing(_DIFFERENCES, json=json)
    summary = Summary()
    async with address.store() as store, AsyncExitStack() as stack:
        one, other = [
            await _started(address, target, name, code, stack) for name, code in (("--old", old), ("--new", new))
        ]
        if one.kind != other.kind:
            raise CommandFailed(
                f"the old class has streams of the kind {one.kind!r}, the new one of {other.kind!r}: the new one would "
                "find none of the actors that there are"
            )
        progress: Progress = Silent()
        if is_shown():
            total = (await store.statistics()).streams
            progress = stack.enter_context(bar(f"{one.kind}: streams", len(keys) or total))
        async for info in _streams(store, one.kind, keys):
            difference = await _compared(one, other, info, summary)
            if difference is not None:
                await _note_undecodable(store, difference, summary)
                with progress.aside():
                    rows.add(difference)
                    rows.flush()
            progress.advance(1)
        if not summary.actors:
            await note_nothing(messages, store, "actor", kinds=(one.kind,), is_narrowed=False)
    if json:
        write_json({"summary": vars(summary)})
    else:
        _write_summary(summary)
    return Exit.FINE if summary.is_same and not summary.neither_can_fold else Exit.WRONG


async def _started(address: Address, target: str, name: str, code: str, stack: AsyncExitStack) -> FoldProcess:
    where = await stack.enter_async_context(candidate(code))
    process = fold_process(
        address, target, name=name, python=where.python, folder=where.folder, environment=_ENVIRONMENT
    )
    return await stack.enter_async_context(process)


async def _streams(store: EventStore, kind: str, keys: Sequence[str]) -> AsyncIterator[StreamInfo]:
    for key in keys:
        stream_id = checked_stream_id(f"{kind}-{key}")
        head = await head_of(store, stream_id)
        yield StreamInfo(stream_id, head.version, head.truncated)
    if not keys:
        async for info in store.streams(kind=kind):
            # A stream named by the kind alone belongs to no actor.
            if len(info.stream_id) > len(kind) + 1:
                yield info


async def _compared(one: FoldProcess, other: FoldProcess, info: StreamInfo, summary: Summary) -> Difference | None:
    key, end = info.stream_id[len(one.kind) + 1 :], info.version
    summary.actors += 1
    old, new = await asyncio.gather(one.fold(key, end, stride=_STRIDE), other.fold(key, end, stride=_STRIDE))
    match old.error, new.error:
        case None, None:
            summary.compared += 1
            summary.events += end - info.truncated
            if old.digests[end] == new.digests[end]:
                return None
            summary.differ += 1
            version = await _parting(one, other, key, old, new)
            old, new = await asyncio.gather(one.fold(key, end, state=True), other.fold(key, end, state=True))
            changes = state_changes(old.state, new.state)
            found = list(islice(changes, _MOST_CHANGES))
            return Difference(info.stream_id, version, found, sum(1 for _ in changes), None, None)
        case None, _:
            summary.only_old_can_fold += 1
        case _, None:
            summary.only_new_can_fold += 1
        case _:
            summary.neither_can_fold += 1
    error = new.error or old.error
    version = end if error is None or error.version is None else error.version
    return Difference(info.stream_id, version, [], 0, old.error, new.error)


async def _parting(one: FoldProcess, other: FoldProcess, key: str, old: FoldAnswer, new: FoldAnswer) -> int:
    """The first version at which the states differ. They may agree again behind it, up to the end they do not."""
    version = _first_difference(old, new)
    before = max((each for each in old.digests if each < version), default=0)
    old, new = await asyncio.gather(
        one.fold(key, version, after=before, stride=1), other.fold(key, version, after=before, stride=1)
    )
    return _first_difference(old, new)


def _first_difference(old: FoldAnswer, new: FoldAnswer) -> int:
    common = sorted(old.digests.keys() & new.digests.keys())
    return next(version for version in common if old.digests[version] != new.digests[version])


async def _note_undecodable(store: EventStore, difference: Difference, summary: Summary) -> None:
    error = difference.new_error
    if error is None or error == difference.old_error or error.version is None or error.name not in _UNDECODABLE:
        return
    async for recorded in store.read(difference.stream_id, after=error.version - 1, limit=1):
        summary.add_undecodable(difference.stream_id, error.version, recorded.type, recorded.schema_version, error.name)


def _write_summary(summary: Summary) -> None:
    read = f"{counted(summary.compared, 'actor')}, {counted(summary.events, 'event')} folded with both: "
    neither = ""
    if count := summary.neither_can_fold:
        them = "it" if count == 1 else "them"
        neither = f"; {counted(count, 'actor')} not compared: neither code can fold {them}"
    if summary.is_same:
        write_line((read, ""), ("no differences", "bold green"), (neither, "bold red"))
        return
    for kind in summary.undecodable:
        write_line(
            (
                f"{escaped(kind['type'])} version {kind['schema_version']} cannot be read by the new code "
                f"({kind['error']}): {counted(kind['actors'], 'actor')}, first {escaped(kind['stream_id'])} at version "
                f"{kind['version']}",
                "red",
            )
        )
    found = [
        f"{count:,} {what}"
        for count, what in (
            (summary.differ, "differ"),
            (summary.only_old_can_fold, "only the old code can fold"),
            (summary.only_new_can_fold, "only the new code can fold"),
        )
        if count
    ]
    write_line((read, ""), (", ".join(found) + neither, "bold red"))


def _cells(difference: Difference) -> tuple[str, ...]:
    return escaped(difference.stream_id), str(difference.version), one_line("; ".join(_in_words(difference)))


def _in_words(difference: Difference) -> list[str]:
    words = _failures_in_words(difference.old_error, difference.new_error)
    for change in difference.changes[:_SHOWN_CHANGES]:
        place = change.pointer or "the state"
        match change.kind:
            case "added":
                words.append(f"{place} is new: {short(change.after)}")
            case "removed":
                words.append(f"{place} is gone: {short(change.before)}")
            case "changed":
                words.append(f"{place} is {short(change.after)} instead of {short(change.before)}")
    more = len(difference.changes) - _SHOWN_CHANGES + difference.left_out
    return [*words, f"and {more:,} more"] if more > 0 else words


def _failures_in_words(old: FoldError | None, new: FoldError | None) -> list[str]:
    if old is not None and old == new:
        return [f"nothing was compared: neither code can fold it: {old.reason}"]
    words = [
        f"the {name} code cannot fold it: {error.reason}"
        for name, error in (("old", old), ("new", new))
        if error is not None
    ]
    return ["nothing was compared", *words] if len(words) > 1 else words


def _record(difference: Difference) -> Mapping[str, Any]:
    return {
        "stream_id": difference.stream_id,
        "version": difference.version,
        "changes": [record_of(change) for change in difference.changes],
        "changes_left_out": difference.left_out,
        "old_error": None if difference.old_error is None else difference.old_error._asdict(),
        "new_error": None if difference.new_error is None else difference.new_error._asdict(),
    }


_DIFFERENCES = View(("STREAM", "VERSION", "DIFFERENCE"), _cells, _record, 2, frozenset({"VERSION"}))

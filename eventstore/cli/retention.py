"""`eventstore retention`: which old events may go, and letting them go."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from eventstore.cli.arguments import Address, Json, Tenant, Url, whole
from eventstore.cli.escaping import escaped, one_line
from eventstore.cli.exits import Exit, WrongUsage
from eventstore.cli.groups import command_group
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import View, counted, listing, write_json, write_line
from eventstore.cli.progress import events_bar
from eventstore.cli.targets import actor_class
from eventstore.retention import Cut, Policy, Retention

_AGE = re.compile(r"([0-9]{1,6})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}

OlderThan = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Only events recorded so long ago, such as 365d, 12h.")
]
KeepVersions = Annotated[
    int | None,
    typer.Option("--keep-versions", metavar="COUNT", parser=whole(0), help="Keep the newest so many of each stream."),
]
Kind = Annotated[list[str] | None, typer.Option(metavar="KIND", help="Only streams of this kind.")]
Actor = Annotated[
    list[str] | None,
    typer.Option("--actor", metavar="MODULE:CLASS", help="Only these actors, whose snapshots must fit their class."),
]
NoSnapshots = Annotated[
    bool, typer.Option("--no-snapshots", help="Nobody folds these streams: they need no snapshot. Goes with --kind.")
]

retention = command_group(
    "Find out which old events may go, and remove them.",
    "retention plan sqlite:///bank.db --older-than 365d --actor bank:Account",
)


@retention.command()
def plan(
    context: typer.Context,
    url: Url,
    older_than: OlderThan = None,
    keep_versions: KeepVersions = None,
    kind: Kind = None,
    actor: Actor = None,
    no_snapshots: NoSnapshots = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show what `eventstore retention apply` would remove, and what stands against it. It writes nothing.

    An event goes if it is as old as --older-than says and not among the newest --keep-versions; give one of them, or
    both. A stream is never cut behind the newest snapshot that can be used.

    Columns: stream id, version, up to which version events go, how many, their bytes, how many a recovery replays
    afterwards, and "goes" or why it stays.

    \b
    Example:
      eventstore retention plan sqlite:///bank.db --older-than 365d --actor bank:Account
    """
    policy = _policy(older_than, keep_versions, kind, actor, no_snapshots=no_snapshots)
    return asyncio.run(_run(context.obj, Address(url, tenant), policy, None, json=json))


@retention.command()
def apply(
    context: typer.Context,
    url: Url,
    older_than: OlderThan = None,
    keep_versions: KeepVersions = None,
    kind: Kind = None,
    actor: Actor = None,
    no_snapshots: NoSnapshots = False,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why, for the record of removals. By default the policy.")
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Remove what `eventstore retention plan` shows, for good. Streams that are refused stay as they are.

    The exit code is 1 if a stream was refused. Ended early, it goes on where it was when it is run again.

    \b
    Example:
      eventstore retention apply sqlite:///bank.db --older-than 365d --actor bank:Account
    """
    policy = _policy(older_than, keep_versions, kind, actor, no_snapshots=no_snapshots)
    why = reason or _described(older_than, keep_versions)
    return asyncio.run(_run(context.obj, Address(url, tenant), policy, why, json=json))


def _policy(
    older_than: str | None,
    keep_versions: int | None,
    kinds: list[str] | None,
    actors: list[str] | None,
    *,
    no_snapshots: bool,
) -> Policy:
    if older_than is None and keep_versions is None:
        raise WrongUsage("say how old events must be with --older-than, or how many stay with --keep-versions")
    if actors and (kinds or no_snapshots):
        raise WrongUsage(
            "--actor names the kind itself, and that snapshots are needed: leave --kind and --no-snapshots"
        )
    if no_snapshots and not kinds:
        raise WrongUsage("--no-snapshots goes with --kind: name the streams that nobody folds")
    before = None if older_than is None else _before(older_than)
    classes = [actor_class(target) for target in actors or ()]
    fingerprints = {cls.kind: cls.state_type.fingerprint for cls in classes}
    named = tuple(fingerprints) if classes else tuple(dict.fromkeys(kinds or ()))
    return Policy(before, keep_versions, named, fingerprints, needs_snapshots=not no_snapshots)


def _before(text: str) -> datetime:
    """The time so long ago."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise WrongUsage(f"{text!r} is no age: write hours, days or weeks, such as 12h, 365d or 8w")
    try:
        return datetime.now(UTC) - int(match[1]) * _UNITS[match[2]]
    except OverflowError as error:
        raise WrongUsage(f"{text!r} is longer ago than there are dates") from error


def _described(older_than: str | None, keep_versions: int | None) -> str:
    parts: list[str] = []
    if older_than is not None:
        parts.append(f"older than {older_than}")
    if keep_versions is not None:
        parts.append(f"not among the newest {keep_versions}")
    return f"retention: {', '.join(parts)}"


@dataclass
class _Sum:
    streams: int = 0
    events: int = 0
    bytes: int = 0
    replay: int = 0
    refused: int = 0

    def add(self, cut: Cut) -> None:
        if cut.refusal is not None:
            self.refused += 1
            return
        self.streams += 1
        self.events += cut.events
        self.bytes += cut.size_bytes
        self.replay += cut.replay


async def _run(messages: Messages, address: Address, policy: Policy, reason: str | None, *, json: bool) -> Exit:
    """Plan, or with a reason apply."""
    rows = listing(_APPLIED if reason is not None else _PLANNED, json=json)
    total = _Sum()
    async with address.store() as store, events_bar(store, "events looked at") as progress:
        work = Retention(store, policy, on_events=progress.advance)
        async for cut in work.plan() if reason is None else work.apply(reason=reason):
            total.add(cut)
            with progress.aside():
                rows.add(cut)
                rows.flush()
        if not total.streams and not total.refused:
            what = "event that may go"
            await note_nothing(messages, store, what, kinds=policy.kinds, is_narrowed=False)
    if json:
        write_json({"summary": vars(total), "applied": reason is not None})
    else:
        _write_summary(total, is_applied=reason is not None)
    return Exit.WRONG if total.refused and reason is not None else Exit.FINE


def _write_summary(total: _Sum, *, is_applied: bool) -> None:
    verb = "may go" if not is_applied else "was removed" if total.events == 1 else "were removed"
    which = "this stream" if total.streams == 1 else "these streams"
    found = f"{counted(total.events, 'event')} of {counted(total.streams, 'stream')}, {counted(total.bytes, 'byte')}"
    text = f"{found}, {verb}; recovering {which} replays {counted(total.replay, 'event')}"
    stay = counted(total.refused, "stream stays as it is", "streams stay as they are")
    refused = (f"; {stay}", "bold red") if total.refused else ("", "")
    write_line((text, "bold"), refused)


def _view(word: str) -> View[Cut]:
    def cells(cut: Cut) -> tuple[str, ...]:
        numbers = (cut.version, cut.through, cut.events, cut.size_bytes, cut.replay)
        what = word if cut.refusal is None else f"stays: {one_line(str(cut.refusal))}"
        return (escaped(cut.stream_id), *map(str, numbers), what)

    def record(cut: Cut) -> Mapping[str, Any]:
        refusal = cut.refusal
        error = None if refusal is None else {"error": type(refusal).__name__, "message": str(refusal)}
        return {**cut._asdict(), "refusal": error}

    columns = ("STREAM", "VERSION", "THROUGH", "EVENTS", "BYTES", "REPLAY", "WHAT")
    return View(columns, cells, record, 6, frozenset(columns[1:6]))


_PLANNED = _view("goes")
_APPLIED = _view("removed")

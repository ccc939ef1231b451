"""`eventstore diff`: what changed in the state of one actor between two versions."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from actors.actor import PersistentActor, stream_id_of
from actors.time_travel.folding import canonical_at
from actors.time_travel.state_changes import StateChange, state_changes
from eventstore.cli.arguments import Address, Full, Json, Key, Target, Tenant, Url
from eventstore.cli.changes import record_of, text_of
from eventstore.cli.escaping import escaped
from eventstore.cli.exits import Exit
from eventstore.cli.messages import Messages
from eventstore.cli.output import flush, write, write_json, write_line
from eventstore.cli.targets import actor_class
from eventstore.cli.versions import head_of, parse_version, version_of

_SHOWN = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def diff(
    context: typer.Context,
    url: Url,
    target: Target,
    key: Key,
    before: Annotated[str, typer.Argument(metavar="V1", help="A version, or an ISO 8601 time with an offset.")],
    after: Annotated[
        str | None, typer.Argument(metavar="V2", help="The same; the newest version if it is not given.")
    ] = None,
    full: Full = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show what changed in the state of an actor between two versions. Nothing is written, and no command is run.

    Each change is named by a JSON pointer (RFC 6901). Version 0 is the state before the first event. A time stands for
    the last event recorded then or before. Items of arrays are compared place by place, members of sets as such.

    Columns: kind (added, removed, changed), pointer, value before, value after.

    \b
    Examples:
      eventstore diff sqlite:///bank.db bank:Account alice 3 5
      eventstore diff sqlite:///bank.db bank:Account alice 2026-01-31T12:00:00Z
    """
    wanted = [parse_version(before), None if after is None else parse_version(after)]
    return asyncio.run(_diff(context.obj, Address(url, tenant), actor_class(target), key, wanted, full=full, json=json))


async def _diff(
    messages: Messages,
    address: Address,
    cls: type[PersistentActor[Any]],
    key: str,
    wanted: list[int | datetime | None],
    *,
    full: bool,
    json: bool,
) -> Exit:
    stream_id = stream_id_of(cls, key)
    async with address.store() as store:
        head = await head_of(store, stream_id)
        before, after = [
            head.version if each is None else await version_of(store, stream_id, head, each) for each in wanted
        ]
        states = await canonical_at(store, cls, key, (before, after), use_snapshots=not full)
    found = list(state_changes(*states))
    for change in found:
        write_json(record_of(change)) if json else _write(change)
    if json:
        write_json({"summary": {"stream_id": stream_id, "before": before, "after": after, "changes": len(found)}})
    elif not found:
        messages.note(f"{escaped(stream_id)} has the same state at versions {before} and {after}")
    flush()
    return Exit.FINE


def _write(change: StateChange) -> None:
    before, after = text_of(change.before), text_of(change.after)
    pointer = escaped(change.pointer)
    if not sys.stdout.isatty():
        cells = (
            change.kind,
            pointer,
            "" if change.kind == "added" else before,
            "" if change.kind == "removed" else after,
        )
        write("\t".join(cells) + "\n")
        return
    sign, style = _SHOWN[change.kind]
    value = {"added": after, "removed": before, "changed": f"{before} -> {after}"}[change.kind]
    write_line((f"{sign} {pointer or '(the state)'}  ", f"bold {style}"), (value, style))

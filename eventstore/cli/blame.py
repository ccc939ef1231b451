"""`eventstore blame`: which event last set a value in the state of an actor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from actors.actor import PersistentActor, stream_id_of
from actors.time_travel.blame import Blamed, NeverSet, Setting, blame, history
from actors.time_travel.state_changes import InvalidPointer, names_of
from eventstore.cli.arguments import Address, At, AtTime, Json, Key, Target, Tenant, Url
from eventstore.cli.changes import json_of, record_of, text_of
from eventstore.cli.escaping import escaped
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.messages import Messages
from eventstore.cli.output import View, listing, timestamp
from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.cli.targets import actor_class
from eventstore.cli.versions import head_of, parse_wanted, version_of
from eventstore.events import RecordedEvent


def blame_(
    context: typer.Context,
    url: Url,
    target: Target,
    key: Key,
    pointer: Annotated[
        str | None,
        typer.Argument(metavar="POINTER", help="A JSON pointer into the state, such as /items/0/name."),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Every event that changed it, oldest first.")] = False,
    at: At = None,
    at_time: AtTime = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show which event last set a value in the state of an actor: its id, its command and its user, if they are known,
    and its time. Without a POINTER that is told of every value of the state that holds no others.

    An event that sets a value to what it is already does not change it, and is not named. Values without an event were
    there before the first one that is known. All events are folded, one by one; nothing is written.

    Columns: pointer, value, version (0: the initial state), time, event type, event id, command id, user. With --all:
    version, kind of change, pointer, value, and the rest as before.

    \b
    Examples:
      eventstore blame sqlite:///bank.db bank:Account alice /amount
      eventstore blame sqlite:///bank.db bank:Account alice /amount --all
      eventstore blame sqlite:///bank.db bank:Account alice --at 3
    """
    try:
        names_of(pointer or "")
    except InvalidPointer as error:
        raise WrongUsage(str(error)) from error
    wanted = parse_wanted(at, at_time)
    return asyncio.run(
        _blame(context.obj, Address(url, tenant), actor_class(target), key, pointer, wanted, all=all, json=json)
    )


async def _blame(
    messages: Messages,
    address: Address,
    cls: type[PersistentActor[Any]],
    key: str,
    pointer: str | None,
    wanted: Any,
    *,
    all: bool,
    json: bool,
) -> Exit:
    stream_id = stream_id_of(cls, key)
    async with address.store() as store:
        head = await head_of(store, stream_id)
        through = head.version if wanted is None else await version_of(store, stream_id, head, wanted)
        with ExitStack() as stack:
            progress: Progress = Silent()
            if is_shown():
                progress = stack.enter_context(bar("events", through - head.truncated))
            if all:
                changes = listing(_HISTORY, json=json)
                is_empty = True
                async for setting in history(
                    store, cls, key, pointer=pointer or "", through=through, on_events=progress.advance
                ):
                    is_empty = False
                    with progress.aside():
                        changes.add(setting)
                changes.flush()
                if is_empty:
                    messages.note(f"no event changed {pointer or 'the state'}")
                if head.truncated:
                    messages.note(
                        f"the events of {stream_id!r} up to version {head.truncated} were removed: what changed before "
                        "the oldest snapshot is not told"
                    )
                return Exit.FINE
            try:
                found = await blame(store, cls, key, pointer=pointer, through=through, on_events=progress.advance)
            except NeverSet as error:
                raise CommandFailed(str(error)) from error
    rows = listing(_BLAMED, json=json)
    for blamed in found:
        rows.add(blamed)
    rows.flush()
    return Exit.FINE


def _event_cells(event: RecordedEvent | None) -> tuple[str, ...]:
    if event is None:
        return "", "", "", "", ""
    metadata = event.metadata
    return (
        timestamp(event.recorded_at),
        escaped(event.type),
        str(event.event_id),
        "" if metadata is None else escaped(metadata.command_id or ""),
        "" if metadata is None else escaped(metadata.user or ""),
    )


def _event_record(event: RecordedEvent | None) -> dict[str, Any]:
    metadata = None if event is None else event.metadata
    return {
        "recorded_at": None if event is None else timestamp(event.recorded_at),
        "type": None if event is None else event.type,
        "event_id": None if event is None else str(event.event_id),
        "command_id": None if metadata is None else metadata.command_id,
        "user": None if metadata is None else metadata.user,
    }


def _blamed_cells(blamed: Blamed) -> tuple[str, ...]:
    value = "(removed)" if blamed.is_gone else text_of(blamed.value)
    return escaped(blamed.pointer), value, str(blamed.version), *_event_cells(blamed.event)


def _blamed_record(blamed: Blamed) -> Mapping[str, Any]:
    value = {} if blamed.is_gone else {"value": json_of(blamed.value)}
    record = {"pointer": blamed.pointer, **value, "is_removed": blamed.is_gone, "version": blamed.version}
    return record | _event_record(blamed.event)


def _setting_cells(setting: Setting) -> tuple[str, ...]:
    version, change, event = setting
    value = "" if change.kind == "removed" else text_of(change.after)
    return str(version), change.kind, escaped(change.pointer), value, *_event_cells(event)


def _setting_record(setting: Setting) -> Mapping[str, Any]:
    return {"version": setting.version, **record_of(setting.change), **_event_record(setting.event)}


_EVENT = ("TIME", "TYPE", "EVENT", "COMMAND", "USER")
_BLAMED = View(("POINTER", "VALUE", "VERSION", *_EVENT), _blamed_cells, _blamed_record, 7, frozenset({"VERSION"}))
_HISTORY = View(
    ("VERSION", "KIND", "POINTER", "VALUE", *_EVENT), _setting_cells, _setting_record, 8, frozenset({"VERSION"})
)

"""`eventstore show`: the state of one actor, now, as of a version, or as of a moment."""

from __future__ import annotations

import asyncio
import json as stdlib_json
from datetime import datetime
from typing import Annotated, Any

import typer

from actors.actor import PersistentActor, stream_id_of
from actors.recovery import fold
from eventstore.backend import Load, Loaded
from eventstore.cli.arguments import Address, Full, Json, Target, Tenant, Url
from eventstore.cli.escaping import escaped, printable_json
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.output import json_fragment, timestamp, write_fields, write_json, write_line
from eventstore.cli.targets import actor_class
from eventstore.errors import JournalCorrupt
from eventstore.events import RecordedEvent
from eventstore.store import EventStore


def show(
    url: Url,
    target: Target,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The actor's key, such as alice.")],
    at: Annotated[int | None, typer.Option(metavar="VERSION", min=0, help="The state after this event.")] = None,
    at_time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The state at this time: ISO 8601 with an offset, 2026-01-31T12:00:00Z"),
    ] = None,
    full: Full = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show the state of an actor, rebuilt from its events. Nothing is written, and no command is run.

    \b
    Examples:
      eventstore show sqlite:///bank.db bank:Account alice
      eventstore show sqlite:///bank.db bank:Account alice --at 3
      eventstore show sqlite:///bank.db bank:Account alice --at-time 2026-01-31T12:00:00+01:00
    """
    if at is not None and at_time is not None:
        raise WrongUsage("--at and --at-time exclude each other: give one of them")
    moment = None if at_time is None else parse_moment(at_time)
    return asyncio.run(_show(Address(url, tenant), actor_class(target), key, at, moment, full=full, json=json))


def parse_moment(text: str) -> datetime:
    """A moment out of ISO 8601. A time without an offset is refused: guessing its zone would show another state."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise WrongUsage(f"--at-time {text!r} is no ISO 8601 time, such as 2026-01-31T12:00:00Z") from error
    if moment.tzinfo is None:
        raise WrongUsage(f"--at-time {text!r} has no offset: add Z for UTC, or one such as +01:00")
    return moment


async def _show(
    address: Address,
    cls: type[PersistentActor[Any]],
    key: str,
    at: int | None,
    moment: datetime | None,
    *,
    full: bool,
    json: bool,
) -> Exit:
    stream_id = stream_id_of(cls, key)
    async with address.store() as store:
        head = await store.load(Load(stream_id, use_snapshot=False, limit=0))
        if head.version == 0:
            raise CommandFailed(f"there is no actor {stream_id!r}: it has no events")
        if at is not None and at > head.version:
            raise CommandFailed(f"{stream_id!r} is at version {head.version}: there is no version {at} yet")
        through = at if moment is None else await version_at(store, stream_id, head, moment)
        state, version, snapshot_version = await fold(store, cls, key, through=through, use_snapshots=not full)
        recorded_at = None
        if version > head.truncated:
            recorded_at = timestamp((await _event(store, stream_id, version)).recorded_at)
    data = cls.state_type.dump(state)
    if json:
        write_json(
            {
                "stream_id": stream_id,
                "version": version,
                "stream_version": max(head.version, version),
                "recorded_at": recorded_at,
                "snapshot_version": snapshot_version,
                "state": json_fragment(data),
            }
        )
        return Exit.FINE
    fields = {"actor": escaped(stream_id), "version": f"{version} of {max(head.version, version)}"}
    if recorded_at is not None:
        fields["recorded"] = recorded_at
    fields["rebuilt"] = f"from the snapshot at version {snapshot_version}" if snapshot_version else "from its events"
    write_fields(fields)
    # Not orjson: it would turn integers of more than 64 bits into floats.
    pretty = stdlib_json.dumps(stdlib_json.loads(data), indent=2, ensure_ascii=False)
    for line in printable_json(pretty).splitlines():
        write_line((line, ""))
    return Exit.FINE


async def version_at(store: EventStore, stream_id: str, head: Loaded, moment: datetime) -> int:
    """The version a stream had at a moment: that of the last event recorded then or before.

    It is found by bisection, because the times of one stream never go back.
    """
    before, through = head.truncated, head.version
    while before < through:
        middle = (before + through + 1) // 2
        if (await _event(store, stream_id, middle)).recorded_at <= moment:
            before = middle
        else:
            through = middle - 1
    if before > head.truncated:
        return before
    if head.truncated:
        raise CommandFailed(
            f"the state of {stream_id!r} at that time is not known: "
            f"its events up to version {head.truncated} were removed"
        )
    first = timestamp((await _event(store, stream_id, 1)).recorded_at)
    raise CommandFailed(f"{stream_id!r} did not exist then: its first event was recorded at {first}")


async def _event(store: EventStore, stream_id: str, version: int) -> RecordedEvent:
    async for recorded in store.read(stream_id, after=version - 1, limit=1):
        if recorded.version == version:
            return recorded
    raise JournalCorrupt(f"the event at version {version} is missing", stream_id=stream_id, version=version)

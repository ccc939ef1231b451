"""`eventstore conflicts`: events that met others they were written without, in what order they stand, and why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import typer

from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_recovery import stamp_of
from actors.time_travel.folding import fold
from eventstore.cli.arguments import Address, Json, Tenant, Url, whole
from eventstore.cli.escaping import escaped
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.groups import command_group
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import (
    View,
    json_cell,
    json_fragment,
    listing,
    timestamp,
    write_fields,
    write_json,
    write_line,
)
from eventstore.cli.recorded import checked_payload
from eventstore.cli.targets import actor_class
from eventstore.events import RecordedEvent, stream_kind
from eventstore.stamp import Stamp
from eventstore.store import EventStore

conflicts = command_group(
    "Look at events of replicas that did not know each other.", "conflicts list sqlite:///laptop.db --kind Cart"
)


class _Side(NamedTuple):
    """One event with its stamp."""

    recorded: RecordedEvent
    stamp: Stamp


class Conflict(NamedTuple):
    """An event that came from another replica, and those that were here and that it did not know."""

    event: _Side
    against: Sequence[_Side]


@conflicts.command("list", short_help="List events that met others they were written without.")
def list_(
    context: typer.Context,
    url: Url,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only streams with this before the first dash.")
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """List the events of other replicas that met events here which they were written without, stream by stream.

    Columns: stream id, version of the event here, the replica that wrote it, its type, how many it met, the versions
    of these, and the replicas that wrote them.

    \b
    Example:
      eventstore conflicts list sqlite:///laptop.db --kind Cart
    """
    return asyncio.run(_list(context.obj, Address(url, tenant), kind, json=json))


@conflicts.command("show", short_help="Show both sides of a conflict, and the order that was chosen.")
def show(
    url: Url,
    stream_id: Annotated[str, typer.Argument(metavar="STREAM", help="The stream, such as Cart-ann.")],
    version: Annotated[int, typer.Argument(metavar="VERSION", parser=whole(1), help="The event's version here.")],
    resolver: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:CLASS",
            help="Fold the events up to there with this actor's rule, and show the state. May be repeated, to compare.",
        ),
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show an event and those it was written without, in the order in which they are applied, and why it is that.

    \b
    Examples:
      eventstore conflicts show sqlite:///laptop.db Cart-ann 7
      eventstore conflicts show sqlite:///laptop.db Cart-ann 7 --resolver shop:Cart --resolver shop:OtherCart
    """
    return asyncio.run(
        _show(Address(url, tenant), stream_id, version, [_resolver(each) for each in resolver or ()], json=json)
    )


def _resolver(target: str) -> tuple[str, type[ReplicatedActor[Any]]]:
    cls = actor_class(target)
    if not issubclass(cls, ReplicatedActor):
        raise WrongUsage(f"{target} is no ReplicatedActor: it has no rule for conflicts")
    return target, cls


async def _list(messages: Messages, address: Address, kind: str | None, *, json: bool) -> Exit:
    rows = listing(_CONFLICTS, json=json)
    is_empty = True
    async with address.store() as store:
        async for info in store.streams(kind=kind):
            async for conflict in conflicts_of(store, info.stream_id):
                rows.add(conflict)
                is_empty = False
        rows.flush()
        if is_empty:
            await note_nothing(messages, store, "conflict", kinds=() if kind is None else (kind,), is_narrowed=False)
    return Exit.FINE


async def conflicts_of(store: EventStore, stream_id: str, through: int | None = None) -> AsyncIterator[Conflict]:
    """The conflicts of one stream, in the order in which they came about here."""
    known: list[_Side] = []
    async for recorded in store.read(stream_id, through=through):
        if recorded.origin is None:
            return
        side = _Side(recorded, stamp_of(recorded))
        if recorded.concurrent:
            against = [each for each in known if not side.stamp.has_seen(each.stamp)]
            yield Conflict(side, against)
        known.append(side)


async def _show(
    address: Address,
    stream_id: str,
    version: int,
    resolvers: Sequence[tuple[str, type[ReplicatedActor[Any]]]],
    *,
    json: bool,
) -> Exit:
    async with address.store() as store:
        found = [each async for each in conflicts_of(store, stream_id, version) if _version(each) == version]
        if not found:
            if version > (newest := await store.version(stream_id)):
                raise CommandFailed(f"{stream_id!r} is at version {newest}: there is no version {version} yet")
            raise CommandFailed(f"the event at version {version} of {stream_id!r} met none that it was written without")
        states = [(target, await _state(store, cls, stream_id, version)) for target, cls in resolvers]
    (conflict,) = found
    sides = sorted([conflict.event, *conflict.against], key=lambda side: side.stamp.key)
    reasons = ["", *(_reason(before.stamp, side.stamp) for before, side in pairwise(sides))]
    if json:
        write_json(
            {
                "stream_id": stream_id,
                "version": version,
                "order": [_side_record(side, reason) for side, reason in zip(sides, reasons, strict=True)],
                "states": {target: json_fragment(state) for target, state in states},
            }
        )
        return Exit.FINE
    write_fields(
        {
            "conflict": f"{escaped(stream_id)} at version {version}",
            "came from": escaped(conflict.event.stamp.origin),
            "met": f"{len(conflict.against)} that it was written without",
        }
    )
    for number, (side, reason) in enumerate(zip(sides, reasons, strict=True), 1):
        stamp = side.stamp
        style = "bold" if side is conflict.event else ""
        line = f"{number}. {escaped(stamp.origin)} {stamp.sequence}  version {side.recorded.version}  "
        write_line((line, style), (f"{escaped(side.recorded.type)}  {json_cell(side.recorded.payload)}", ""))
        write_line((f"   knew {escaped(str(stamp.clock))}, time {stamp.time}{'; ' if reason else ''}{reason}", ""))
    for target, state in states:
        write_line((f"{escaped(target)}: ", "bold"), (json_cell(state), ""))
    return Exit.FINE


async def _state(store: EventStore, cls: type[ReplicatedActor[Any]], stream_id: str, version: int) -> bytes:
    if stream_kind(stream_id) != cls.kind:
        # Another rule for the same events is another class, with a kind of its own.
        cls = type(cls.__name__, (cls,), {"__module__": cls.__module__}, kind=stream_kind(stream_id))
    key = stream_id[len(cls.kind) + 1 :]
    folded = await fold(store, cls, key, through=version, use_snapshots=False)
    return cls.state_type.dump(folded.state)


def _reason(before: Stamp, after: Stamp) -> str:
    if after.has_seen(before):
        return "it was written after the one before"
    if before.time != after.time:
        return f"its time is {after.time - before.time} µs later than that of the one before"
    return f"both have one time: of {escaped(after.origin)} and {escaped(before.origin)} the lower name stands last"


def _version(conflict: Conflict) -> int:
    return conflict.event.recorded.version


def _cells(conflict: Conflict) -> tuple[str, ...]:
    recorded, stamp = conflict.event
    return (
        escaped(recorded.stream_id),
        str(recorded.version),
        escaped(stamp.origin),
        escaped(recorded.type),
        str(len(conflict.against)),
        ",".join(str(side.recorded.version) for side in conflict.against),
        ",".join(sorted({escaped(side.stamp.origin) for side in conflict.against})),
    )


def _record(conflict: Conflict) -> dict[str, Any]:
    recorded, stamp = conflict.event
    return {
        "stream_id": recorded.stream_id,
        "version": recorded.version,
        "origin": stamp.origin,
        "type": recorded.type,
        "payload": json_fragment(checked_payload(recorded)),
        "recorded_at": timestamp(recorded.recorded_at),
        "against": [_side_record(side, "") for side in conflict.against],
    }


def _side_record(side: _Side, reason: str) -> dict[str, Any]:
    recorded, stamp = side
    return {
        "version": recorded.version,
        "origin": stamp.origin,
        "sequence": stamp.sequence,
        "clock": dict(stamp.clock.items()),
        "time": stamp.time,
        "type": recorded.type,
        "payload": json_fragment(checked_payload(recorded)),
        "reason": reason,
    }


_COLUMNS = ("STREAM", "VERSION", "ORIGIN", "TYPE", "MET", "VERSIONS", "WRITTEN BY")
_CONFLICTS = View(_COLUMNS, _cells, _record, 5, frozenset({"VERSION", "MET"}))

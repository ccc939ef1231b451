"""PartitionStatus: how far a projection is, in each of its partitions, and how that is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eventstore.cli.escaping import escaped, one_line, printable
from eventstore.cli.exits import CommandFailed
from eventstore.cli.messages import Messages
from eventstore.cli.output import View, counted, write_json, write_line
from eventstore.contract.checkpoint import Checkpoint
from eventstore.errors import ProjectionError
from eventstore.read_models.projection_control import is_run, live_checkpoints, seconds_silent
from eventstore.store import EventStore


class PartitionStatus(NamedTuple):
    """`lag` counts positions of the log."""

    checkpoint: Checkpoint
    lag: int


async def status_of(store: EventStore, name: str) -> list[PartitionStatus]:
    """Of the live version, each partition. Raises as `live_checkpoints_named` does."""
    parts = await live_checkpoints_named(store, name)
    end = await store.end()
    return [PartitionStatus(part, max(0, end - part.position)) for part in parts]


async def live_checkpoints_named(store: EventStore, name: str) -> list[Checkpoint]:
    """Those of a projection's live version. Raises `CommandFailed`, with the names that there are."""
    try:
        return await live_checkpoints(store, name)
    except ProjectionError as error:
        known = sorted({one.name for one in await store.checkpoints()})
        raise CommandFailed(f"{error}; there are: {', '.join(map(escaped, known)) or 'none'}") from error


async def say_where(store: EventStore, name: str, messages: Messages) -> None:
    """Tell how far a projection is, behind a command that moved it."""
    rows = await status_of(store, name)
    last = max(rows, key=lambda row: row.lag)
    lag = f"{counted(last.lag, 'position')} behind the end of the log" if last.lag else "at the end of the log"
    events = sum(row.checkpoint.events for row in rows)
    write_line(
        (f"{escaped(name)}: ", "bold"),
        (f"position {last.checkpoint.position:,}, {lag}, {counted(events, 'event')} applied", ""),
    )
    if letters := sum(len(row.checkpoint.letters) for row in rows):
        messages.note(f"{counted(letters, 'event')} could not be applied: eventstore dead-letters list shows which")


async def write_status(store: EventStore, name: str) -> None:
    """The same as an object, as `status --json` has it."""
    rows = await status_of(store, name)
    write_json(record_of(rows))


def fields_of(name: str, rows: Sequence[PartitionStatus]) -> Mapping[str, str]:
    """The status of one projection as fields."""
    last = max(rows, key=lambda row: row.lag)
    checkpoint = last.checkpoint
    fields = {
        "projection": escaped(name),
        "version": f"{checkpoint.version}",
        "state": _state(checkpoint),
        "position": f"{checkpoint.position:,}, {last.lag:,} behind the end of the log",
        "events": f"{sum(row.checkpoint.events for row in rows):,}",
        "dead letters": f"{sum(len(row.checkpoint.letters) for row in rows):,}",
        "changed": checkpoint.updated_at,
    }
    if len(rows) > 1:
        del fields["state"], fields["changed"]
        fields["position"] += ", the last partition"
        fields |= {f"partition {row.checkpoint.partition}": _partition(row) for row in rows}
    elif checkpoint.runner_name:
        fields["runner"] = printable(checkpoint.runner_name) + ("" if checkpoint.runner else " (it has ended)")
    if checkpoint.pause is not None:
        fields["paused"] = one_line(checkpoint.pause)
    return fields


def _partition(row: PartitionStatus) -> str:
    found = row.checkpoint
    runner = f" by {printable(found.runner_name)}" if found.runner else ""
    return f"position {found.position:,}, {row.lag:,} behind, {counted(found.events, 'event')}, {_state(found)}{runner}"


def _state(checkpoint: Checkpoint) -> str:
    if checkpoint.pause is not None:
        return "paused"
    state = str(checkpoint.status)
    if not checkpoint.runner:
        return f"{state}, not running"
    return (
        f"{state}, running" if is_run(checkpoint) else f"{state}, not heard of for {seconds_silent(checkpoint):,.0f} s"
    )


def record_of(rows: Sequence[PartitionStatus]) -> dict[str, Any]:
    """The status of one projection as an object."""
    return _record(rows[0]) if len(rows) == 1 else _record_of_all(rows)


def _record(row: PartitionStatus) -> dict[str, Any]:
    found = row.checkpoint
    return {
        "name": found.name,
        "version": found.version,
        "partition": found.partition,
        "partitions": found.partitions,
        "status": found.status,
        "position": found.position,
        "lag": row.lag,
        "events": found.events,
        "checksum": found.checksum.hex(),
        "dead_letters": len(found.letters),
        "paused": found.pause,
        "runner": found.runner_name if found.runner else None,
        "updated_at": found.updated_at,
    }


def _record_of_all(rows: Sequence[PartitionStatus]) -> dict[str, Any]:
    """A projection in several partitions: as far as the last of them is, with the sums of all."""
    last = max(rows, key=lambda row: row.lag)
    letters = sum(len(row.checkpoint.letters) for row in rows)
    return {
        "name": last.checkpoint.name,
        "version": last.checkpoint.version,
        "status": last.checkpoint.status,
        "position": last.checkpoint.position,
        "lag": last.lag,
        "events": sum(row.checkpoint.events for row in rows),
        "dead_letters": letters,
        "partitions": [_record(row) for row in rows],
    }


def _cells(row: PartitionStatus) -> tuple[str, ...]:
    found = row.checkpoint
    return (
        escaped(found.name) + ("" if found.partitions == 1 else f" {found.partition} of {found.partitions}"),
        str(found.version),
        str(found.position),
        str(row.lag),
        str(found.events),
        str(len(found.letters)),
        _state(found) if found.pause is None else f"paused: {one_line(found.pause)}",
    )


PROJECTIONS = View(
    ("NAME", "VERSION", "POSITION", "LAG", "EVENTS", "DEAD", "STATE"),
    _cells,
    _record,
    6,
    frozenset({"VERSION", "POSITION", "LAG", "EVENTS", "DEAD"}),
)

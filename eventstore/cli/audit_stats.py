"""`eventstore audit stats`: how much there is in the journal, when it came, and of what."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from eventstore.auditing.audit_totals import totals
from eventstore.cli.arguments import Json, Url, whole
from eventstore.cli.audit_filters import filtered
from eventstore.cli.escaping import escaped
from eventstore.cli.exits import Exit
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import counted, drawn, flush, timestamp, write, write_fields, write_json, write_line
from eventstore.contract.audit_query import AuditQuery, AuditTotals, Count
from eventstore.store import EventStore

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_HOURS_A_DAY = 24
_HOURS_SHOWN = 48
_BAR = 30
_WIDEST_NAME = 40
# Eighths of a cell, so that short bars differ too.
_EIGHTHS = " ▏▎▍▌▋▊▉"


def stats(
    context: typer.Context,
    url: Url,
    query: AuditQuery,
    top: Annotated[
        int, typer.Option(metavar="COUNT", parser=whole(0, 1000), help="So many of the most frequent, up to 1,000.")
    ] = 10,
    json: Json = False,
) -> Exit:
    """Count the events of the journal, or those that the options leave: how many, how large, when, of what, by whom.

    Sizes are those of payloads and metadata. Where the output is no terminal, each line has: what is counted, its name,
    its events.

    \b
    Examples:
      eventstore audit stats sqlite:///bank.db
      eventstore audit stats sqlite:///bank.db --kind Account --from -7d --json
    """
    return asyncio.run(_stats(context.obj, url, query, top, json=json))


async def _stats(messages: Messages, url: str, query: AuditQuery, top: int, *, json: bool) -> Exit:
    async with EventStore.open(url, create=False) as store:
        found = await totals(store, query, top=top)
        if not found.events:
            await note_nothing(messages, store, "event", kinds=query.where.kinds, is_narrowed=query != AuditQuery())
    if json:
        write_json(_record(found))
    elif sys.stdout.isatty():
        _show(found)
    else:
        _list(found)
    flush()
    if not found.is_exact:
        messages.note("there are too many names to count each: the counts of streams, types and users may be too high")
    return Exit.FINE


def _record(found: AuditTotals) -> Mapping[str, object]:
    return {
        "events": found.events,
        "payload_bytes": found.payload_bytes,
        "metadata_bytes": found.metadata_bytes,
        "first": None if found.first is None else timestamp(found.first),
        "last": None if found.last is None else timestamp(found.last),
        "events_per_hour": _rate(found, 1),
        "events_per_day": _rate(found, _HOURS_A_DAY),
        "days": dict(_days(found)),
        "hours": dict(_hours(found)),
        "types": _counts(found.types),
        "streams": _counts(found.streams),
        "users": _counts(found.users),
        "end": found.end,
        "is_exact": found.is_exact,
    }


def _list(found: AuditTotals) -> None:
    rows: list[tuple[str, str, int]] = [
        ("events", "all", found.events),
        ("payload bytes", "all", found.payload_bytes),
        ("metadata bytes", "all", found.metadata_bytes),
    ]
    rows += [("day", day, events) for day, events in _days(found)]
    rows += [("hour", hour, events) for hour, events in _hours(found)]
    for what, counts in (("type", found.types), ("stream", found.streams), ("user", found.users)):
        rows += [(what, "" if name is None else escaped(name), events) for name, events in counts]
    for what, name, number in rows:
        write(f"{what}\t{name}\t{number}\n")


def _show(found: AuditTotals) -> None:
    fields = {
        "events": f"{found.events:,}",
        "payloads": _size(found.payload_bytes, found.events),
        "metadata": _size(found.metadata_bytes, found.events),
    }
    if found.first is not None and found.last is not None:
        fields["first"], fields["last"] = timestamp(found.first), timestamp(found.last)
        fields["rate"] = f"{_rate(found, 1):,.1f} an hour, {_rate(found, _HOURS_A_DAY):,.1f} a day"
    write_fields(fields)
    if not found.events:
        return
    days, hours = _days(found), _hours(found)
    _bars("by day, the last of them", days[-_HOURS_SHOWN:] if len(days) > 1 else [])
    _bars("by hour", hours if len(days) <= 2 else [])
    _bars("types", _named(found.types))
    _bars("streams", _named(found.streams))
    _bars("users", _named(found.users))


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> None:
    if not rows:
        return
    from rich.cells import cell_len, set_cell_size

    most = max(1, *(events for _, events in rows))
    width = min(_WIDEST_NAME, max(cell_len(name) for name, _ in rows))
    digits = max(len(f"{events:,}") for _, events in rows)
    write_line(("", ""))
    write_line((title, "bold"))
    for name, events in rows:
        shown = name if cell_len(name) <= width else set_cell_size(name, width - 1) + drawn("…")
        eighths = round(events / most * _BAR * 8)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        write_line((set_cell_size(shown, width), ""), (f"  {events:>{digits},}  ", ""), (drawn(bar), "cyan"))


def _named(counts: Iterable[Count]) -> list[tuple[str, int]]:
    return [("(none)" if name is None else escaped(name), events) for name, events in counts]


def _counts(counts: Iterable[Count]) -> list[Mapping[str, object]]:
    return [{"name": name, "events": events} for name, events in counts]


def _days(found: AuditTotals) -> list[tuple[str, int]]:
    days: Counter[int] = Counter()
    for hour, events in found.hours.items():
        days[hour // _HOURS_A_DAY] += events
    return [((_EPOCH_START + timedelta(days=day)).date().isoformat(), days[day]) for day in sorted(days)]


def _hours(found: AuditTotals) -> list[tuple[str, int]]:
    """The last hours with events."""
    hours = sorted(found.hours)[-_HOURS_SHOWN:]
    return [(f"{_EPOCH_START + timedelta(hours=hour):%Y-%m-%dT%H:00Z}", found.hours[hour]) for hour in hours]


def _rate(found: AuditTotals, hours: int) -> float:
    """Events in so many hours, on average from the first to the last; all of them, if they came within that."""
    if found.first is None or found.last is None:
        return 0.0
    periods = max((found.last - found.first).total_seconds() / (hours * 3600), 1.0)
    return round(found.events / periods, 3)


def _size(size_bytes: int, events: int) -> str:
    return counted(size_bytes, "byte") + (f", {size_bytes / events:,.0f} an event" if events else "")


stats_command = filtered(stats)

"""Processes that own streams: their leases in words, and what they report of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast

import orjson

from eventstore.backend import OwnerInfo
from eventstore.cli.escaping import escaped, one_line
from eventstore.cli.output import json_fragment, timestamp, write_line

_MINUTE, _HOUR = 60, 3600


def lease_words(info: OwnerInfo) -> str:
    """How long a lease still runs, or for how long it has run out, by the database's clock."""
    if is_running(info):
        return f"runs for {_span(info.remaining)}"
    return f"ran out {_span(-info.remaining)} ago"


def is_running(info: OwnerInfo) -> bool:
    """Whether the streams of this process are its own. Else whoever wants them may claim them."""
    return info.remaining > 0


def process_record(info: OwnerInfo) -> dict[str, Any]:
    """A process as JSON. Its report is given as it is, or as null if it is not an object."""
    return {
        "id": info.id.hex(),
        "name": info.name,
        "is_running": is_running(info),
        "remaining": info.remaining,
        "renewals": info.renewals,
        "report": json_fragment(info.report) if _parsed(info.report) is not None else None,
    }


def write_process(info: OwnerInfo) -> None:
    """Write a process, and what this version understands of its report, as indented lines."""
    lines = {"lease": lease_words(info), **dict(_reported(_parsed(info.report) or {}))}
    width = max(map(len, lines))
    write_line(("process ", "bold"), (escaped(info.name), ""))
    for name, value in lines.items():
        write_line((f"  {name:<{width}}  ", "bold"), (value, ""))


def _span(seconds: float) -> str:
    if seconds < 2 * _MINUTE:
        return f"{seconds:.1f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.0f} h"


def _parsed(report: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(report)
    except orjson.JSONDecodeError:
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _reported(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Another version of this package may have written it: what is not there, or not what it was, is left out."""
    words = (("live", "in memory"), ("recovering", "recovering"), ("stopped", "stopped"))
    if actors := [f"{report[key]:,} {word}" for key, word in words if _is_count(report.get(key))]:
        yield "actors", ", ".join(actors)
    for name, key in (("restarts", "restarts"), ("dead letters", "dead_letters")):
        if _is_count(report.get(key)):
            yield name, f"{report[key]:,}"
    if failure := _failure(report.get("last_failure")):
        yield "last failure", failure
    most = report.get("most_restarted")
    counts = cast("dict[str, Any]", most).items() if isinstance(most, dict) else ()
    if named := [f"{escaped(actor)} ({count:,})" for actor, count in counts if _is_count(count)]:
        yield "most restarted", ", ".join(named)


def _failure(last: Any) -> str:
    if not isinstance(last, dict):
        return ""
    texts = {name: value for name, value in cast("dict[str, Any]", last).items() if isinstance(value, str)}
    actor, error = escaped(texts.get("actor", "")), one_line(texts.get("error", ""))
    what = ": ".join(part for part in (actor, error) if part)
    return "  ".join(part for part in (_time(texts.get("at", "")), what) if part)


def _time(text: str) -> str:
    try:
        return timestamp(datetime.fromisoformat(text))
    except ValueError:
        return one_line(text)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0

"""Of which positions a statement of an audit answers, and what its rows come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from backends.times import nearest_time
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals, Count
from eventstore.contract.record_page import RecordPage

SCANNED_POSITIONS = 50_000
"""So many positions are looked at in one statement, where no index leads to the events."""


def is_scan(query: AuditQuery, *, by_streams: bool) -> bool:
    """Whether no index leads to the events, so that the log has to be looked through. `by_streams` says that the
    streams' events are looked up."""
    has_index = by_streams or query.users or query.correlation_ids
    looks_inside = query.payload or query.metadata or query.where.tags or query.causation_ids or query.command_ids
    return bool(looks_inside) or not has_index


class Part(NamedTuple):
    """The positions that one statement looks at: after `low`, up to `high`. `is_last` says that none are left then."""

    low: int
    high: int
    is_last: bool

    @property
    def bounds(self) -> Mapping[str, int]:
        """As a statement's parameters."""
        return {"low": self.low, "high": self.high}

    def page(self, query: AuditQuery, found: RecordPage, *, is_full: bool, backwards: bool, end: int) -> AuditPage:
        """The answer, of the candidates that a statement found here, in the order asked for. If it `is_full`, there may
        be more here."""
        if is_full and found.positions:
            position, is_end = found.positions[-1], False
        else:
            position, is_end = self.low + 1 if backwards else max(self.low, self.high), self.is_last
        return AuditPage(query.matching(found), position, is_end, end, query)


def part_of(query: AuditQuery, *, cursor: int | None, end: int, backwards: bool, is_scan: bool) -> Part:
    """What is left of a query's positions behind the cursor; of a scan so much as one statement may look at."""
    low, high = query.after, end if query.through is None else min(end, query.through)
    if cursor is not None:
        low, high = (low, min(high, cursor - 1)) if backwards else (max(low, cursor), high)
    if high - low <= SCANNED_POSITIONS or not is_scan:
        return Part(low, high, is_last=True)
    if backwards:
        return Part(high - SCANNED_POSITIONS, high, is_last=False)
    return Part(low, low + SCANNED_POSITIONS, is_last=False)


def totals_of(
    sums: Sequence[Any], hours: Iterable[Any], counted: Sequence[Sequence[Count]], *, end: int
) -> AuditTotals:
    """The totals, out of the rows of a database: events, bytes, bytes, first and last time, in microseconds."""
    events, payload_bytes, metadata_bytes, first, last = sums
    types, streams, users = counted
    return AuditTotals(
        int(events),
        int(payload_bytes),
        int(metadata_bytes),
        None if first is None else nearest_time(first),
        None if last is None else nearest_time(last),
        {int(hour): int(count) for hour, count in hours},
        types,
        streams,
        users,
        end,
    )


def located(query: AuditQuery, first: Any, last: Any) -> AuditQuery:
    """The query within these positions; if there are none, without any."""
    if first is None:
        return replace(query, through=query.after, is_located=True)
    return replace(query, after=int(first) - 1, through=int(last), is_located=True)

"""AuditQuery: which events of the whole journal are asked for, and the pages and totals that answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from eventstore.contract.event_filter import EventFilter
from eventstore.contract.json_condition import JsonCondition, exact_json
from eventstore.contract.pages import MAX_POSITION
from eventstore.errors import InvalidQuery
from eventstore.events import Metadata, RecordedEvent

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING = Metadata()


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which events are wanted: each field that is set must match; within a field, any value.

    `where` is what reading the log can be filtered by, too. Times are aware: `recorded_from` <= recorded_at <
    `recorded_before`, to the microsecond. Positions are `after` < position <= `through`. `payload` conditions look into
    the payload as it is stored, `metadata` conditions into the metadata's `values`; all of them must hold. Of a key
    that a payload has twice either may be looked at.

    Raises `InvalidQuery` for what no event can match by its form.
    """

    where: EventFilter = field(default_factory=EventFilter)
    users: tuple[str, ...] = ()
    correlation_ids: tuple[str, ...] = ()
    causation_ids: tuple[str, ...] = ()
    command_ids: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    recorded_from: datetime | None = None
    recorded_before: datetime | None = None
    after: int = 0
    through: int | None = None
    payload: tuple[JsonCondition, ...] = ()
    metadata: tuple[JsonCondition, ...] = ()
    # The range of positions covers that of the times already (`AuditPage.rest`).
    is_located: bool = False

    def __post_init__(self) -> None:
        for moment in (self.recorded_from, self.recorded_before):
            if moment is not None and moment.tzinfo is None:
                raise InvalidQuery(f"{moment} has no offset from UTC: times of an audit are aware")
        for number in (*self.epochs, self.after, 0 if self.through is None else self.through):
            if not 0 <= number <= MAX_POSITION:
                raise InvalidQuery(f"{number} is no position and no epoch: they are 0 to {MAX_POSITION}")
        for texts in (*self.where, *self.labels.values(), self.origins):
            for text in texts:
                _check_text(text)

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """The values that are wanted of the metadata's own fields, by the fields' names."""
        return {
            "user": self.users,
            "correlation_id": self.correlation_ids,
            "causation_id": self.causation_ids,
            "command_id": self.command_ids,
        }

    @property
    def recorded_us(self) -> tuple[int | None, int | None]:
        """The bounds of the time in microseconds since 1970, from the first that is wanted to the first that is not."""
        return _microseconds(self.recorded_from), _microseconds(self.recorded_before)

    @property
    def is_plain(self) -> bool:
        """Whether columns alone decide, and nothing within a payload or metadata."""
        return not (any(self.labels.values()) or self.where.tags or self.payload or self.metadata)

    def matching(self, events: Iterable[RecordedEvent]) -> Iterable[RecordedEvent]:
        """Those that match in everything but kind, type, stream, tenant and position, which backends look at: each is
        looked at when it is its turn."""
        for is_wanted in self._conditions():
            events = filter(is_wanted, events)
        return events

    def _conditions(self) -> Iterator[Callable[[RecordedEvent], bool]]:
        for name, wanted in self.labels.items():
            if wanted:
                yield partial(_has_label, attrgetter(name), wanted)
        if self.where.tags:
            tags = set(self.where.tags)
            yield lambda event: event.metadata is not None and not tags.isdisjoint(event.metadata.tags)
        if self.origins:
            yield lambda event: event.origin in self.origins
        if self.epochs:
            yield lambda event: event.epoch in self.epochs
        first, before = self.recorded_from, self.recorded_before
        if first is not None:
            yield lambda event: event.recorded_at >= first
        if before is not None:
            yield lambda event: event.recorded_at < before
        for condition in self.metadata:
            yield partial(_has_value, condition)
        if self.payload:
            yield lambda event: _holds(self.payload, event.payload)


def _has_label(label: Callable[[Metadata], str | None], wanted: Sequence[str], event: RecordedEvent) -> bool:
    return label(event.metadata or _NOTHING) in wanted


def _has_value(condition: JsonCondition, event: RecordedEvent) -> bool:
    return condition.holds((event.metadata or _NOTHING).values)


class AuditPage(NamedTuple):
    """Part of the answer, in the order that was asked for.

    Whoever makes a page may make its events when it is gone through: that may raise `JournalCorrupt`.
    `position` is how far the log has been looked through: the next page goes on there, even when nothing was found.
    `is_end` says that there was no more when the page was read, and `end` where the log ended then. `rest` is the query
    to go on with: the same, within the positions that its times leave.
    """

    events: Iterable[RecordedEvent]
    position: int
    is_end: bool
    end: int
    rest: AuditQuery


class Count(NamedTuple):
    """How many events there are of something. `name` is None for those without it."""

    name: str | None
    events: int


class AuditTotals(NamedTuple):
    """Sums over the events that match, up to position `end`.

    Sizes are bytes of UTF-8, of payloads and of metadata. `hours` has the number of events by the hour, as hours since
    1970, for hours with any. `types`, `streams` and `users` are the most frequent, the most frequent first. Where
    `is_exact` is False, `streams` and `users` were too many to be counted one by one, and the frequent ones among them
    may have some more events than shown.
    """

    events: int
    payload_bytes: int
    metadata_bytes: int
    first: datetime | None
    last: datetime | None
    hours: Mapping[int, int]
    types: Sequence[Count]
    streams: Sequence[Count]
    users: Sequence[Count]
    end: int
    is_exact: bool = True


def _holds(conditions: Iterable[JsonCondition], payload: bytes) -> bool:
    document = _document(payload)
    return all(condition.holds(document) for condition in conditions)


def _document(payload: bytes) -> Any:
    try:
        return exact_json(payload)
    except (ValueError, RecursionError):
        # What is no JSON, or nested beyond all use, has nothing at any place.
        return None


def _microseconds(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH_START) // timedelta(microseconds=1)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidQuery(f"{text!r} is no text that UTF-8 can encode: no event has it") from error

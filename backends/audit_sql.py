"""An audit's conditions as SQLAlchemy Core has them, for both SQL databases.

A database narrows down which events may match, `AuditQuery.passes` decides: numbers that a database rounds and JSON
that it cannot hold are left to that. So a condition may let through too much, and never too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import product
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    MetaData,
    Numeric,
    Select,
    SelectBase,
    String,
    Table,
    Text,
    and_,
    any_,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.functions import Function

from backends.tables import (
    INDEXED_LABELS,
    LABEL_CHARACTERS,
    MAY_HAVE_LABEL,
    journal_events,
    journal_streams,
    postgres_metadata,
    sqlite_label,
)
from backends.times import nearest_time
from eventstore.audit_query import MAX_POSITION, AuditPage, AuditQuery, AuditTotals, Count
from eventstore.events import RecordedEvent
from eventstore.json_condition import JsonCondition, JsonScalar, Operator, is_index

SCANNED_POSITIONS = 50_000
"""So many positions are looked at in one statement, where no index leads to the events."""

PAGE_BYTES = 2 * 1024 * 1024
"""A page has no more events than fit in here, whatever its limit: nobody knows before how large they are."""

UNREADABLE = "\x01"
"""What the labels of metadata are that a database cannot read."""

# The expressions of the indexes, to the letter.
_SQLITE_LABELS: dict[str, ColumnElement[str]] = {
    name: literal_column(sqlite_label(name), Text) for name in ("user", "correlation_id", "causation_id", "command_id")
}

HOUR_US = 3_600_000_000

_SAFE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_INDEXES = 3
_LARGEST = Decimal("1e300")
_SLACK = 1e-9

_Condition = ColumnElement[bool]


def is_scan(query: AuditQuery) -> bool:
    """Whether no index leads to the events, so that the log has to be looked through."""
    where = query.where
    has_index = where.kinds or where.stream_ids or query.users or query.correlation_ids
    looks_inside = query.payload or query.metadata or where.tags or query.causation_ids or query.command_ids
    return bool(looks_inside) or not has_index


class Part(NamedTuple):
    """The positions that one statement looks at: after `low`, up to `high`. `is_last` says that none are left then."""

    low: int
    high: int
    is_last: bool

    def page(self, query: AuditQuery, found: Found, events: Sequence[RecordedEvent], *, end: int) -> AuditPage:
        """The answer, of the candidates that a statement found here, once they were read."""
        if found.is_full:
            position, is_end = found.positions[-1], False
        else:
            position, is_end = self.low + 1 if found.backwards else max(self.low, self.high), self.is_last
        return AuditPage([event for event in events if query.passes(event)], position, is_end, end, query)


class Found(NamedTuple):
    """Where candidates stand, in the order asked for. `is_full` says that there may be more here."""

    positions: Sequence[int]
    is_full: bool
    backwards: bool

    @classmethod
    def of(cls, sizes: Sequence[Any], *, limit: int, backwards: bool) -> Found:
        """As many of these as a page may have in bytes, and one in any case. `sizes` are positions with their bytes."""
        positions: list[int] = []
        room = PAGE_BYTES
        for position, size in sizes:
            if positions and size > room:
                return cls(positions, is_full=True, backwards=backwards)
            positions.append(position)
            room -= size
        return cls(positions, len(positions) >= limit > 0, backwards)


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


class AuditSQL:
    """What is the same in both databases. Every value is a parameter."""

    def __init__(self, events: Table, streams: Table) -> None:
        self.events = events
        self.streams = streams

    def conditions(self, query: AuditQuery, part: Part, *, with_unreadable: bool = False) -> list[_Condition]:
        """What an event must be, but for the query's filter of the log (`where`)."""
        e = self.events.c
        found: list[_Condition] = [e.position > part.low, e.position <= part.high]
        for name, wanted in query.labels.items():
            if wanted:
                texts = [text[:LABEL_CHARACTERS] for text in wanted]
                texts += [UNREADABLE] if with_unreadable else []
                found += [self.may_have(name), self.among(self.label(name), texts)]
        if query.origins:
            found.append(self.among(e.origin, query.origins))
        if query.epochs:
            found.append(e.epoch.in_(query.epochs))
        found += self.in_time(query)
        for conditions, column, prefix in ((query.payload, e.payload, ()), (query.metadata, e.metadata, ("values",))):
            for condition in conditions:
                if (compiled := self.json(column, condition, prefix)) is not None:
                    found += [column.is_not(None), compiled]
        return found

    def span_of_time(self, query: AuditQuery, part: Part) -> SelectBase:
        """The first and the last position of the events in the query's time. NULL if there are none."""
        position = self.events.c.position
        # The sum keeps the planner from walking through the log until it meets the first.
        return select(func.min(position + 0), func.max(position + 0)).where(
            position > part.low, position <= part.high, *self.in_time(query)
        )

    def in_time(self, query: AuditQuery) -> list[_Condition]:
        """What an event's time must be."""
        start, end = query.recorded_us
        recorded_at = self.events.c.recorded_at
        # Beyond what a database holds, every event is before or behind it.
        found = [] if start is None else [recorded_at >= max(start, -MAX_POSITION)]
        return found if end is None else [*found, recorded_at < min(end, MAX_POSITION)]

    def among(self, column: ColumnElement[Any], texts: Sequence[str]) -> _Condition:
        """Whether a text is one of these. No column holds a NUL."""
        return column.in_([text for text in texts if "\0" not in text])

    def unreadable(self) -> Select[Any]:
        """One event whose metadata the database cannot tell the labels of, if there is any."""
        label = self.label("user")
        return select(self.events.c.position).where(self.may_have("user"), label == UNREADABLE).limit(1)

    def may_have(self, name: str) -> _Condition:
        """Whether there can be such a label, exactly as its index, if it has one, says which events are in it."""
        return self.events.c.metadata.is_not(None)

    def label(self, name: str) -> ColumnElement[str]:
        """The beginning of a text of the metadata's own, or `UNREADABLE`, exactly as the indexes have it."""
        raise NotImplementedError

    def json(self, column: ColumnElement[Any], condition: JsonCondition, prefix: tuple[str, ...]) -> _Condition | None:
        """A condition on what stands in a JSON text. None where only looking at every event can tell."""
        raise NotImplementedError


class SQLiteAuditSQL(AuditSQL):
    """SQLite: JSON is text, and its functions fail on what is no JSON, so that has to be asked first."""

    def __init__(self) -> None:
        super().__init__(journal_events, journal_streams)

    def label(self, name: str) -> ColumnElement[str]:
        """A field of the metadata, exactly as the indexes have it."""
        return _SQLITE_LABELS[name]

    def json(self, column: ColumnElement[Any], condition: JsonCondition, prefix: tuple[str, ...]) -> _Condition | None:
        paths = _sqlite_paths((*prefix, *condition.pointer))
        if not paths:
            return None
        alternatives = [_sqlite_comparison(column, path, condition) for path in paths]
        # An escape may stand for any letter, in a key too, and not every version of SQLite knows.
        escapes = func.instr(column, "\\u") > 0
        return case((func.json_valid(column) == 1, or_(*alternatives, escapes)), else_=true())


class PostgresAuditSQL(AuditSQL):
    """Postgres: the journal's own functions make jsonb of the texts, and NULL of what jsonb cannot hold."""

    def __init__(self, schema: str, tenant: str) -> None:
        self._tenant = tenant
        self._schema = quoted_name(schema, quote=True)
        named = MetaData()
        tables = postgres_metadata.tables
        super().__init__(
            tables["journal_events"].to_metadata(named, schema=self._schema),
            tables["journal_streams"].to_metadata(named, schema=self._schema),
        )

    def among(self, column: ColumnElement[Any], texts: Sequence[str]) -> _Condition:
        known = [text for text in texts if "\0" not in text]
        # One value is looked up in the index in the order of the log; several would have to be sorted.
        return column == known[0] if len(known) == 1 else column == any_(literal(known, ARRAY(Text)))

    def label(self, name: str) -> ColumnElement[str]:
        """A field of the metadata, exactly as the indexes have it."""
        # The name is a constant of the statement, because an index serves its very own expression and no other.
        return self.function("journal_label", self.events.c.metadata, literal_column(f"'{name}'"), type_=Text())

    def may_have(self, name: str) -> _Condition:
        return literal_column(f"({MAY_HAVE_LABEL})", Boolean) if name in INDEXED_LABELS else super().may_have(name)

    def text_of_metadata(self, name: str) -> ColumnElement[str]:
        """A text of the metadata's own, or NULL."""
        document = self.function("journal_json", self.events.c.metadata, type_=JSONB())
        return document.op("->>", return_type=Text())(literal_column(f"'{name}'"))

    def function(self, name: str, *arguments: Any, type_: Any) -> Function[Any]:
        """A call of one of the journal's functions."""
        return Function(name, *arguments, type_=type_, packagenames=(self._schema,))

    def where(self, query: AuditQuery) -> list[_Condition]:
        """What reading the log can be filtered by, too (`EventFilter`)."""
        e, s, where = self.events.c, self.streams.c, query.where
        pairs = (
            (s.kind, where.kinds),
            (e.type, where.types),
            (s.stream_id, where.stream_ids),
            (s.tenant, where.tenants),
        )
        found = [self.among(column, wanted) for column, wanted in pairs if wanted]
        if self._tenant:
            found.append(s.tenant == self._tenant)
        if where.tags:
            document = self.function("journal_json", e.metadata, type_=JSONB())
            tags = literal([tag for tag in where.tags if "\0" not in tag], ARRAY(Text))
            has_one = document[literal("tags", Text)].bool_op("?|")(tags)
            found.append(or_(has_one, and_(e.metadata.is_not(None), document.is_(None))))
        return found

    def json(self, column: ColumnElement[Any], condition: JsonCondition, prefix: tuple[str, ...]) -> _Condition | None:
        pointer = (*prefix, *condition.pointer)
        if any("\0" in token for token in pointer):
            return None
        document = self.function("journal_json", column, type_=JSONB())
        place = document.op("#>", return_type=JSONB())(literal(list(pointer), ARRAY(Text)))
        return or_(document.is_(None), _postgres_comparison(document, place, pointer, condition))


def _postgres_comparison(
    document: ColumnElement[Any], place: ColumnElement[Any], pointer: tuple[str, ...], condition: JsonCondition
) -> _Condition:
    kind = func.jsonb_typeof(place, type_=Text())
    text = document.op("#>>", return_type=Text())(literal(list(pointer), ARRAY(Text)))
    match condition.operator, condition.value:
        case (Operator.EXISTS | Operator.UNEQUAL | Operator.CONTAINS, _):
            return place.is_not(None)
        case (operator, str() as value):
            if "\0" in value:
                return false() if operator is Operator.EQUAL else kind == "string"
            return and_(kind == "string", _compared(operator, text.collate("C"), literal(value, Text)))
        case (_, None):
            return kind == "null"
        case (_, bool() as value):
            return and_(kind == "boolean", text == literal("true" if value else "false", Text))
        case (operator, number):
            bounds = _widened(number)
            if bounds is None:
                return kind == "number"
            low, high = (literal(Decimal(repr(bound)), Numeric) for bound in bounds)
            # Only what is a number is taken for one: in an AND the order of evaluation is the planner's.
            return case((kind == "number", _between(operator, cast(text, Numeric), low, high)), else_=false())


def _sqlite_comparison(column: ColumnElement[Any], path: str, condition: JsonCondition) -> _Condition:
    kind = func.json_type(column, path, type_=String())
    found = func.json_extract(column, path, type_=String())
    match condition.operator, condition.value:
        case (Operator.EXISTS | Operator.UNEQUAL | Operator.CONTAINS, _):
            return kind.is_not(None)
        case (operator, str() as value):
            if "\0" in value:
                return kind == "text"
            return and_(kind == "text", _compared(operator, found, literal(value)))
        case (_, None):
            return kind == "null"
        case (_, bool() as value):
            return kind == ("true" if value else "false")
        case (operator, number):
            bounds = _widened(number)
            is_number = kind.in_(("integer", "real"))
            if bounds is None:
                return is_number
            low, high = (literal(bound) for bound in bounds)
            return and_(is_number, _between(operator, found, low, high))


def _compared(operator: Operator, found: ColumnElement[Any], value: ColumnElement[Any]) -> _Condition:
    match operator:
        case Operator.LESS:
            return found < value
        case Operator.LESS_OR_EQUAL:
            return found <= value
        case Operator.GREATER:
            return found > value
        case Operator.GREATER_OR_EQUAL:
            return found >= value
        case _:
            return found == value


def _between(
    operator: Operator, found: ColumnElement[Any], low: ColumnElement[Any], high: ColumnElement[Any]
) -> _Condition:
    match operator:
        case Operator.LESS | Operator.LESS_OR_EQUAL:
            return found <= high
        case Operator.GREATER | Operator.GREATER_OR_EQUAL:
            return found >= low
        case _:
            return found.between(low, high)


def _widened(number: JsonScalar) -> tuple[float, float] | None:
    """Two numbers around one, further away than a database may round. None for one that is too large for that."""
    exact = Decimal(number or 0)
    if abs(exact) > _LARGEST:
        return None
    slack = abs(float(exact)) * _SLACK + 1e-300
    return float(exact) - slack, float(exact) + slack


def _sqlite_paths(pointer: tuple[str, ...]) -> list[str]:
    """The paths that a pointer may stand for: a number is a place in an array or a key. None if a key needs quoting of
    which SQLite's versions have different ideas, or if there are too many."""
    if sum(map(is_index, pointer)) > _MOST_INDEXES:
        return []
    steps: list[list[str]] = []
    for token in pointer:
        if is_index(token):
            if len(token) > 9:
                return []
            steps.append([f"[{token}]", f'."{token}"'])
        elif _SAFE_KEY.fullmatch(token):
            steps.append([f'."{token}"'])
        else:
            return []
    return ["$" + "".join(path) for path in product(*steps)]

"""An audit's conditions as SQLAlchemy Core has them, for both SQL databases.

A database narrows down which events may match, `AuditQuery.matching` decides: numbers that a database rounds and JSON
that it cannot hold are left to that. So a condition may let through too much, and never too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import product
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    MetaData,
    Numeric,
    Select,
    SelectBase,
    String,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    exists,
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
from sqlalchemy.types import TypeEngine

from backends.audit_shape import LABELS_WITH_INDEX, Shape, texts_of
from backends.sqlite_join import InOrder
from backends.tables import (
    INDEXED_LABELS,
    LABEL_CHARACTERS,
    MAY_HAVE_LABEL,
    journal_events,
    journal_streams,
    postgres_metadata,
    sqlite_label,
)
from backends.tenants_sql import TENANTS_FROM
from backends.times import nearest_time
from eventstore.contract.audit_query import MAX_POSITION, AuditPage, AuditQuery, AuditTotals, Count
from eventstore.contract.json_condition import JsonCondition, JsonScalar, Operator, is_index
from eventstore.events import RecordedEvent

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

# One look into the index of streams for each tenant.
_EVERY_TENANT = literal_column(
    "(" + TENANTS_FROM.format(streams="journal_streams", first="''", limit="-1", own="''") + ")", Text
)

_SAFE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_INDEXES = 3
_LARGEST = Decimal("1e300")
_SLACK = 1e-9

_Condition = ColumnElement[bool]


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

    def page(
        self, query: AuditQuery, found: Sequence[RecordedEvent], *, is_full: bool, backwards: bool, end: int
    ) -> AuditPage:
        """The answer, of the candidates that a statement found here, in the order asked for. If it `is_full`, there may
        be more here."""
        found = list(found)
        if found and is_full:
            position, is_end = found[-1].position, False
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


class AuditSQL:
    """What is the same in both databases. Every value is a parameter; those that a shape does not have, by name."""

    def __init__(self, events: Table, streams: Table, tenant: str) -> None:
        self.events = events
        self.streams = streams
        self.joined = events.join(streams, streams.c.id == events.c.stream)
        self._tenant = tenant
        self._labels = {name: self.label(name) for name in AuditQuery().labels}
        self._columns: Mapping[str, ColumnElement[str]] = {
            "kinds": streams.c.kind,
            "types": events.c.type,
            "stream_ids": streams.c.stream_id,
            "tenants": streams.c.tenant,
            "origins": events.c.origin,
            **self._labels,
        }

    def conditions(self, shape: Shape) -> list[_Condition]:
        """What an event must be."""
        e = self.events.c
        found = [*self.positions(), *self.in_streams(shape), *self._among(shape, "types", "origins", *self._labels)]
        found += [self.may_have(name) for name in self._labels if name in shape.asked]
        if "tags" in shape.several:
            found.append(self.tagged())
        if shape.has_epochs:
            found.append(self.is_one_of(e.epoch, "epochs", BigInteger()))
        found += self.in_time(shape)
        for conditions, column, prefix in ((shape.payload, e.payload, ()), (shape.metadata, e.metadata, ("values",))):
            for condition in conditions:
                if (compiled := self.json(column, condition, prefix)) is not None:
                    found += [column.is_not(None), compiled]
        return found

    def positions(self) -> list[_Condition]:
        """That an event is in the part of the log that is looked at."""
        position = self.events.c.position
        return [position > bindparam("low", type_=BigInteger), position <= bindparam("high", type_=BigInteger)]

    def in_streams(self, shape: Shape) -> list[_Condition]:
        """What an event's stream must be."""
        found = self._among(shape, "kinds", "stream_ids", "tenants")
        return [*found, self.streams.c.tenant == self._tenant] if self._tenant else found

    def in_time(self, shape: Shape) -> list[_Condition]:
        """What an event's time must be."""
        recorded_at = self.events.c.recorded_at
        found = [recorded_at >= bindparam("start", type_=BigInteger)] if shape.has_start else []
        return [*found, recorded_at < bindparam("end", type_=BigInteger)] if shape.has_end else found

    def parameters(self, query: AuditQuery, shape: Shape, part: Part) -> dict[str, Any]:
        """The values of the parameters that have names."""
        start, end = query.recorded_us
        # Beyond what a database holds, every event is before or behind it.
        values: dict[str, Any] = {
            "low": part.low,
            "high": part.high,
            "start": None if start is None else max(start, -MAX_POSITION),
            "end": None if end is None else min(end, MAX_POSITION),
            "epochs": self.listed(query.epochs),
        }
        for name, asked in texts_of(query).items():
            # No column holds a NUL.
            texts = [text for text in asked if "\0" not in text]
            if name in self._labels:
                texts = [text[:LABEL_CHARACTERS] for text in texts]
            if name in shape.one:
                values[name] = texts[0] if texts else None
            elif name in shape.several:
                values[name] = self.listed([*texts, UNREADABLE] if name in self._labels else texts)
        return values

    def span_of_time(self, shape: Shape) -> SelectBase:
        """The first and the last position of the events in the query's time. NULL if there are none."""
        position = self.events.c.position
        # The sum keeps the planner from walking through the log until it meets the first.
        return select(func.min(position + 0), func.max(position + 0)).where(*self.positions(), *self.in_time(shape))

    def unreadable(self, name: str) -> Select[Any]:
        """One event that has metadata of which the database cannot tell a label, if there is any."""
        e = self.events.c
        return select(e.position).where(self.may_have(name), self.label(name) == literal(UNREADABLE, Text)).limit(1)

    def candidates(
        self,
        columns: Sequence[ColumnElement[Any]],
        shape: Shape,
        *,
        joined: FromClause,
        order: ColumnElement[int],
        backwards: bool,
    ) -> Select[Any]:
        """Columns, the position first, of at most `limit` events that may match."""
        found = select(*columns).select_from(joined).where(*self.conditions(shape))
        return found.order_by(order.desc() if backwards else order).limit(bindparam("limit", type_=BigInteger))

    def _among(self, shape: Shape, *names: str) -> list[_Condition]:
        """That texts are among those that are asked for."""
        found: list[_Condition] = []
        for name in names:
            column = self._columns[name]
            if name in shape.one:
                found.append(column == bindparam(name, type_=Text))
            elif name in shape.several:
                found.append(self.is_one_of(column, name, Text()))
        return found

    def is_one_of(self, column: ColumnElement[Any], name: str, type_: TypeEngine[Any]) -> _Condition:
        """Whether a column is among the values of a parameter (`listed`)."""
        raise NotImplementedError

    def listed(self, values: Sequence[Any]) -> Any:
        """Several values as one parameter."""
        raise NotImplementedError

    def tagged(self) -> _Condition:
        """Whether an event has one of the tags."""
        raise NotImplementedError

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

    def __init__(self, tenant: str) -> None:
        super().__init__(journal_events, journal_streams, tenant)

    def page(
        self, columns: Sequence[ColumnElement[Any]], shape: Shape, *, is_sorted: bool, backwards: bool
    ) -> Select[Any]:
        """What `candidates` finds. `is_sorted` says that the streams' events are looked up and sorted; otherwise an
        index has the order of the log, or the log is looked through."""
        position = self.events.c.position
        # With the sign, the planner does not walk through the log for its order.
        order: ColumnElement[int] = literal_column("+journal_events.position") if is_sorted else position
        tables = (self.streams, self.events) if is_sorted else (self.events, self.streams)
        joined = InOrder(*tables, self.streams.c.id == self.events.c.stream)
        return self.candidates(columns, shape, joined=joined, order=order, backwards=backwards)

    def facts(self, shape: Shape, *, sorted_at_most: int) -> SelectBase:
        """Where the log ends, whether the streams that are asked for have no more events than that, and of each label
        that an index has whether it cannot be read somewhere."""
        e = self.events.c
        streams = self.in_streams(shape)
        joined = InOrder(self.streams, self.events, self.streams.c.id == e.stream)
        some = select(e.stream).select_from(joined).where(*streams).limit(sorted_at_most + 1).subquery()
        has_few = select(func.count() <= sorted_at_most).select_from(some).scalar_subquery()
        return select(
            select(func.coalesce(func.max(e.position), 0)).scalar_subquery(),
            has_few if not shape.asked.isdisjoint(("kinds", "stream_ids")) else literal(0),
            *(exists(self.unreadable(name)) for name in sorted(LABELS_WITH_INDEX & shape.asked)),
        )

    def in_streams(self, shape: Shape) -> list[_Condition]:
        """The tenants are known by their index, which has the stream ids only behind them."""
        found = super().in_streams(shape)
        if self._tenant or "stream_ids" not in shape.asked or "tenants" in shape.asked:
            return found
        return [*found, self.streams.c.tenant.bool_op("IN")(_EVERY_TENANT)]

    def is_one_of(self, column: ColumnElement[Any], name: str, type_: TypeEngine[Any]) -> _Condition:
        """Of a JSON array."""
        return column.in_(select(_values(bindparam(name, type_=Text))))

    def listed(self, values: Sequence[Any]) -> str:
        """A JSON array."""
        return orjson.dumps(values).decode()

    def tagged(self) -> _Condition:
        """JSON functions fail on what is no JSON: then it is found out what that is."""
        found = _values(self.events.c.metadata, "$.tags")
        return exists(select(found).where(self.is_one_of(found, "tags", Text())))

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
        self._schema = quoted_name(schema, quote=True)
        named = MetaData()
        tables = postgres_metadata.tables
        super().__init__(
            tables["journal_events"].to_metadata(named, schema=self._schema),
            tables["journal_streams"].to_metadata(named, schema=self._schema),
            tenant,
        )

    def cut(self, candidates: Select[Any], *, backwards: bool) -> SelectBase:
        """What `candidates` selects, up to the one that fills a page: nobody knows before how large events are."""
        e = self.events.c
        size = func.octet_length(e.payload) + func.coalesce(func.octet_length(e.metadata), 0)
        first = candidates.add_columns(size.label("size")).subquery()
        place = first.c.position.desc() if backwards else first.c.position
        total = func.sum(first.c.size).over(order_by=place, rows=(None, 0)).label("total")
        page = select(*first.c, total).subquery()
        place = page.c.position.desc() if backwards else page.c.position
        return select(*list(page.c)[:-2]).where(page.c.total - page.c.size <= PAGE_BYTES).order_by(place)

    def is_one_of(self, column: ColumnElement[Any], name: str, type_: TypeEngine[Any]) -> _Condition:
        """Of an array."""
        return column == any_(bindparam(name, type_=ARRAY(type_)))

    def listed(self, values: Sequence[Any]) -> list[Any]:
        """An array."""
        return list(values)

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

    def tagged(self) -> _Condition:
        """Or whether that cannot be told, because jsonb cannot hold the metadata."""
        metadata = self.events.c.metadata
        document = self.function("journal_json", metadata, type_=JSONB())
        has_one = document[literal("tags", Text)].bool_op("?|")(bindparam("tags", type_=ARRAY(Text)))
        return or_(has_one, and_(metadata.is_not(None), document.is_(None)))

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
            is_number = or_(kind == "integer", kind == "real")
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


def _values(document: ColumnElement[Any], *path: str) -> ColumnElement[Any]:
    """The values in a JSON array."""
    return func.json_each(document, *path).table_valued("value").c.value


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

"""SQLiteAuditSQL: an audit's conditions on SQLite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Select,
    SelectBase,
    String,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.types import TypeEngine

from backends.audit_comparing import between, compared, widened
from backends.audit_shape import LABELS_WITH_INDEX, Shape
from backends.audit_sql import AuditSQL
from backends.sqlite_join import InOrder
from backends.tables import (
    journal_events,
    journal_streams,
    sqlite_label,
)
from backends.tenants_sql import TENANTS_FROM
from eventstore.contract.json_condition import JsonCondition, Operator, is_index

# The expressions of the indexes, to the letter.
_SQLITE_LABELS: dict[str, ColumnElement[str]] = {
    name: literal_column(sqlite_label(name), Text) for name in ("user", "correlation_id", "causation_id", "command_id")
}

# One look into the index of streams for each tenant.
_EVERY_TENANT = literal_column(
    "(" + TENANTS_FROM.format(streams="journal_streams", first="''", limit="-1", own="''") + ")", Text
)

_SAFE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_INDEXES = 3

_Condition = ColumnElement[bool]


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
        return self.candidates(columns, self.conditions(shape), joined=joined, order=order, backwards=backwards)

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


def _sqlite_comparison(column: ColumnElement[Any], path: str, condition: JsonCondition) -> _Condition:
    kind = func.json_type(column, path, type_=String())
    found = func.json_extract(column, path, type_=String())
    match condition.operator, condition.value:
        case (Operator.EXISTS | Operator.UNEQUAL | Operator.CONTAINS, _):
            return kind.is_not(None)
        case (operator, str() as value):
            if "\0" in value:
                return kind == "text"
            return and_(kind == "text", compared(operator, found, literal(value)))
        case (_, None):
            return kind == "null"
        case (_, bool() as value):
            return kind == ("true" if value else "false")
        case (operator, number):
            bounds = widened(number)
            is_number = or_(kind == "integer", kind == "real")
            if bounds is None:
                return is_number
            low, high = (literal(bound) for bound in bounds)
            return and_(is_number, between(operator, found, low, high))


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

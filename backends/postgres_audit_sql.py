"""PostgresAuditSQL: an audit's conditions on Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    MetaData,
    Numeric,
    Select,
    SelectBase,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    exists,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.functions import Function
from sqlalchemy.types import TypeEngine

from backends.audit_comparing import between, compared, widened
from backends.audit_shape import Shape
from backends.audit_sql import PAGE_BYTES, AuditSQL
from backends.tables import (
    INDEXED_LABELS,
    MAY_HAVE_LABEL,
    postgres_metadata,
)
from eventstore.contract.json_condition import JsonCondition, Operator

_Condition = ColumnElement[bool]

_NOTHING: ColumnElement[int] = literal_column("0", BigInteger)


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

    def rows(self, columns: Sequence[ColumnElement[Any]], shape: Shape, *, backwards: bool) -> SelectBase:
        """The rows of a page."""
        return self._cut(columns, self.conditions(shape), backwards=backwards)

    def question(
        self,
        columns: Sequence[ColumnElement[Any]],
        shape: Shape,
        *,
        is_located: bool,
        is_scan: bool,
        backwards: bool,
    ) -> Select[Any]:
        """All that there is to be asked for a page, in one row: where the log ends, the appends that are under way,
        the newest event, which event is at the position `seen`, whether there is metadata that cannot be read, the
        first and the last position of the times, and the page by column. The texts of `PostgresSQL.audit` have yet to
        be put in.

        The snapshot is older than what it tells of the log's end. So there is a page only if the log still ends at the
        position `known`, up to which it was settled before: then nobody has taken a position since. No `known` position
        says that all positions that are asked for are settled.
        """
        position = self.events.c.position
        known: ColumnElement[int] = bindparam("known", type_=BigInteger)
        mark = text("{mark}").columns(column("position", BigInteger), *map(column, ("appends", "newest", "newest_id")))
        marked = mark.cte("mark").prefix_with("MATERIALIZED")
        end, *others = (select(each).scalar_subquery() for each in marked.c)
        is_final = or_(known.is_(None), end == known)
        first: ColumnElement[Any] = null()
        last: ColumnElement[Any] = null()
        places = self.positions()
        # No index serves a sum.
        place = position + _NOTHING
        low, high = (bindparam(name, type_=BigInteger) for name in ("low", "high"))
        if shape.is_stream:
            # Whoever plans for all values takes it that few events are between two positions, and would look them up.
            places = [place > low, position <= high] if backwards else [position > low, place <= high]
        if not is_located:
            # Nor would he walk through the log then, until he meets the first and the last.
            is_here = (place > low, place <= high, *self.in_time(shape), is_final)
            span = select(func.min(place).label("first"), func.max(place).label("last")).where(*is_here).cte("span")
            first, last = (select(bound).scalar_subquery() for bound in span.prefix_with("MATERIALIZED").c)
            places = [position >= first, position <= last]
            if is_scan:
                scanned = bindparam("scanned", type_=BigInteger)
                places.append(position > last - scanned if backwards else position < first + scanned)
        page = self._cut(columns, [*places, *self.matching(shape), is_final], backwards=backwards).subquery("p")
        may_be_unreadable = not shape.one.isdisjoint(self._labels)
        is_unreadable = exists(self.unreadable("user")) if may_be_unreadable else false()
        size = func.coalesce(func.sum(page.c.size), 0)
        columns_of_page: ColumnElement[Any] = literal_column("{columns}")
        earlier = self.events.alias("earlier").c
        at_seen = select(earlier.event_id).where(earlier.position == bindparam("seen", type_=BigInteger))
        told: list[ColumnElement[Any]] = [
            end,
            *others,
            at_seen.scalar_subquery(),
            is_unreadable,
            first,
            last,
            size,
            columns_of_page,
        ]
        return select(*told).select_from(page)

    def _cut(
        self, columns: Sequence[ColumnElement[Any]], conditions: Sequence[_Condition], *, backwards: bool
    ) -> SelectBase:
        """The candidates up to the one that fills a page: nobody knows before how large events are."""
        e = self.events.c
        size = func.octet_length(e.payload) + func.coalesce(func.octet_length(e.metadata), 0)
        found = self.candidates(
            [*columns, size.label("size")], conditions, joined=self.joined, order=e.position, backwards=backwards
        )
        first = found.subquery()
        place = first.c.position.desc() if backwards else first.c.position
        total = func.sum(first.c.size).over(order_by=place, rows=(None, 0)).label("total")
        page = select(*first.c, total).subquery()
        place = page.c.position.desc() if backwards else page.c.position
        is_within = page.c.total - page.c.size <= PAGE_BYTES
        return select(*list(page.c)[:-1]).where(is_within).order_by(place)

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
            return and_(kind == "string", compared(operator, text.collate("C"), literal(value, Text)))
        case (_, None):
            return kind == "null"
        case (_, bool() as value):
            return and_(kind == "boolean", text == literal("true" if value else "false", Text))
        case (operator, number):
            bounds = widened(number)
            if bounds is None:
                return kind == "number"
            low, high = (literal(Decimal(repr(bound)), Numeric) for bound in bounds)
            # Only what is a number is taken for one: in an AND the order of evaluation is the planner's.
            return case((kind == "number", between(operator, cast(text, Numeric), low, high)), else_=false())

"""An audit's conditions as SQLAlchemy Core has them, for both SQL databases.

A database narrows down which events may match, `AuditQuery.matching` decides: numbers that a database rounds and JSON
that it cannot hold are left to that. So a condition may let through too much, and never too little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Table,
    Text,
    bindparam,
    literal,
    select,
)
from sqlalchemy.types import TypeEngine

from backends.audit_shape import Shape, texts_of
from backends.tables import LABEL_CHARACTERS
from eventstore.contract.audit_query import AuditQuery
from eventstore.contract.json_condition import JsonCondition
from eventstore.contract.pages import MAX_POSITION

HOUR_US = 3_600_000_000

PAGE_BYTES = 2 * 1024 * 1024
"""A page has no more events than fit in here, whatever its limit: nobody knows before how large they are."""

UNREADABLE = "\x01"
"""What the labels of metadata are that a database cannot read."""

_Condition = ColumnElement[bool]


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
        return [*self.positions(), *self.matching(shape)]

    def matching(self, shape: Shape) -> list[_Condition]:
        """The same, wherever it is."""
        e = self.events.c
        found = [*self.in_streams(shape), *self._among(shape, "types", "origins", *self._labels)]
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

    def parameters(self, query: AuditQuery, shape: Shape) -> dict[str, Any]:
        """The values of the parameters that have names, but for the bounds of a part."""
        start, end = query.recorded_us
        # Beyond what a database holds, every event is before or behind it.
        values: dict[str, Any] = {
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

    def unreadable(self, name: str) -> Select[Any]:
        """One event that has metadata of which the database cannot tell a label, if there is any."""
        e = self.events.c
        return select(e.position).where(self.may_have(name), self.label(name) == literal(UNREADABLE, Text)).limit(1)

    def candidates(
        self,
        columns: Sequence[ColumnElement[Any]],
        conditions: Sequence[_Condition],
        *,
        joined: FromClause,
        order: ColumnElement[int],
        backwards: bool,
    ) -> Select[Any]:
        """Columns, the position first, of at most `limit` events that may match."""
        found = select(*columns).select_from(joined).where(*conditions)
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

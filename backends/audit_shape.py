"""Shape: what the text of an audit's statement depends on. Making one takes longer than most answers do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import NamedTuple

from backends.tables import INDEXED_LABELS
from eventstore.contract.audit_query import AuditQuery
from eventstore.contract.json_condition import JsonCondition

LABELS_WITH_INDEX = frozenset(INDEXED_LABELS)
"""The texts in the metadata that have an index of their own."""

_WITH_INDEX = LABELS_WITH_INDEX | {"kinds", "stream_ids", "tenants"}


class Shape(NamedTuple):
    """A query without the values that are parameters: those of one shape have one statement.

    `one` and `several` name the texts that are asked for (`texts_of`): by a single value, which an index can have in
    the order of the log, or by more.
    """

    one: frozenset[str]
    several: frozenset[str]
    has_epochs: bool
    has_start: bool
    has_end: bool
    payload: tuple[JsonCondition, ...]
    metadata: tuple[JsonCondition, ...]
    # To Python 1 equals true.
    types_of_values: tuple[type, ...]

    @classmethod
    def of(cls, query: AuditQuery, *, unreadable: Collection[str] = ()) -> Shape:
        """The shape of a query. Of an `unreadable` text one more value is looked for: that it cannot be read."""
        asked = {name: texts for name, texts in texts_of(query).items() if texts}
        # An event has several tags.
        one = {name for name, texts in asked.items() if len(texts) == 1 and name != "tags"}.difference(unreadable)
        start, end = query.recorded_us
        return cls(
            frozenset(one),
            frozenset(asked).difference(one),
            bool(query.epochs),
            start is not None,
            end is not None,
            query.payload,
            query.metadata,
            tuple(type(condition.value) for condition in (*query.payload, *query.metadata)),
        )

    @property
    def asked(self) -> frozenset[str]:
        """The names of all texts that are asked for."""
        return self.one | self.several

    @property
    def is_label(self) -> bool:
        """Whether one value of a text in the metadata that has an index is all of the columns that is asked for."""
        return self._is_one_of(LABELS_WITH_INDEX)

    @property
    def is_stream(self) -> bool:
        """The same of one stream."""
        return self._is_one_of({"stream_ids"})

    @property
    def has_one_plan(self) -> bool:
        """Whether one way of finding the events is the best whatever the values are: there is no other, or it is the
        index of a label, which has them in the order of the log, or that of streams, which have few each."""
        return self.is_label or self.is_stream or self.asked.isdisjoint(_WITH_INDEX)

    def _is_one_of(self, names: Set[str]) -> bool:
        others = (self.several, self.has_epochs, self.has_start, self.has_end)
        return len(self.one) == 1 and self.one <= names and not any(others)


def texts_of(query: AuditQuery) -> Mapping[str, tuple[str, ...]]:
    """The texts that a query asks for, by the names of their parameters."""
    return {**query.where._asdict(), **query.labels, "origins": query.origins}

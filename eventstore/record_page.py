"""RecordPage: events of the log by column, and the record of each once somebody looks at one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import xor
from typing import NamedTuple, overload

from eventstore.events import Event, RecordedEvent


class _Decoded(NamedTuple):
    events: Sequence[Event] | None


class RecordPage(Sequence[RecordedEvent]):
    """As much as decoding events needs is there as columns; looking at a column as a whole costs a fraction of looking
    at each event. `make` makes all records, when the first of them is wanted.

    Raises `ValueError` for columns that are not of one length.
    """

    __slots__ = ("_decoded", "_make", "_records", "event_ids", "payloads", "schema_versions", "types")

    def __init__(
        self,
        types: Sequence[str],
        schema_versions: Sequence[int],
        payloads: Sequence[bytes],
        event_ids: Sequence[int],
        make: Callable[[], list[RecordedEvent]],
    ) -> None:
        if not len(types) == len(schema_versions) == len(payloads) == len(event_ids):
            raise ValueError("the columns are not of one length")
        self.types = types
        self.schema_versions = schema_versions
        self.payloads = payloads
        self.event_ids = event_ids
        """Each as the number that its UUID is."""
        self._make: Callable[[], list[RecordedEvent]] | None = make
        self._records: list[RecordedEvent] = []
        self._decoded: _Decoded | None = None

    @classmethod
    def of(cls, records: Sequence[RecordedEvent]) -> RecordPage:
        """The same events by column."""
        if isinstance(records, RecordPage):
            return records
        return cls(
            [recorded.type for recorded in records],
            [recorded.schema_version for recorded in records],
            [recorded.payload for recorded in records],
            [recorded.event_id.int for recorded in records],
            lambda: list(records),
        )

    @property
    def records(self) -> list[RecordedEvent]:
        """Every record, in order."""
        if self._make is not None:
            # What it is made of is not kept beside it.
            self._records, self._make = self._make(), None
        return self._records

    def decoded(self, decode: Callable[[RecordPage], Sequence[Event] | None]) -> Sequence[Event] | None:
        """What a function makes of the page, which is called once."""
        if self._decoded is None:
            self._decoded = _Decoded(decode(self))
        return self._decoded.events

    @property
    def checksum(self) -> bytes:
        """The exclusive or of the event ids."""
        return reduce(xor, self.event_ids, 0).to_bytes(16)

    def __len__(self) -> int:
        return len(self.types)

    def __iter__(self) -> Iterator[RecordedEvent]:
        return iter(self.records)

    @overload
    def __getitem__(self, index: int) -> RecordedEvent: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[RecordedEvent]: ...

    def __getitem__(self, index: int | slice) -> RecordedEvent | Sequence[RecordedEvent]:
        return self.records[index]

"""RecordPage: events of the log by column, and the record of each once somebody looks at one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from itertools import compress
from typing import overload

from eventstore.events import RecordedEvent

ID_BYTES = 16


class RecordPage(Sequence[RecordedEvent]):
    """What most who go through events look at is there as columns; looking at a column as a whole costs a fraction of
    looking at each event. `make` makes the records, one after another.

    Who goes through them gets each made when it comes, and nothing keeps it: most die young, and the garbage collector
    never sees them. Who asks for one by its place has all of them made, and kept.

    Raises `ValueError` for columns that are not of one length.
    """

    __slots__ = (
        "_make",
        "_records",
        "event_ids",
        "kinds",
        "payloads",
        "positions",
        "schema_versions",
        "stream_ids",
        "types",
    )

    def __init__(
        self,
        positions: Sequence[int],
        stream_ids: Sequence[str],
        types: Sequence[str],
        schema_versions: Sequence[int],
        payloads: Sequence[bytes],
        event_ids: bytes,
        make: Callable[[], Iterator[RecordedEvent]],
        *,
        kinds: Set[tuple[str, int]] | None = None,
    ) -> None:
        columns = (positions, stream_ids, schema_versions, payloads)
        if any(len(column) != len(types) for column in columns) or len(event_ids) != ID_BYTES * len(types):
            raise ValueError("the columns are not of one length")
        self.positions = positions
        self.stream_ids = stream_ids
        self.types = types
        self.schema_versions = schema_versions
        self.payloads = payloads
        self.event_ids = event_ids
        """All of them, one after another."""
        self.kinds = set(zip(types, schema_versions, strict=True)) if kinds is None else kinds
        """Every type with every schema version that it has here."""
        self._make = make
        self._records: list[RecordedEvent] | None = None

    @classmethod
    def of(cls, records: Sequence[RecordedEvent]) -> RecordPage:
        """The same events by column."""
        if isinstance(records, RecordPage):
            return records
        return cls(
            [recorded.position for recorded in records],
            [recorded.stream_id for recorded in records],
            [recorded.type for recorded in records],
            [recorded.schema_version for recorded in records],
            [recorded.payload for recorded in records],
            b"".join([recorded.event_id.bytes for recorded in records]),
            lambda: iter(records),
        )

    def only(self, wanted: Sequence[bool]) -> RecordPage:
        """Those events of which it is true."""
        ids = (self.event_ids[start : start + ID_BYTES] for start in range(0, len(self.event_ids), ID_BYTES))
        return RecordPage(
            list(compress(self.positions, wanted)),
            list(compress(self.stream_ids, wanted)),
            list(compress(self.types, wanted)),
            list(compress(self.schema_versions, wanted)),
            list(compress(self.payloads, wanted)),
            b"".join(compress(ids, wanted)),
            lambda: compress(self, wanted),
        )

    @property
    def checksum(self) -> bytes:
        """The exclusive or of the event ids."""
        # One half on top of the other, again and again: a dozen operations instead of one for each event.
        count = len(self.types)
        total = int.from_bytes(self.event_ids)
        while count > 1:
            count = (count + 1) // 2
            bits = 8 * ID_BYTES * count
            total = (total >> bits) ^ (total & (1 << bits) - 1)
        return total.to_bytes(ID_BYTES)

    def __len__(self) -> int:
        return len(self.types)

    def __iter__(self) -> Iterator[RecordedEvent]:
        return self._make() if self._records is None else iter(self._records)

    @overload
    def __getitem__(self, index: int) -> RecordedEvent: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[RecordedEvent]: ...

    def __getitem__(self, index: int | slice) -> RecordedEvent | Sequence[RecordedEvent]:
        if self._records is None:
            self._records = list(self._make())
        return self._records[index]

"""A page of the log as a SQL database strings it together, one text for each column, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, cast

from backends.page_texts import SEPARATOR
from backends.records import shared_uuids_of, time_of, times_of, uuids_of
from eventstore.codec import are_sound, damaged, decode_all_metadata, decode_metadata
from eventstore.contract.record_page import ID_BYTES, RecordPage
from eventstore.events import Metadata, RecordedEvent

_new_record = cast("Callable[[type[RecordedEvent], tuple[Any, ...]], RecordedEvent]", tuple.__new__)
_SEPARATOR = SEPARATOR.encode()
_AT_ONCE = 64


class Rare(NamedTuple):
    """What few events have, of one that has some of it."""

    epoch: int
    tenant: str
    origin: str | None
    origin_sequence: int | None
    clock: bytes | None
    concurrent: bool


class LogColumns(NamedTuple):
    """The columns of a page, of one length but for `rare`, which has the places of events that are not as most are."""

    positions: list[int]
    stream_ids: list[str]
    versions: list[int]
    types: list[str]
    schema_versions: list[int]
    payloads: list[bytes]
    metadata: Sequence[bytes | None] | None
    """None where no event has any."""
    event_ids: bytes
    """All of them, one after another."""
    batch_ids: bytes | None
    """The same of their batches: the first event of one names it. None if each event is a batch of its own."""
    recorded_at: list[int]
    checksums: list[int]
    tenant: str
    rare: Mapping[int, Rare]

    def page(self, *, decodes_late: bool = False) -> RecordPage:
        """Raises `ValueError` if something is wrong with an event, which does not tell with which.

        With `decodes_late` metadata is decoded when its record is made. So it may die young; what cannot be decoded is
        told then, by a `JournalCorrupt` that names the event.
        """
        kinds = set(zip(self.types, self.schema_versions, strict=True))
        if not are_sound(self.types, self.schema_versions, kinds, self.payloads, self.metadata, self.checksums):
            raise ValueError("an event does not match its checksum")
        if self.batch_ids is not None and len(self.batch_ids) != len(self.event_ids):
            raise ValueError("an event's id has not 16 bytes")
        if not len(self.versions) == len(self.recorded_at) == len(self.types):
            raise ValueError("the columns are not of one length")
        notes = None if self.metadata is None or decodes_late else decode_all_metadata(self.metadata)
        # Whatever cannot be made a record of is to be found out now.
        try:
            time_of(min(self.recorded_at))
            time_of(max(self.recorded_at))
        except OverflowError as error:
            raise ValueError(f"a time is out of range: {error}") from error
        return RecordPage(
            self.positions,
            self.stream_ids,
            self.types,
            self.schema_versions,
            self.payloads,
            self.event_ids,
            lambda: self._records(notes),
            kinds=kinds,
        )

    def _records(self, notes: Sequence[Metadata | None] | None) -> Iterator[RecordedEvent]:
        """A few at a time: what they are made of is still at hand, and where each is let go of, the garbage collector
        is never called."""
        for start in range(0, len(self.positions), _AT_ONCE):
            yield from self._some(slice(start, start + _AT_ONCE), notes)

    def _some(self, part: slice, notes: Sequence[Metadata | None] | None) -> Iterable[RecordedEvent]:
        ids = slice(part.start * ID_BYTES, part.stop * ID_BYTES)
        own = uuids_of(self.event_ids[ids])
        batches = own if self.batch_ids is None else shared_uuids_of(self.batch_ids[ids])
        texts: Iterable[bytes | None] = repeat(None)
        decoded: Iterable[Metadata | None] = repeat(None)
        if self.metadata is not None:
            texts = of_part = self.metadata[part]
            decoded = self._decoded(part.start, of_part) if notes is None else notes[part]
        rows = zip(
            self.positions[part],
            self.stream_ids[part],
            self.versions[part],
            self.types[part],
            self.schema_versions[part],
            self.payloads[part],
            decoded,
            own,
            batches,
            repeat(0),
            times_of(self.recorded_at[part]),
            self.checksums[part],
            repeat(self.tenant),
            repeat(None),
            repeat(None),
            repeat(None),
            repeat(False),
            texts,
        )
        # As the class does it by itself, without a call in Python for each.
        made = map(_new_record, repeat(RecordedEvent), rows)
        if not self.rare:
            return made
        return [
            record._replace(**rare._asdict()) if (rare := self.rare.get(place)) else record
            for place, record in enumerate(made, part.start)
        ]

    def _decoded(self, start: int, texts: Sequence[bytes | None]) -> Sequence[Metadata | None]:
        """The metadata of events from that place on. Raises `JournalCorrupt`."""
        try:
            return decode_all_metadata(texts)
        except ValueError:
            for place, text in enumerate(texts, start):
                try:
                    decode_metadata(text)
                except ValueError as error:
                    tenant = self.rare[place].tenant if place in self.rare else self.tenant
                    raise damaged(
                        error,
                        stream_id=self.stream_ids[place],
                        version=self.versions[place],
                        position=self.positions[place],
                        tenant=tenant,
                    ) from error
            raise


def rare_of(found: Sequence[Any], positions: Sequence[int]) -> Mapping[int, Rare]:
    """By their places, the events that have what few have: position, epoch, tenant, and what a replica says."""
    if not found:
        return {}
    places = {position: place for place, position in enumerate(positions)}
    return {
        places[position]: Rare(
            epoch, tenant, origin, origin_sequence, None if clock is None else clock.encode(), bool(concurrent)
        )
        for position, epoch, tenant, origin, origin_sequence, clock, concurrent in found
    }


def optional_texts(joined: bytes, count: int, present: int) -> Sequence[bytes | None] | None:
    """The texts of so many events, of which some have none. Raises `ValueError` if that is not how many have one."""
    if not present:
        return None
    texts = [text or None for text in joined.split(_SEPARATOR)]
    if len(texts) != count or count - texts.count(None) != present:
        raise ValueError("a text holds what stands between texts, or is empty")
    return texts

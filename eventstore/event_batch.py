"""EventBatch: what a projection's handler gets that wants the events of a batch at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from eventstore.contract.record_page import RecordPage
from eventstore.events import Event, RecordedEvent

E = TypeVar("E", bound=Event)


class EventBatch(Generic[E]):
    """The events of a batch that are of the handler's types, in the order of the log, one at least.

    Going through it gives each event with its record. The columns are for those who want no more of the records:
    nothing is made then for each event.
    """

    __slots__ = ("_page", "events")

    def __init__(self, events: Sequence[E], page: RecordPage) -> None:
        self.events = events
        self._page = page

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[tuple[E, RecordedEvent]]:
        return zip(self.events, self._page, strict=True)

    @property
    def records(self) -> Sequence[RecordedEvent]:
        """Of each event. Several that an upcaster has made of one share its record."""
        return self._page

    @property
    def positions(self) -> Sequence[int]:
        """Of each event: its place in the log."""
        return self._page.positions

    @property
    def stream_ids(self) -> Sequence[str]:
        """Of each event: the stream that it is in."""
        return self._page.stream_ids

"""Import: lines of CloudEvents, appended in their order, a window of lines at a time, each of them all or none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from eventstore.backend import EncodedEvent, Expected, StreamWrite
from eventstore.copies.cloud_events import Imported, from_line
from eventstore.errors import (
    ConcurrencyError,
    DuplicateEventError,
    ImportRefused,
    InvalidCloudEvent,
    InvalidStreamId,
    PayloadTooLarge,
)
from eventstore.store import EventStore

# Where a window ends depends on the lines alone: the same file, imported again, is the same batches, which are known.
_WINDOW_LINES = 500
_WINDOW_BYTES = 4 * 1024 * 1024


class _Line(NamedTuple):
    number: int
    imported: Imported


class Import:
    """Appends to a store. `stream_id` is for events that name no stream.

    An event that was exported from a journal gets the version that it had there, or is refused; with `renumber`, the
    next one of its stream. Events that are stored already, by their ids, are left out.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        stream_id: str | None = None,
        renumber: bool = False,
        on_events: Callable[[int], None] | None = None,
    ) -> None:
        self._store = store
        self._stream_id = stream_id
        self._renumber = renumber
        self._on_events = on_events
        self.stored = 0
        self.known = 0
        """How many events were stored already."""
        self.lines = 0
        """Up to which line all is stored."""

    async def run(self, lines: AsyncIterator[bytes]) -> None:
        """Import every line. Raises `ImportRefused`, which names one, or what an append raises: then what is up to
        `lines` is stored."""
        window: list[_Line] = []
        number = size = 0
        async for line in lines:
            number += 1
            if line.strip():
                window.append(_Line(number, self._read(number, line)))
                size += len(line)
            if len(window) >= _WINDOW_LINES or size >= _WINDOW_BYTES:
                await self._store_window(window)
                self.lines, window, size = number, [], 0
        if window:
            await self._store_window(window)
        self.lines = number

    def _read(self, number: int, line: bytes) -> Imported:
        try:
            return from_line(
                line, limit=self._store.max_payload_bytes, stream_id=self._stream_id, tenant=self._store.tenant
            )
        except (InvalidCloudEvent, InvalidStreamId, PayloadTooLarge) as error:
            raise ImportRefused(number, str(error)) from error

    async def _store_window(self, window: list[_Line]) -> None:
        try:
            await self._append(window)
        except DuplicateEventError:
            # Some of it is stored, or in another batch than this: then each is looked at by itself.
            for line in window:
                try:
                    await self._append([line])
                except DuplicateEventError as error:
                    reason = f"event id {error.event_id} is stored already, in another stream"
                    raise ImportRefused(line.number, reason) from error
        if self._on_events is not None:
            self._on_events(len(window))

    async def _append(self, window: list[_Line]) -> None:
        try:
            appended = await self._store.append_writes(self._writes(window))
        except ConcurrencyError as error:
            raise _displaced(error, window) from error
        if appended.is_duplicate:
            self.known += len(window)
        else:
            self.stored += len(window)

    def _writes(self, window: list[_Line]) -> list[StreamWrite]:
        """What stands together of one stream is one write."""
        writes: list[StreamWrite] = []
        events: list[EncodedEvent] = []
        last: Imported | None = None
        for _, imported in window:
            if last is None or not _follows(last, imported):
                events = []
                has_place = imported.version is not None and not self._renumber
                expected = (imported.version or 0) - 1 if has_place else Expected.ANY
                writes.append(StreamWrite(imported.stream_id, expected, events))
            events.append(imported.event)
            last = imported
        return writes


def _follows(last: Imported, imported: Imported) -> bool:
    if last.stream_id != imported.stream_id or (last.version is None) != (imported.version is None):
        return False
    return last.version is None or imported.version == last.version + 1


def _displaced(error: ConcurrencyError, window: list[_Line]) -> ImportRefused:
    """The refusal of the line whose event cannot get the version that it had."""
    line = next(
        line
        for line in window
        if line.imported.stream_id == error.stream_id and (line.imported.version or 0) - 1 == error.expected
    )
    return ImportRefused(
        line.number,
        f"the event was version {line.imported.version} of stream {error.stream_id!r}, which is at version "
        f"{error.actual} here: nothing of this window was stored; give --renumber to have it appended all the same",
    )

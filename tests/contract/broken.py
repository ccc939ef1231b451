"""Broken: memory backends that each do one thing in another way, to show that the comparison sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import orjson

from backends.memory import MemoryBackend
from eventstore import EventStore
from eventstore.backend import (
    Appended,
    AppendOutcome,
    Batch,
    Claim,
    EncodedEvent,
    EventFilter,
    Holder,
    LogPage,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
)
from eventstore.codec import decode_metadata, encode_metadata
from eventstore.errors import FencedError
from eventstore.url import parse_store_url


def broken(name: str, url: str) -> EventStore:
    parsed = parse_store_url(url)
    return EventStore(BREAKS[name](parsed), url=parsed)


class _Rewriting(MemoryBackend):
    """Changes events on their way in."""

    def rewritten(self, event: EncodedEvent) -> EncodedEvent:
        raise NotImplementedError

    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        return await super().append(
            [
                [write._replace(events=[self.rewritten(event) for event in write.events]) for write in batch]
                for batch in batches
            ]
        )


class _DropsATag(_Rewriting):
    def rewritten(self, event: EncodedEvent) -> EncodedEvent:
        metadata = decode_metadata(event.metadata)
        if metadata is None or len(metadata.tags) < 3:
            return event
        return event._replace(metadata=encode_metadata(metadata.model_copy(update={"tags": metadata.tags[:2]})))


class _RewritesJson(_Rewriting):
    def rewritten(self, event: EncodedEvent) -> EncodedEvent:
        try:
            return event._replace(payload=orjson.dumps(orjson.loads(event.payload)))
        except (orjson.JSONDecodeError, TypeError):
            return event


class _FoldsCase(_Rewriting):
    def rewritten(self, event: EncodedEvent) -> EncodedEvent:
        return event._replace(type=event.type.lower())


class _SortsByLocale(MemoryBackend):
    async def streams(
        self, *, after: str, limit: int, kind: str | None, tenant: str | None = None
    ) -> Sequence[StreamInfo]:
        found = await super().streams(after=after, limit=limit, kind=kind, tenant=tenant)
        return sorted(found, key=lambda info: (info.stream_id.casefold(), info.stream_id))


class _ForgetsRepeats(MemoryBackend):
    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        outcomes = await super().append(batches)
        return [o._replace(is_duplicate=False) if isinstance(o, Appended) else o for o in outcomes]


class _FencesNobody(MemoryBackend):
    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        outcomes = await super().append(batches)
        return [Appended(0, ()) if isinstance(outcome, FencedError) else outcome for outcome in outcomes]


class _TakesTheUpperEndAway(MemoryBackend):
    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        through = None if through is None else through - 1
        return await super().read_stream(stream_id, after=after, through=through, limit=limit, backwards=backwards)


class _FindsTagsInValues(MemoryBackend):
    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        page = await super().read_all(after=after, limit=limit, where=where._replace(tags=()))
        found = [
            event for event in page.events if not where.tags or (event.metadata and event.metadata.model_dump_json())
        ]
        return page._replace(events=found)


class _KeepsOneSnapshotMore(MemoryBackend):
    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        return await super().save_snapshot(snapshot, keep=keep + 1)


class _TruncatesOneTooMany(MemoryBackend):
    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        return await super().truncate(stream_id, through + 1, reason=reason, epoch=epoch, fingerprint=fingerprint)


class _ClaimsTwice(MemoryBackend):
    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        await super().claim(claims)
        return await super().claim(claims)


class _ExecutesAgain(MemoryBackend):
    """Looks for no command that is remembered."""

    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        for write in (write for batch in batches for write in batch):
            for command in write.commands:
                self._journal.stream(write.stream_id).commands.pop(command.command_id, None)
        return await super().append(batches)


class _TakesSnapshotsFromAnyone(MemoryBackend):
    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        with suppress(FencedError):
            return await super().save_snapshot(snapshot, keep=keep)
        self._journal.stream(snapshot.stream_id).snapshots[snapshot.version] = snapshot
        return True


class _TruncatesForAnyone(MemoryBackend):
    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        return await super().truncate(stream_id, through, reason=reason, fingerprint=fingerprint)


class _TruncatesWithoutATrace(MemoryBackend):
    """Forgets up to when the outcomes were issued that it removes."""

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        stream = self._journal.stream(stream_id)
        forgotten = stream.forgotten
        try:
            return await super().truncate(stream_id, through, reason=reason, epoch=epoch, fingerprint=fingerprint)
        finally:
            stream.forgotten = forgotten


class _KeepsNobodyAway(MemoryBackend):
    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        for claim in claims:
            self._journal.stream(claim.stream_id).owner = None
        return await super().claim(claims)


BREAKS: dict[str, Callable[..., MemoryBackend]] = {
    "a tag is dropped": _DropsATag,
    "JSON is written anew": _RewritesJson,
    "types are folded": _FoldsCase,
    "streams are sorted by locale": _SortsByLocale,
    "repeats are not told": _ForgetsRepeats,
    "nobody is fenced": _FencesNobody,
    "the upper end of a range is left out": _TakesTheUpperEndAway,
    "tags are found in other metadata": _FindsTagsInValues,
    "one snapshot more is kept": _KeepsOneSnapshotMore,
    "one event more is truncated": _TruncatesOneTooMany,
    "a claim takes two epochs": _ClaimsTwice,
    "a command is executed again": _ExecutesAgain,
    "an earlier owner saves snapshots": _TakesSnapshotsFromAnyone,
    "an earlier owner truncates": _TruncatesForAnyone,
    "truncation does not tell what it forgets": _TruncatesWithoutATrace,
    "a lease keeps nobody away": _KeepsNobodyAway,
}

"""Recorder: what a journal answers to a scenario, and what it holds afterwards, in one form for every database."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import pairwise
from typing import Any
from uuid import UUID

from backends.conformance.commands import check_recent
from backends.conformance.commands import found as commands_found
from backends.conformance.leases import HeldLease, Leases
from eventstore.backend import (
    Appended,
    Backend,
    CommandLookup,
    CommandsFound,
    EventFilter,
    EventPage,
    Holder,
    Holding,
    LogPage,
    Owner,
    OwnerInfo,
    Statistics,
    StoredCommand,
    StreamInfo,
)
from eventstore.codec import encode_metadata
from eventstore.errors import FencedError, LeaseLost
from eventstore.events import Metadata, RecordedEvent
from eventstore.store import EventStore

from .contents import STREAM_IDS
from .operations import (
    AppendGroup,
    ClaimMany,
    Count,
    DeleteSnapshots,
    EndLease,
    FindCommands,
    ForgetCommands,
    ListHoldings,
    ListOwners,
    ListStreams,
    LoadMany,
    Operation,
    ReadLast,
    ReadLog,
    ReadMoved,
    ReadSnapshots,
    ReadStream,
    Release,
    RenewLease,
    Reopen,
    SaveSnapshot,
    Truncate,
    Wait,
)

Opener = Callable[[], EventStore]

_LONG_BYTES = 200
_EVERYTHING = EventFilter()
_ALL_COMMANDS = 10_000
# A time in milliseconds that is later was the database's own.
_EARLY = 10**12


async def canonical_log(opened: Opener, operations: Sequence[Operation]) -> list[str]:
    """One line per operation with its answer, then one line per stream, event and snapshot that is there at the end."""
    recorder = Recorder(opened)
    await recorder.open()
    try:
        for number, operation in enumerate(operations):
            recorder.note(f"{number} {type(operation).__name__}", await recorder.perform(operation))
        await recorder.note_journal()
    finally:
        await recorder.close()
    return recorder.lines


class Recorder:
    """Performs operations and notes the answers.

    Two things may differ between databases, and are not noted as they are. Positions may have holes: what is noted is
    how many events stand up to there. And each has its own clock: what is noted is that it does not go back.
    """

    def __init__(self, opened: Opener) -> None:
        self._opened = opened
        self._store: EventStore | None = None
        # Leases live on while the store is closed and opened again.
        self._beside: EventStore | None = None
        self._leases = Leases()
        self._held: dict[bytes, HeldLease] = {}
        self.lines: list[str] = []
        self.positions: list[int] = []
        """Where the events stand that were ever stored."""

    async def open(self) -> None:
        self._store = await self._opened().__aenter__()
        self._beside = self._beside or await self._opened().__aenter__()

    async def close(self) -> None:
        await self._leases.close()
        for store in (self._store, self._beside):
            if store is not None:
                await store.close()

    def note(self, what: str, answer: object) -> None:
        self.lines.append(f"{what}: {json.dumps(self._plain(answer), ensure_ascii=False, default=repr)}")

    async def perform(self, operation: Operation) -> object:
        """The answer. A refusal is one."""
        try:
            return await self._answer(operation)
        except (FencedError, LeaseLost) as refused:
            return refused

    async def _answer(self, operation: Operation) -> object:
        backend = self._backend
        match operation:
            case AppendGroup(batches):
                outcomes = await backend.append(batches)
                if any(isinstance(outcome, Appended) and not outcome.is_duplicate for outcome in outcomes):
                    await self._learn_positions()
                return list(outcomes)
            case FindCommands(lookups):
                return await self._find_commands(lookups)
            case ForgetCommands(stream_id, keep, before):
                return await backend.forget_commands(stream_id, keep=keep, before=before)
            case RenewLease(owner, report):
                return await (await self._lease(owner)).renew(report)
            case EndLease(owner):
                return await self._held.pop(owner.id).end()
            case ClaimMany(claims):
                return list(await backend.claim(claims))
            case Release(owner_id, epochs):
                return await backend.release(owner_id, epochs)
            case ListOwners():
                return list(await backend.owners())
            case ListHoldings(page_size):
                return await self._holdings(page_size)
            case LoadMany(loads):
                return await backend.load(loads)
            case ReadStream(stream_id, after, through, limit, backwards):
                return await backend.read_stream(
                    stream_id, after=after, through=through, limit=limit, backwards=backwards
                )
            case ReadLog(after_event, page_size, where):
                return await self._walk(self._position(after_event), page_size, where)
            case ReadMoved(after_event, part_size):
                return await self._moved(self._position(after_event), part_size)
            case ReadLast(count, where):
                return await self._walk(await backend.start_of_last(count, where), 1000, where)
            case ListStreams(page_size, kind):
                return await self._streams(page_size, kind)
            case SaveSnapshot(snapshot, keep):
                return await backend.save_snapshot(snapshot, keep=keep)
            case ReadSnapshots(stream_id, through, limit):
                return list(await backend.read_snapshots(stream_id, through=through, limit=limit))
            case DeleteSnapshots(stream_id, through):
                return await backend.delete_snapshots(stream_id, through=through)
            case Truncate(stream_id, through, reason, epoch):
                return await backend.truncate(stream_id, through, reason=reason, epoch=epoch)
            case Wait(after_event):
                # It may have been truncated since, and then nothing comes.
                return await backend.wait(self._position(after_event), 0.01)
            case Count():
                return await backend.statistics()
            case Reopen():
                assert self._store is not None
                await self._store.close()
                await self.open()
                return None

    async def note_journal(self) -> None:
        """Everything that is in the journal, whole."""
        events = await self._walk(0, 500, _EVERYTHING)
        for event in events:
            self.note("event", (self._plain(event), event.payload.decode()))
        self.note("times never fall", all(one.recorded_at <= other.recorded_at for one, other in pairwise(events)))
        self.note("a batch has one time", len({(e.batch_id, e.recorded_at) for e in events}))
        for stream in await self._streams(500, None):
            self.note("stream", stream)
            for snapshot in await self._backend.read_snapshots(stream.stream_id, through=None, limit=100):
                self.note("snapshot", (self._plain(snapshot), snapshot.payload.hex()))
        self.note("statistics", await self._backend.statistics())
        for stream_id in STREAM_IDS:
            await self._note_commands(stream_id)
        self.note("owners", await self._backend.owners())
        self.note("holdings", await self._holdings(1000))

    async def _note_commands(self, stream_id: str) -> None:
        (there,) = await commands_found(self._backend, CommandLookup(stream_id, "", _ALL_COMMANDS))
        if not there.recent and not there.forgotten:
            return
        self.note("commands", (stream_id, there))
        lookups = [CommandLookup(stream_id, command_id) for command_id in sorted(there.recent)]
        for found in await commands_found(self._backend, *lookups):
            assert found.outcome is not None
            self.note("command", (found.outcome, found.outcome.payload.decode()))

    @property
    def _backend(self) -> Backend:
        assert self._store is not None
        return self._store._backend

    async def _walk(self, after: int, page_size: int, where: EventFilter) -> list[RecordedEvent]:
        """Every page up to the end. How many events are on each is the database's affair if a filter is set."""
        found: list[RecordedEvent] = []
        while True:
            page = await self._backend.read_all(after=after, limit=page_size, where=where)
            self._check(page, after, page_size)
            found += page.events
            if page.is_end:
                return found
            after = page.position

    async def _moved(self, after: int, part_size: int) -> list[tuple[str, int]]:
        """Without streams of which nothing is left there: they may be told of or not."""
        left = {event.stream_id for event in await self._walk(after, 1000, _EVERYTHING)}
        moved: dict[str, int] = {}
        while True:
            part = await self._backend.moved(after=after, limit=part_size)
            moved |= part.versions
            if part.is_end:
                return sorted((stream_id, version) for stream_id, version in moved.items() if stream_id in left)
            assert part.position > after
            after = part.position

    def _check(self, page: LogPage, after: int, page_size: int) -> None:
        positions = [after, *(event.position for event in page.events)]
        assert len(page.events) <= page_size
        assert all(one < other for one, other in pairwise(positions))
        assert page.position >= positions[-1]
        assert not page.events or page.end >= positions[-1]
        assert page.is_end or page.position > after

    async def _streams(self, page_size: int, kind: str | None) -> list[StreamInfo]:
        found: list[StreamInfo] = []
        while True:
            page = await self._backend.streams(after=found[-1].stream_id if found else "", limit=page_size, kind=kind)
            found += page
            if len(page) < page_size:
                return found

    async def _find_commands(self, lookups: Sequence[CommandLookup]) -> list[CommandsFound]:
        """The answers, without the recent ids where these are not all: which they are is the database's affair."""
        everything = [lookup._replace(recent=_ALL_COMMANDS) for lookup in lookups]
        answers = await commands_found(self._backend, *lookups, *everything)
        found: list[CommandsFound] = []
        for lookup, answer, whole in zip(lookups, answers, answers[len(lookups) :], strict=False):
            there = set(whole.recent)
            check_recent(whole, _ALL_COMMANDS, there)
            check_recent(answer, lookup.recent, there)
            found.append(answer if lookup.recent > len(there) else answer._replace(recent=(), known_above=None))
        return found

    async def _lease(self, owner: Owner) -> HeldLease:
        if owner.id not in self._held:
            assert self._beside is not None
            self._held[owner.id] = await self._leases.make(self._beside._backend, owner)
        return self._held[owner.id]

    async def _holdings(self, page_size: int) -> list[Holding]:
        """Without those of owners whose lease has ended: a database may forget these or not."""
        found: list[Holding] = []
        while True:
            page = await self._backend.holdings(after=found[-1].stream_id if found else "", limit=page_size)
            found += page
            if len(page) < page_size:
                return [holding for holding in found if holding.owner in self._held]

    async def _learn_positions(self) -> None:
        last = self.positions[-1] if self.positions else 0
        self.positions += [event.position for event in await self._walk(last, 1000, _EVERYTHING)]

    def _position(self, event: int) -> int:
        # A broken database may have fewer events than there should be.
        return self.positions[min(event, len(self.positions)) - 1] if event and self.positions else 0

    def _place(self, position: int) -> int:
        return bisect_right(self.positions, position)

    def _plain(self, value: object) -> Any:
        """A value as JSON has it, without what may differ between databases."""
        match value:
            case RecordedEvent():
                fields = value._replace(position=self._place(value.position))._asdict()
                del fields["recorded_at"]
                return {name: self._plain(field) for name, field in fields.items()}
            case Appended(position, versions, is_duplicate):
                return {"at": self._place(position), "versions": versions, "is_duplicate": is_duplicate}
            case EventPage():
                return [self._plain(event) for event in value]
            case StoredCommand():
                fields = value._asdict()
                del fields["recorded_at"]
                return {name: self._plain(field) for name, field in fields.items()}
            case CommandsFound(outcome, recent, known_above, forgotten):
                early = forgotten if forgotten < _EARLY else "recorded"
                return [self._plain(outcome), sorted(recent), known_above, early]
            case Holder() | OwnerInfo():
                fields = value._asdict() | {"remaining": value.remaining > 0}
                return {name: self._plain(field) for name, field in fields.items()}
            case LeaseLost():
                return "LeaseLost"
            case Statistics(streams, events, snapshots, last_position, _):
                return {"streams": streams, "events": events, "snapshots": snapshots, "end": self._place(last_position)}
            case Exception():
                return {"error": type(value).__name__, **vars(value), "message": str(value)}
            case Metadata():
                return self._plain(encode_metadata(value))
            case bytes() if len(value) > _LONG_BYTES:
                return f"{len(value)} bytes, {blake2b(value, digest_size=16).hexdigest()}"
            case bytes():
                return value.decode("utf-8", errors="backslashreplace")
            case UUID():
                return value.hex
            case datetime():
                return value.isoformat()
            case tuple() if hasattr(value, "_asdict"):
                return {name: self._plain(field) for name, field in value._asdict().items()}
            case list() | tuple():
                return [self._plain(item) for item in value]
            case _:
                return value

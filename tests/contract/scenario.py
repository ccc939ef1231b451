"""Scenario: operations drawn from a seed, right and wrong ones, in an order that nobody would think of."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random

from backends.memory import MemoryBackend
from eventstore.backend import (
    Appended,
    Batch,
    Claim,
    CommandLookup,
    CommandOutcome,
    EncodedEvent,
    EventFilter,
    Expected,
    Load,
    Owner,
    ReplicaFields,
    StoredSnapshot,
    StreamWrite,
)
from eventstore.codec import encode_metadata, encoded_event
from eventstore.errors import FencedError, LeaseLost
from eventstore.url import parse_store_url

from .contents import COMMAND_IDS, KINDS, OWNER_NAMES, REPLICAS, STREAM_IDS, TAGS, TEXTS, TYPES, metadata, payload
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


async def draw(seed: int, count: int) -> list[Operation]:
    """So many operations. The same seed gives the same ones."""
    artist = Artist(Random(seed))
    return [await artist.operation() for _ in range(count)]


class Artist:
    """Draws one operation after another.

    Each is tried out on a journal in memory, so that the next one can be right, or wrong, on purpose.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._memory = MemoryBackend(parse_store_url("memory://"))
        self._versions: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._owners = [self._owner(name) for name in OWNER_NAMES]
        self._held: dict[str, tuple[bytes, int]] = {}
        self._renewals: dict[bytes, int] = {}
        self._stored: list[Batch] = []
        self._events = 0
        self._drawers: dict[Callable[[], Operation], int] = {
            self._append_group: 45,
            self._find_commands: 6,
            self._forget_commands: 4,
            self._renew_lease: 5,
            self._end_lease: 1,
            self._claim_many: 10,
            self._release: 3,
            self._list_holdings: 1,
            ListOwners: 1,
            self._load_many: 8,
            self._read_stream: 12,
            self._read_log: 7,
            self._read_moved: 3,
            self._read_last: 3,
            self._list_streams: 3,
            self._save_snapshot: 8,
            self._read_snapshots: 3,
            self._delete_snapshots: 2,
            self._truncate: 4,
            self._wait: 1,
            Count: 4,
            Reopen: 1,
        }

    async def operation(self) -> Operation:
        await self._memory.open()
        [drawer] = self._random.choices(list(self._drawers), list(self._drawers.values()))
        operation = drawer()
        match operation:
            case AppendGroup(batches):
                for batch, outcome in zip(batches, await self._memory.append(batches), strict=True):
                    if isinstance(outcome, Appended) and not outcome.is_duplicate:
                        self._versions.update(zip((w.stream_id for w in batch), outcome.versions, strict=True))
                        self._events += sum(len(write.events) for write in batch)
                        self._stored.append(batch)
            case ForgetCommands(stream_id, keep, before):
                await self._memory.forget_commands(stream_id, keep=keep, before=before)
            case RenewLease(owner, report):
                await self._memory.lease(owner).renew(report)
                self._renewals[owner.id] = self._renewals.get(owner.id, 0) + 1
            case EndLease(owner):
                await self._memory.lease(owner).end()
                # It is gone for good: who comes back under its name is another owner.
                self._owners[self._owners.index(owner)] = self._owner(owner.name)
            case ClaimMany(claims):
                await self._learn_epochs(claims)
            case Release(owner_id, epochs):
                await self._memory.release(owner_id, epochs)
            case Truncate(stream_id, through, reason, epoch):
                with suppress(FencedError):
                    await self._memory.truncate(stream_id, through, reason=reason, epoch=epoch)
            case _:
                pass
        return operation

    async def _learn_epochs(self, claims: Sequence[Claim]) -> None:
        try:
            answers = await self._memory.claim(claims)
        except LeaseLost:
            return
        for claim, answer in zip(claims, answers, strict=True):
            if isinstance(answer, int):
                self._epochs[claim.stream_id] = answer
                self._held[claim.stream_id] = (claim.owner or bytes(16), answer)

    # Appends

    def _append_group(self) -> AppendGroup:
        size = self._random.choice((1, 1, 1, 1, 1, 1, 2, 5))
        return AppendGroup([self._batch() for _ in range(size)])

    def _batch(self) -> Batch:
        draws = (self._new_batch, self._repeated, self._repeated_in_part, self._nothing)
        [draw_batch] = self._random.choices(draws, (74, 10, 8, 8))
        return draw_batch()

    def _new_batch(self) -> Batch:
        batch_id = self._id()
        after: dict[str, int] = {}
        writes: list[StreamWrite] = []
        for _ in range(self._random.choice((1, 1, 1, 1, 2, 3))):
            stream_id = self._stream_id()
            version = after.get(stream_id, self._versions.get(stream_id, 0))
            [size] = self._random.choices((0, 1, 2, 3, 40), (6, 20, 8, 4, 1))
            events = [self._event(batch_id) for _ in range(size)]
            if events and not any(write.events for write in writes):
                events[0] = events[0]._replace(event_id=batch_id)
            commands = self._commands(size)
            writes.append(StreamWrite(stream_id, self._expected(version), events, self._epoch(stream_id), commands))
            after[stream_id] = version + len(events)
        return writes

    def _repeated(self) -> Batch:
        """A batch as it is stored: nearly always an identical one, sometimes with another expectation."""
        stored = self._stored if self._random.random() < 0.5 else self._stored[-20:]
        batch = self._random.choice(stored or [[]])
        if self._random.random() < 0.3:
            return [write._replace(expected=Expected.ANY) for write in batch]
        return batch

    def _repeated_in_part(self) -> Batch:
        """A batch with events that are stored: not all of them, more than all, elsewhere, or in another order."""
        batch = list(self._random.choice(self._stored or [[]]))
        if not batch:
            return batch
        place = self._random.randrange(len(batch))
        write = batch[place]._replace(expected=Expected.ANY)
        events = list(write.events)
        match self._random.randrange(5):
            case 0:
                write = write._replace(events=events[1:])
            case 1:
                write = write._replace(events=[*events, self._event(self._id())])
            case 2:
                write = write._replace(stream_id=self._stream_id())
            case 3:
                write = write._replace(events=events[::-1])
            case _:
                write = write._replace(events=[*events, *events])
        batch[place] = write
        return batch

    def _nothing(self) -> Batch:
        """No events, with or without an expectation."""
        stream_id = self._stream_id()
        expected = self._expected(self._versions.get(stream_id, 0))
        commands = self._commands(self._random.randrange(3))
        write = StreamWrite(stream_id, expected, (), self._epoch(stream_id), commands)
        return [write] if self._random.random() < 0.8 else []

    def _commands(self, at_most: int) -> list[CommandOutcome]:
        """What commands came to: of none, most of the time. Ids come up again, nearly never within one write."""
        if self._random.random() < 0.5:
            return []
        return [self._command() for _ in range(min(at_most, self._random.choice((1, 1, 1, 2))))]

    def _command(self) -> CommandOutcome:
        # An id tells no time, an early one, or one that is yet to come.
        [issued_at] = self._random.choices((0, self._random.randrange(1, 10**6), 2**45), (50, 48, 2))
        return CommandOutcome(
            self._random.choice(COMMAND_IDS),
            self._id(),
            self._id(),
            self._random.random() < 0.3,
            payload(self._random),
            issued_at,
        )

    def _expected(self, version: int) -> int:
        """Right most of the time."""
        wrong = [version + 1, version - 1, Expected.NO_STREAM, 10**6] if version else [1, Expected.STREAM_EXISTS]
        right = [version, version, Expected.ANY, Expected.STREAM_EXISTS if version else Expected.NO_STREAM]
        return self._random.choice(right if self._random.random() < 0.85 else wrong)

    def _epoch(self, stream_id: str) -> int | None:
        current = self._epochs.get(stream_id)
        if current is None or self._random.random() < 0.3:
            return None
        return current if self._random.random() < 0.7 else self._random.randrange(current)

    def _event(self, batch_id: bytes) -> EncodedEvent:
        event = encoded_event(
            self._id(),
            self._random.choice(TYPES),
            self._random.choice((1, 1, 1, 2, 1000)),
            payload(self._random),
            encode_metadata(metadata(self._random)),
            batch_id,
        )
        return event if self._random.random() < 0.8 else event._replace(replica=self._replica())

    def _replica(self) -> ReplicaFields:
        origin = self._random.choice(REPLICAS)
        sequence = self._random.choice((1, 2, 2**63 - 1))
        clock = json.dumps({"clock": {origin: sequence}, "time": sequence}, ensure_ascii=False).encode()
        return ReplicaFields(origin, sequence, clock, self._random.random() < 0.5)

    def _id(self) -> bytes:
        return self._random.randbytes(16)

    # Reads

    def _load_many(self) -> LoadMany:
        return LoadMany([self._load() for _ in range(self._random.choice((1, 1, 2, 10)))])

    def _load(self) -> Load:
        stream_id = self._stream_id()
        after = self._random.choice((0, 0, self._version_near(stream_id)))
        return Load(stream_id, after, self._random.random() < 0.8, self._random.choice((1, 7, 1000)))

    def _read_stream(self) -> ReadStream:
        stream_id = self._stream_id()
        after = self._random.choice((0, 0, self._version_near(stream_id), 2**62))
        through = self._random.choice((None, None, self._version_near(stream_id), 2**62))
        limit = self._random.choice((0, 1, 7, 1000))
        return ReadStream(stream_id, after, through, limit, self._random.random() < 0.4)

    def _read_log(self) -> ReadLog:
        # Not often all of it: it grows long.
        [count] = self._random.choices((0, 5, 50, 400, 10**9), (1, 3, 6, 3, 1))
        page_size = self._random.choice((1, 3, 50, 1000) if count <= 50 else (50, 1000))
        return ReadLog(max(0, self._events - count), page_size, self._filter())

    def _read_moved(self) -> ReadMoved:
        [count] = self._random.choices((0, 5, 50, 10**9), (1, 4, 4, 1))
        return ReadMoved(max(0, self._events - count), self._random.choice((3, 1000) if count <= 50 else (1000,)))

    def _read_last(self) -> ReadLast:
        [count] = self._random.choices((0, 1, 5, 50, 10**6), (2, 4, 4, 4, 1))
        return ReadLast(count, self._filter())

    def _list_streams(self) -> ListStreams:
        return ListStreams(self._random.choice((3, 20, 1000)), self._random.choice((None, None, *KINDS)))

    def _wait(self) -> Operation:
        return Wait(self._random.randrange(self._events)) if self._events else Count()

    def _filter(self) -> EventFilter:
        if self._random.random() < 0.3:
            return EventFilter()
        return EventFilter(
            kinds=self._some(KINDS, 0.3),
            types=self._some(TYPES, 0.3),
            tags=self._some(TAGS, 0.3),
            stream_ids=self._some(STREAM_IDS, 0.2),
        )

    def _some(self, values: Sequence[str], probability: float) -> tuple[str, ...]:
        if self._random.random() > probability:
            return ()
        return tuple(self._random.sample(values, self._random.randint(1, len(values) // 2)))

    # Snapshots, epochs, truncation

    def _save_snapshot(self) -> SaveSnapshot:
        stream_id = self._stream_id()
        taken = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._random.randrange(10**14))
        snapshot = StoredSnapshot(
            stream_id,
            1 + self._version_near(stream_id),
            self._random.choice(TEXTS),
            self._random.choice(("json", "json+zstd", "newer/1")),
            self._random.randbytes(self._random.choice((0, 1, 300, 20_000))),
            self._random.randbytes(16),
            taken,
            self._epoch(stream_id) or 0,
        )
        return SaveSnapshot(snapshot, self._random.choice((1, 2, 2, 3)))

    def _read_snapshots(self) -> ReadSnapshots:
        stream_id = self._stream_id()
        return ReadSnapshots(stream_id, self._bound(stream_id), self._random.choice((0, 1, 10)))

    def _delete_snapshots(self) -> DeleteSnapshots:
        stream_id = self._stream_id()
        return DeleteSnapshots(stream_id, self._bound(stream_id))

    def _truncate(self) -> Truncate:
        stream_id = self._stream_id()
        through = self._random.choice((self._version_near(stream_id) // 2, self._version_near(stream_id), 2**62))
        return Truncate(stream_id, through, self._random.choice(TEXTS), self._epoch(stream_id))

    # Commands

    def _find_commands(self) -> FindCommands:
        return FindCommands([self._lookup() for _ in range(self._random.choice((1, 1, 2, 10)))])

    def _lookup(self) -> CommandLookup:
        recent = self._random.choice((0, 1, 3, 1000))
        return CommandLookup(self._stream_id(), self._random.choice(COMMAND_IDS), recent)

    def _forget_commands(self) -> ForgetCommands:
        # Times are each database's own. These are before and after all of them.
        before = self._random.choice((None, None, datetime(1971, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)))
        return ForgetCommands(self._stream_id(), self._random.choice((0, 1, 1, 2, 5)), before)

    # Ownership

    def _owner(self, name: str) -> Owner:
        return Owner(self._id(), name, 3600.0)

    def _renew_lease(self) -> RenewLease:
        return RenewLease(self._random.choice(self._owners), payload(self._random))

    def _end_lease(self) -> Operation:
        begun = [owner for owner in self._owners if owner.id in self._renewals]
        return EndLease(self._random.choice(begun)) if begun else ListOwners()

    def _claim_many(self) -> ClaimMany:
        stream_ids = {self._stream_id() for _ in range(self._random.choice((1, 1, 2, 6)))}
        claimant = self._random.choice((None, *self._owners))
        return ClaimMany([self._claim(stream_id, claimant) for stream_id in sorted(stream_ids)])

    def _claim(self, stream_id: str, claimant: Owner | None) -> Claim:
        if claimant is None or self._random.random() < 0.1:
            return Claim(stream_id)
        holder, _ = self._held.get(stream_id, (b"", 0))
        renewals = self._renewals.get(holder, 1)
        return Claim(stream_id, claimant.id, self._random.choice((None, None, renewals, renewals - 1)))

    def _release(self) -> Release:
        """What an owner holds, or held once; another's; or with another epoch."""
        owner = self._random.choice(self._owners).id
        held = sorted(stream_id for stream_id, (holder, _) in self._held.items() if holder == owner)
        chosen = self._random.sample(held, min(len(held), self._random.randrange(4)))
        epochs = {stream_id: self._held[stream_id][1] for stream_id in chosen}
        if self._random.random() < 0.3:
            stream_id = self._stream_id()
            epochs[stream_id] = self._epochs.get(stream_id, 1) - self._random.randrange(2)
        return Release(owner, epochs)

    def _list_holdings(self) -> ListHoldings:
        return ListHoldings(self._random.choice((1, 5, 1000)))

    def _stream_id(self) -> str:
        """A few streams get long, most stay short."""
        if self._random.random() < 0.4:
            return self._random.choice(STREAM_IDS)
        return STREAM_IDS[min(int(self._random.expovariate(1 / 16)), len(STREAM_IDS) - 1)]

    def _version_near(self, stream_id: str) -> int:
        return self._random.randrange(self._versions.get(stream_id, 0) + 3)

    def _bound(self, stream_id: str) -> int | None:
        return self._random.choice((None, self._version_near(stream_id)))

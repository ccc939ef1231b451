"""The journal of MemoryBackend: every event in one list, what finds it, and the decision what is stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from backends.memory_owners import Owners
from backends.waiters import Waiters
from eventstore.backend import (
    Appended,
    AppendOutcome,
    Batch,
    CheckpointKey,
    Claim,
    CommandLookup,
    CommandOutcome,
    CommandsFound,
    EncodedEvent,
    EventPage,
    Holder,
    Load,
    Loaded,
    Removal,
    StoredCheckpoint,
    StoredCommand,
    StoredSeal,
    StoredSnapshot,
    refusal,
)
from eventstore.codec import damaged, decode_metadata, verify_checksum
from eventstore.contract.archive import Fence, StreamKey
from eventstore.contract.passed_events import check_passed, no_snapshot
from eventstore.errors import (
    CommandForgotten,
    ConcurrencyError,
    DuplicateCommand,
    DuplicateEventError,
    FencedError,
    StoreFenced,
)
from eventstore.events import RecordedEvent
from eventstore.tenant import NO_TENANT

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


class Entry(NamedTuple):
    """One stored event. It keeps the bytes: a reader gets objects of its own and can change nothing."""

    position: int
    tenant: str
    stream_id: str
    version: int
    event: EncodedEvent
    epoch: int
    recorded_at: datetime

    def recorded(self) -> RecordedEvent:
        event_id, type_, schema_version, payload, metadata, batch_id, checksum, replica = self.event
        try:
            verify_checksum(checksum, type_, schema_version, payload, metadata)
        except ValueError as error:
            raise damaged(
                error, stream_id=self.stream_id, version=self.version, position=self.position, tenant=self.tenant
            ) from error
        origin, sequence, clock, concurrent = (None, None, None, False) if replica is None else replica
        return RecordedEvent(
            self.position,
            self.stream_id,
            self.version,
            type_,
            schema_version,
            payload,
            decode_metadata(metadata),
            UUID(bytes=event_id),
            UUID(bytes=batch_id),
            self.epoch,
            self.recorded_at,
            checksum,
            self.tenant,
            origin,
            sequence,
            clock,
            concurrent,
            metadata,
        )


class Remembered(NamedTuple):
    """The outcome of a command, as it was stored."""

    outcome: CommandOutcome
    version: int
    recorded_at: datetime

    def stored(self) -> StoredCommand:
        command_id, fingerprint, outcome_id, is_rejection, payload, _ = self.outcome
        return StoredCommand(command_id, fingerprint, outcome_id, is_rejection, payload, self.version, self.recorded_at)

    @property
    def issued_at(self) -> int:
        """When the command was issued, as far as its id may be believed: not after it was stored."""
        return min(self.outcome.issued_at, (self.recorded_at - _EPOCH_START) // timedelta(milliseconds=1))


@dataclass(slots=True)
class Stream:
    """One stream: its entries after the truncated ones, its snapshots by version, its commands in stored order."""

    entries: list[Entry] = field(default_factory=list[Entry])
    truncated: int = 0
    epoch: int = 0
    owner: bytes | None = None
    snapshots: dict[int, StoredSnapshot] = field(default_factory=dict[int, StoredSnapshot])
    commands: dict[str, Remembered] = field(default_factory=dict[str, Remembered])
    forgotten: int = 0

    @property
    def version(self) -> int:
        return self.truncated + len(self.entries)

    @property
    def is_known(self) -> bool:
        return self.version > 0 or bool(self.snapshots)

    def select(self, *, after: int, through: int | None, limit: int, backwards: bool = False) -> list[Entry]:
        last = self.version if through is None else min(through, self.version)
        versions = range(max(after, self.truncated) + 1, last + 1)
        if backwards:
            versions = versions[::-1]
        return [self.entries[version - self.truncated - 1] for version in versions[:limit]]

    def save_snapshot(self, snapshot: StoredSnapshot, keep: int) -> bool:
        there = self.snapshots.get(snapshot.version)
        if there is None or there.fingerprint == snapshot.fingerprint or not self._stands_for_removed(snapshot.version):
            self.snapshots[snapshot.version] = snapshot
        schemas: set[str] = set()
        for number, version in enumerate(sorted(self.snapshots, reverse=True)):
            schema = self.snapshots[version].fingerprint
            if number >= keep and (schema in schemas or not self._stands_for_removed(version)):
                del self.snapshots[version]
            schemas.add(schema)
        return self.snapshots.get(snapshot.version) is snapshot

    def _stands_for_removed(self, version: int) -> bool:
        """Whether what a snapshot of that version holds cannot be had from the events any more."""
        return 0 < self.truncated <= version

    def load(self, load: Load) -> Loaded:
        newest = max(self.snapshots, default=0) if load.use_snapshot else 0
        snapshot = self.snapshots[newest] if newest > load.after else None
        after = load.after if snapshot is None else snapshot.version
        found = self.select(after=after, through=None, limit=load.limit)
        events = EventPage.of(
            (version, event.type, event.schema_version, event.payload, event.checksum)
            for _, _, _, version, event, _, _ in found
        )
        is_stamped = bool(found) and found[0].event.replica is not None
        return Loaded(snapshot, events, self.version, self.truncated, is_stamped)

    def check_epoch(self, stream_id: str, epoch: int | None) -> None:
        """Raise `FencedError` for an epoch that has been overtaken. None is not checked."""
        if epoch is not None and epoch < self.epoch:
            raise FencedError(stream_id, epoch, self.epoch)

    def find_command(self, lookup: CommandLookup) -> CommandsFound:
        found = self.commands.get(lookup.command_id)
        # Python orders text by code point, which is the order of its UTF-8 bytes.
        recent = sorted(self.commands, reverse=True)[: lookup.recent]
        known_above = recent[-1] if recent else None
        if lookup.recent and len(recent) == len(self.commands):
            known_above = ""
        return CommandsFound(found and found.stored(), recent, known_above, self.forgotten)

    def forget_commands(self, keep: int, before: datetime | None) -> int:
        older = list(self.commands.values())[: max(0, len(self.commands) - keep)]
        return self.forget([each for each in older if before is None or each.recorded_at < before])

    def forget(self, doomed: Sequence[Remembered]) -> int:
        for each in doomed:
            del self.commands[each.outcome.command_id]
            self.forgotten = max(self.forgotten, each.issued_at)
        return len(doomed)

    def snapshot_versions(self, through: int | None) -> list[int]:
        return [version for version in self.snapshots if through is None or version <= through]


class Log:
    """What all tenants share: every event in the order of the log, None where it was truncated; and each one's own."""

    def __init__(self) -> None:
        self.entries: list[Entry | None] = []
        self.entries_by_id: dict[bytes, Entry] = {}
        self.removals: list[Removal] = []
        self.seals: list[StoredSeal] = []
        self.journals: dict[str, Journal] = {}
        # Every stream of everybody, in the order they came in.
        self.streams: list[tuple[StreamKey, Stream]] = []
        self.waiters = Waiters()
        # Up to which position this is a copy of another journal, and why nothing may be added any more.
        self.copied: int | None = None
        self.fence: Fence | None = None
        self._clock = _EPOCH_START

    def journal(self, tenant: str) -> Journal:
        return self.journals.setdefault(tenant, Journal(self, tenant))

    def check_fence(self) -> None:
        """Raise `StoreFenced` if nothing may be added any more."""
        if self.fence is not None:
            raise StoreFenced("", self.fence.reason)

    def place(self, entry: Entry) -> None:
        """Put an entry into the log and its stream, at its own position, which is behind all others."""
        self.reach(entry.position - 1)
        self.entries.append(entry)
        self.journal(entry.tenant).made(entry.stream_id).entries.append(entry)
        self.entries_by_id[entry.event.event_id] = entry
        self._clock = max(self._clock, entry.recorded_at)

    def reach(self, position: int) -> None:
        """Let the log end at a position, or further."""
        self.entries.extend([None] * (position - len(self.entries)))

    def now(self) -> datetime:
        # The wall clock may jump back; times in the log do not.
        self._clock = max(self._clock, datetime.fromtimestamp(time.time(), UTC))
        return self._clock


class Journal:
    """One tenant's streams, owners and checkpoints."""

    def __init__(self, log: Log, tenant: str) -> None:
        self.log = log
        self.tenant = tenant
        self.streams: dict[str, Stream] = {}
        self.owners = Owners()
        self.checkpoints: dict[tuple[str, int], StoredCheckpoint] = {}

    def stream(self, stream_id: str) -> Stream:
        """The stream to read from; asking for one creates none."""
        return self.streams.get(stream_id) or Stream()

    def made(self, stream_id: str) -> Stream:
        """The stream to change, which is made if there is none."""
        stream = self.streams.get(stream_id)
        if stream is None:
            stream = self.streams[stream_id] = Stream()
            self.log.streams.append(((self.tenant, stream_id), stream))
        return stream

    def append(self, batch: Batch) -> AppendOutcome:
        # Ids come first: a batch that is stored is stored, whatever the versions and the owner are by now.
        if original := self._original(batch):
            return original
        if (fence := self.log.fence) is not None:
            return StoreFenced(batch[0].stream_id if batch else "", fence.reason)
        return self._taken_id(batch) or self._refusal(batch) or self._store(batch)

    def truncate_to(self, stream_id: str, through: int, reason: str) -> None:
        """Let a stream be truncated up to a version that it may not have come to."""
        stream = self.made(stream_id)
        self._remove(stream_id, stream, through, reason)
        stream.truncated = max(stream.truncated, through)

    def change_checkpoints(self, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey]) -> bool:
        found = {key: stored.revision for key, stored in self.checkpoints.items()}
        are_there = all(found.get((name, version)) == revision for name, version, revision in removing)
        if not are_there or any(found.get(each.key[:2], 0) != each.revision for each in saving):
            return False
        for each in saving:
            self.checkpoints[each.key[:2]] = each._replace(revision=each.revision + 1)
        for name, version, _ in removing:
            del self.checkpoints[name, version]
        return True

    def claim(self, claims: Sequence[Claim]) -> list[int | Holder]:
        self.log.check_fence()
        for claim in claims:
            if claim.owner is not None:
                self.owners.check(claim.owner)
        answers: list[int | Holder] = []
        for stream_id, owner, lapsed in claims:
            stream = self.made(stream_id)
            if owner is not None and stream.owner is not None and stream.owner != owner:
                holder = self.owners.holder(stream.owner)
                if holder is not None and holder.renewals != lapsed:
                    answers.append(holder)
                    continue
            stream.epoch += 1
            stream.owner = owner
            answers.append(stream.epoch)
        return answers

    def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        for stream_id, epoch in epochs.items():
            stream = self.stream(stream_id)
            if (stream.owner, stream.epoch) == (owner, epoch):
                stream.owner = None

    def truncate(self, stream_id: str, through: int, reason: str, epoch: int | None, fingerprint: str | None) -> int:
        self.log.check_fence()
        stream = self.stream(stream_id)
        stream.check_epoch(stream_id, epoch)
        for last in stream.select(after=0, through=through, limit=len(stream.entries))[-1:]:
            checkpoints = [*self.checkpoints.values(), *self.log.journal(NO_TENANT).checkpoints.values()]
            check_passed(checkpoints, self.tenant, stream_id, last.position)
            if fingerprint is not None and not any(
                each.fingerprint == fingerprint and each.version >= last.version for each in stream.snapshots.values()
            ):
                raise no_snapshot(stream_id, last.version, fingerprint)
        return self._remove(stream_id, stream, through, reason)

    def _remove(self, stream_id: str, stream: Stream, through: int, reason: str) -> int:
        removed = stream.select(after=0, through=through, limit=len(stream.entries))
        if removed:
            number, last = len(self.log.removals) + 1, removed[-1].version
            self.log.removals.append(
                Removal(number, stream_id, last, len(removed), reason, self.log.now(), self.tenant)
            )
            stream.truncated += len(removed)
            del stream.entries[: len(removed)]
            stream.forget([each for each in stream.commands.values() if each.version <= removed[-1].version])
        for entry in removed:
            self.log.entries[entry.position - 1] = None
            del self.log.entries_by_id[entry.event.event_id]
        return len(removed)

    def _original(self, batch: Batch) -> Appended | None:
        """Where the batch stands if all of it is stored: the same events in the same streams and order."""
        position = 0
        versions: list[int] = []
        for write in batch:
            version = self.stream(write.stream_id).version
            for index, event in enumerate(write.events):
                entry = self.log.entries_by_id.get(event.event_id)
                if entry is None or (entry.tenant, entry.stream_id) != (self.tenant, write.stream_id):
                    return None
                if entry.position <= position:
                    return None
                if index > 0 and entry.version != version + 1:
                    return None
                position, version = entry.position, entry.version
            versions.append(version)
        if position:
            return Appended(position, tuple(versions), is_duplicate=True)
        return None if any(write.events for write in batch) else self._original_commands(batch)

    def _original_commands(self, batch: Batch) -> Appended | None:
        """Where a batch without events stands, if this very one is stored."""
        versions: list[int] = []
        is_repeated = False
        for write in batch:
            stream = self.stream(write.stream_id)
            version = stream.version
            for command in write.commands:
                found = stream.commands.get(command.command_id)
                if found is None or found.outcome.outcome_id != command.outcome_id:
                    return None
                version, is_repeated = found.version, True
            versions.append(version)
        return Appended(0, tuple(versions), is_duplicate=True) if is_repeated else None

    def _taken_id(self, batch: Batch) -> DuplicateEventError | None:
        seen: set[bytes] = set()
        for write in batch:
            for event in write.events:
                if event.event_id in self.log.entries_by_id or event.event_id in seen:
                    return DuplicateEventError(write.stream_id, str(UUID(bytes=event.event_id)))
                seen.add(event.event_id)
        return None

    def _refusal(self, batch: Batch) -> ConcurrencyError | FencedError | DuplicateCommand | CommandForgotten | None:
        versions: dict[str, int] = {}
        taken: set[tuple[str, str]] = set()
        for write in batch:
            stream = self.stream(write.stream_id)
            version = versions.get(write.stream_id, stream.version)
            if write.epoch is not None and write.epoch < stream.epoch:
                return FencedError(write.stream_id, write.epoch, stream.epoch)
            for command in write.commands:
                key = (write.stream_id, command.command_id)
                if command.command_id in stream.commands or key in taken:
                    return DuplicateCommand(*key)
                taken.add(key)
                if 0 < command.issued_at <= stream.forgotten:
                    return CommandForgotten(*key)
            if (refused := refusal(write, version, stream.epoch)) is not None:
                return refused
            versions[write.stream_id] = version + len(write.events)
        return None

    def _store(self, batch: Batch) -> Appended:
        position = 0
        versions: list[int] = []
        log = self.log
        now = log.now()
        for write in batch:
            stream = self.made(write.stream_id)
            for event in write.events:
                position = len(log.entries) + 1
                epoch = write.epoch or 0
                entry = Entry(position, self.tenant, write.stream_id, stream.version + 1, event, epoch, now)
                log.entries.append(entry)
                stream.entries.append(entry)
                log.entries_by_id[event.event_id] = entry
            for command in write.commands:
                stream.commands[command.command_id] = Remembered(command, stream.version, now)
            versions.append(stream.version)
        return Appended(position, tuple(versions))

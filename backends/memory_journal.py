"""The journal of MemoryBackend: every event in one list, what finds it, and the decision what is stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from backends.memory_owners import Owners
from backends.memory_stream import Entry, Remembered, Stream
from backends.times import EPOCH_START
from backends.waiters import Waiters
from eventstore.backend import (
    Appended,
    AppendOutcome,
    Batch,
    CheckpointKey,
    Claim,
    Holder,
    Removal,
    StoredCheckpoint,
    StoredSeal,
    refusal,
)
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
from eventstore.tenant import NO_TENANT


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
        self._clock = EPOCH_START

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

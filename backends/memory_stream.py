"""Stream: one stream of MemoryBackend, its events, snapshots and remembered commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from backends.times import EPOCH_START
from eventstore.backend import (
    CommandLookup,
    CommandOutcome,
    CommandsFound,
    EncodedEvent,
    EventPage,
    Load,
    Loaded,
    StoredCommand,
    StoredSnapshot,
)
from eventstore.codec import damaged, decode_metadata, verify_checksum
from eventstore.errors import FencedError
from eventstore.events import RecordedEvent


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
        return min(self.outcome.issued_at, (self.recorded_at - EPOCH_START) // timedelta(milliseconds=1))


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

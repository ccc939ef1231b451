"""Group: the decision which batches of a group are stored, made in memory on the remembered heads of their streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import UUID

from eventstore.backend import (
    Appended,
    AppendOutcome,
    Batch,
    CommandOutcome,
    Expected,
    ReplicaFields,
    StreamWrite,
    refusal,
)
from eventstore.errors import CommandForgotten, DuplicateCommand, DuplicateEventError, FencedError, StoreFenced

_ANY = int(Expected.ANY)
# As the class does it by itself, without a call in Python for each batch.
_new_appended = cast("Callable[[type[Appended], tuple[Any, ...]], Appended]", tuple.__new__)


class Head:
    """What is remembered of a stream. `id` is 0 while its row does not exist."""

    __slots__ = ("epoch", "forgotten", "id", "version")

    def __init__(self, id: int, version: int, epoch: int, forgotten: int = 0) -> None:
        self.id = id
        self.version = version
        self.epoch = epoch
        self.forgotten = forgotten


Place = tuple[str, int, int]
"""Where an event is stored: stream, version, position."""


CommandKey = tuple[str, str]
"""A remembered command: stream and command id."""

Remembered = tuple[bytes, int]
"""What came of it: outcome id and version."""


class Group:
    """The decision about a group: which batches are stored, in order, each seeing those before it.

    With `stored`, the places of the group's events that are in the journal already, repeats are recognised; then
    `commands` must tell which of the group's commands are remembered already. Without, the database refuses repeats.
    With a `fence`, the reason for it, only repeats are answered.
    """

    def __init__(
        self,
        streams: dict[str, Head],
        last_position: int,
        stored: dict[bytes, Place] | None = None,
        commands: dict[CommandKey, Remembered] | None = None,
        *,
        fence: str | None = None,
    ) -> None:
        self._streams = streams
        self.last_position = last_position
        self._stored = stored
        self._commands = {} if commands is None else commands
        self._fence = fence
        self.versions: dict[str, int] = {}
        """The version that each stream with new events has after them."""
        self.rows: list[tuple[Any, ...]] = []
        self.replicas: dict[int, ReplicaFields] = {}
        """What replicas say of events, by the event's place among `rows`."""
        self.commands: list[tuple[Head, int, CommandOutcome]] = []
        """What is to be remembered: stream, its version after the write, outcome."""
        self.command_streams: set[str] = set()
        """The streams of these."""
        self.outcomes: list[AppendOutcome] = []
        self.has_new_streams = False
        self.has_epochs = False
        """Whether a stream with new events has ever been claimed."""
        self.asserts_epochs = False
        """Whether a write without events is by an owner: what is stored rests on that stream's epoch too."""

    def decide(self, batch: Batch) -> AppendOutcome:
        """Decide about one batch. An outcome that is `Appended` becomes true when `rows` are stored."""
        repeated = None if self._stored is None else self._repeated(batch, self._stored)
        if repeated is not None:
            outcome = repeated
        elif self._fence is not None:
            outcome = StoreFenced(batch[0].stream_id if batch else "", self._fence)
        elif self._stored is None:
            self.stores_all([batch])
            return self.outcomes[-1]
        else:
            outcome = self._placed(batch)
        self.outcomes.append(outcome)
        return outcome

    def stores_all(self, batches: Sequence[Batch]) -> bool:
        """Decide about batches in turn, until one cannot be stored as far as is remembered. Whether there was none.

        Only where no ids are compared.
        """
        outcomes, alone = self.outcomes, self._placed_alone
        for batch in batches:
            # The hot path: nearly every batch is one write.
            outcome = alone(batch[0]) if len(batch) == 1 else self._placed(batch)
            outcomes.append(outcome)
            if outcome.__class__ is not Appended:
                return False
        return True

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be stored."""
        return not (self.rows or self.commands)

    def new_streams(self) -> list[str]:
        """The streams whose row does not exist yet, and that get an event or remember a command now."""
        named = dict.fromkeys((*self.versions, *self.command_streams))
        return [stream_id for stream_id in named if not self._streams[stream_id].id]

    def adopt(self) -> None:
        """Remember what is stored now."""
        for stream_id, version in self.versions.items():
            self._streams[stream_id].version = version

    def _placed_alone(self, write: StreamWrite) -> AppendOutcome:
        """What `_placed` does for a batch of one write, where no ids are compared."""
        stream_id, expected, events, epoch, commands = write
        stream = self._streams[stream_id]
        version = self.versions.get(stream_id, stream.version)
        if commands and (
            # Nearly all are new, and of a stream that has forgotten none. The owner of the others is looked at below.
            len(commands) > 1 or (stream_id, commands[0].command_id) in self._commands or stream.forgotten
        ):
            refused = self._refused_command(write, stream, set() if len(commands) > 1 else None)
            if refused is not None:
                return refused
        if expected not in (version, _ANY) or (epoch is not None and epoch < stream.epoch):
            refused = refusal(write, version, stream.epoch)
            if refused is not None:
                return refused
        if commands:
            self._remember(stream_id, stream, version + len(events), commands)
        if not events:
            self.asserts_epochs = self.asserts_epochs or epoch is not None
            return Appended(0, (version,))
        rows = self.rows
        for event_id, type_, schema_version, payload, metadata, batch_id, checksum, replica in events:
            version += 1
            if replica is not None:
                self.replicas[len(rows)] = replica
            first_of = None if batch_id == event_id else batch_id
            rows.append(
                (stream, version, type_, schema_version, payload, metadata, event_id, first_of, checksum, epoch or 0)
            )
        self.versions[stream_id] = version
        if not stream.id:
            self.has_new_streams = True
        if stream.epoch:
            self.has_epochs = True
        return _new_appended(Appended, (self.last_position + len(rows), (version,), False))

    def _placed(self, batch: Batch) -> AppendOutcome:
        versions: dict[str, int] = {}
        after: list[int] = []
        rows: list[tuple[Any, ...]] = []
        replicas: dict[int, ReplicaFields] = {}
        taken: set[CommandKey] = set()
        for write in batch:
            stream_id = write.stream_id
            stream = self._streams[stream_id]
            version = versions.get(stream_id)
            if version is None:
                version = self.versions.get(stream_id, stream.version)
            if write.commands and (refused := self._refused_command(write, stream, taken)):
                return refused
            # Most writes expect exactly this version, and hold the newest epoch or none: no call for them.
            if version != write.expected or (write.epoch is not None and write.epoch < stream.epoch):
                refused = refusal(write, version, stream.epoch)
                if refused is not None:
                    return refused
            epoch = write.epoch or 0
            for event_id, type_, schema_version, payload, metadata, batch_id, checksum, replica in write.events:
                version += 1
                if replica is not None:
                    replicas[len(self.rows) + len(rows)] = replica
                first_of = None if batch_id == event_id else batch_id
                rows.append(
                    (stream, version, type_, schema_version, payload, metadata, event_id, first_of, checksum, epoch)
                )
            if write.events:
                versions[stream_id] = version
                self.has_new_streams = self.has_new_streams or not stream.id
                self.has_epochs = self.has_epochs or bool(stream.epoch)
            else:
                self.asserts_epochs = self.asserts_epochs or write.epoch is not None
            after.append(version)
        if self._stored is not None:
            first = self.last_position + len(self.rows) + 1
            self._stored.update(
                (event.event_id, (write.stream_id, rows[index][1], first + index))
                for index, (write, event) in enumerate((write, event) for write in batch for event in write.events)
            )
        for write, version in zip(batch, after, strict=True):
            if write.commands:
                self._remember(write.stream_id, self._streams[write.stream_id], version, write.commands)
        self.versions.update(versions)
        self.rows.extend(rows)
        self.replicas.update(replicas)
        return Appended(self.last_position + len(self.rows) if rows else 0, tuple(after))

    def _refused_command(self, write: StreamWrite, stream: Head, taken: set[CommandKey] | None) -> AppendOutcome | None:
        """Why a write's commands cannot be remembered. `taken` are those before them in the batch, None if there is but
        this one."""
        if write.epoch is not None and write.epoch < stream.epoch:
            return FencedError(write.stream_id, write.epoch, stream.epoch)
        for command in write.commands:
            key = (write.stream_id, command.command_id)
            if key in self._commands or (taken is not None and key in taken):
                return DuplicateCommand(*key)
            if taken is not None:
                taken.add(key)
            if 0 < command.issued_at <= stream.forgotten:
                return CommandForgotten(*key)
        return None

    def _remember(self, stream_id: str, stream: Head, version: int, commands: Sequence[CommandOutcome]) -> None:
        self.command_streams.add(stream_id)
        if not stream.id:
            self.has_new_streams = True
        if stream.epoch:
            self.has_epochs = True
        for command in commands:
            self.commands.append((stream, version, command))
            self._commands[stream_id, command.command_id] = (command.outcome_id, version)

    def _repeated(self, batch: Batch, stored: dict[bytes, Place]) -> AppendOutcome | None:
        """The original outcome of a batch that is stored, an error for one that is in part, None for a new one."""
        seen: set[bytes] = set()
        repeated: tuple[StreamWrite, bytes] | None = None
        is_whole = True
        for write in batch:
            for event in write.events:
                if repeated is None and (event.event_id in stored or event.event_id in seen):
                    repeated = write, event.event_id
                is_whole = is_whole and event.event_id in stored
                seen.add(event.event_id)
        if repeated is None:
            return self._repeated_commands(batch) if not seen else None
        if is_whole and (original := self._original(batch, stored)) is not None:
            return original
        write, event_id = repeated
        return DuplicateEventError(write.stream_id, str(UUID(bytes=event_id)))

    def _repeated_commands(self, batch: Batch) -> Appended | None:
        """The original outcome of a batch without events, if this very one is stored already."""
        versions: list[int] = []
        is_repeated = False
        for write in batch:
            version = self.versions.get(write.stream_id, self._streams[write.stream_id].version)
            for command in write.commands:
                outcome_id, version = self._commands.get((write.stream_id, command.command_id), (b"", version))
                if outcome_id != command.outcome_id:
                    return None
                is_repeated = True
            versions.append(version)
        return Appended(0, tuple(versions), is_duplicate=True) if is_repeated else None

    def _original(self, batch: Batch, stored: dict[bytes, Place]) -> Appended | None:
        versions: list[int] = []
        last_position = 0
        for write in batch:
            version = self.versions.get(write.stream_id, self._streams[write.stream_id].version)
            for index, event in enumerate(write.events):
                stream_id, stored_version, position = stored[event.event_id]
                follows = index == 0 or stored_version == version + 1
                if stream_id != write.stream_id or not follows or position <= last_position:
                    return None
                version, last_position = stored_version, position
            versions.append(version)
        return Appended(last_position, tuple(versions), is_duplicate=True)

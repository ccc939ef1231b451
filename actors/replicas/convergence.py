"""History: the events of one replicated actor in the order that all replicas agree on, and the state they lead to."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from actors.replaying.stored_events import decoded_for
from actors.replaying.unfoldable import NoHandler
from actors.replicas.conflict import Conflict, Stamped, steps_of
from actors.replicas.replicated_actor import ReplicatedActor, applying
from actors.snapshotting import snapshot_data
from actors.told_error import ENDS_THE_PROGRAM
from eventstore.codec import PAYLOAD_BITS, checksum_seed, damaged
from eventstore.errors import ActorError, CodecError, JournalCorrupt, RecoveryError
from eventstore.events import Event
from eventstore.stamp import Key, Stamp
from eventstore.vector_clock import EMPTY, VectorClock

# A state is kept after so many events, so that an event that comes late need not start from the first.
CHECKPOINT_EVERY = 64

# From so many events on it is looked whether the first of them have become stable.
_SETTLE_FROM = 2 * CHECKPOINT_EVERY


class Entry(NamedTuple):
    """One event in its place. `version` is where the local journal has it, or will have it once it is stored.

    It keeps the bytes: an event is read anew each time it is applied, so that no handler can have changed it.
    """

    key: Key
    stamp: Stamp
    event_id: bytes
    version: int
    type: str
    schema_version: int
    payload: bytes
    checksum: int


class Base(NamedTuple):
    """A state, as JSON, that holds exactly the events that `clock` knows. The last of them stands at `key`.

    `version`: up to there the local journal has nothing else. None for the state stands for the initial one.
    """

    state: bytes | None
    clock: VectorClock
    key: Key | None
    version: int


class _Checkpoint(NamedTuple):
    """The state after so many entries, and the counts of the events of each replica that are in it."""

    after: int
    state: bytes | None
    counts: Mapping[str, int]


NOTHING = Base(None, EMPTY, None, 0)


class History:
    """Holds the events behind a base, in canonical order, and an actor whose state is the fold of them all.

    An event that stands behind all others is applied. One that belongs before some of them winds the state back, to the
    nearest checkpoint before it, and folds again from there. Checkpoints are kept so that this repeats at most twice as
    many events as the late one overtakes, and `CHECKPOINT_EVERY` more. `applied` counts what was applied, for tests.
    """

    __slots__ = (
        "_actor", "_by_origin", "_checkpoint_from", "_checkpoints", "_counts", "_settled", "applied", "base", "clock",
        "entries",
    )  # fmt: skip

    def __init__(self, actor: ReplicatedActor[Any], base: Base = NOTHING) -> None:
        """Goes on from a base, whose state the actor is given. Raises `SnapshotUnusable` if it does not fit."""
        self._actor = actor
        self.base = base
        self.clock = base.clock
        self.entries: list[Entry] = []
        self.applied = 0
        # What all were known to know when it was last looked: while that is the same, nothing else is stable.
        self._settled = EMPTY
        self._counts: dict[str, int] = dict(base.clock.items())
        # The entries of each replica, which are in the order of their sequence numbers too.
        self._by_origin: dict[str, list[Entry]] = {}
        self._checkpoints = [_Checkpoint(0, base.state, dict(self._counts))]
        self._checkpoint_from = CHECKPOINT_EVERY
        if base.state is not None:
            actor.state = actor.state_type.load(base.state)

    def next_stamp(self, origin: str, time: int) -> Stamp:
        """The stamp of an event that is written now by a replica, at a time that is greater than `latest`, or equal to
        it within one command."""
        clock = self.clock.incremented(origin)
        return Stamp(origin, clock[origin], clock, time)

    @property
    def latest(self) -> int:
        """The greatest time of all known events; 0 if there are none."""
        if self.entries:
            return self.entries[-1].key[0]
        return 0 if self.base.key is None else self.base.key[0]

    def reaches(self, stamps: Iterable[Stamp]) -> bool:
        """Whether new events can be put in their places from what is held here. If not, an older base is needed."""
        base = self.base
        if base.key is None:
            return True
        has_rule = self._actor.has_rule
        return all(
            # An actor's own rule must be shown everything an event was written without.
            stamp.key > base.key and (not has_rule or stamp.clock.covers(base.clock))
            for stamp in stamps
        )

    def extend(self, entries: Sequence[Entry]) -> int:
        """Put events that are not known yet in their places. Returns how many that were known were applied again.

        Those of each replica must follow what is known of it, without a gap. Raises `RecoveryError` for a handler or a
        rule that raises, `NoHandler` for what has no handler, and the codec's errors and `JournalCorrupt` for an event
        that cannot be read. Then the history is lost: it must be read from the journal again.
        """
        new = sorted(entries)
        if not self.reaches(entry.stamp for entry in new):
            raise ActorError(f"{self._actor.persistence_id!r}: an event belongs before what is held of its history")
        for entry in new:
            self.clock = self.clock.merge(entry.stamp.clock)
        index = bisect_left(self.entries, new[0])
        overtaken = self.entries[index:]
        if overtaken:
            start = self._rewind(index)
            waiting = [*self.entries[start:index], *sorted([*overtaken, *new])]
            del self.entries[start:]
            self._apply(waiting, mark=bisect_right(waiting, new[-1]))
            return len(waiting) - len(new)
        self._apply(new, mark=0)
        return 0

    def append(self, entry: Entry, event: Event) -> None:
        """Apply an event that was just written here. It stands behind all others, because its time is the greatest."""
        self.clock = entry.stamp.clock
        self._fold(entry, (event,))
        if len(self.entries) >= self._checkpoint_from:
            self._checkpoint()

    def knows(self, stamp: Stamp) -> bool:
        """Whether an event is part of it."""
        return self.clock[stamp.origin] >= stamp.sequence

    def follows(self, stamp: Stamp) -> bool:
        """Whether all that an event was written after is known, and it is the next one of its replica."""
        before = stamp.clock.meet(self.clock)
        return self.clock[stamp.origin] == stamp.sequence - 1 and before.incremented(stamp.origin) == stamp.clock

    def find(self, origin: str, sequence: int) -> Entry | None:
        """One event, if it is still held."""
        own = self._by_origin.get(origin, ())
        place = sequence - own[0].stamp.sequence if own else -1
        return own[place] if 0 <= place < len(own) else None

    def settle(self, known_everywhere: VectorClock, *, through: int, is_forced: bool = False) -> Base:
        """Move the base up to where no event can come before any more, and return it.

        `known_everywhere` is what every replica knows as far as is known here from itself, in its own order: everything
        else that comes from it was written after that. `through` is the version that the journal is known to have
        reached. Without `is_forced` nothing is done while few events are held.
        """
        is_many = len(self.entries) >= _SETTLE_FROM and known_everywhere != self._settled
        if self.entries and (is_forced or is_many):
            self._settled = known_everywhere
            self._move_base(self._stable(known_everywhere, through))
        return self.base

    # Folding

    def _apply(self, entries: Sequence[Entry], *, mark: int) -> None:
        """Fold entries behind those that are there. The state is kept after the first `mark` of them as well: where
        one came late, more may follow, right behind it."""
        for number, entry in enumerate(entries, 1):
            events = decoded(self._actor, entry)
            try:
                self._fold(entry, events)
            except (CodecError, JournalCorrupt, NoHandler, *ENDS_THE_PROGRAM):
                # The first two are of another event, which a rule is shown.
                raise
            except BaseException as error:
                # Nothing is awaited here: a CancelledError is the handler's own, too.
                raise _fold_failed(self._actor, entry, error) from error
            if number == mark or len(self.entries) >= self._checkpoint_from:
                self._checkpoint()

    def _fold(self, entry: Entry, events: Sequence[Event]) -> None:
        actor, stamp = self._actor, entry.stamp
        self.applied += 1
        applying(actor, (stamp, entry.version))
        is_in_conflict = actor.has_rule and self._is_in_conflict(stamp)
        try:
            for event in events:
                if is_in_conflict:
                    self._resolve(Conflict(event, stamp, lambda: self._without(stamp)), entry.version)
                else:
                    actor.handlers.events[event.__class__](actor, event)
        finally:
            applying(actor, None)
        self._counts[stamp.origin] = stamp.sequence
        self._by_origin.setdefault(stamp.origin, []).append(entry)
        self.entries.append(entry)

    def _resolve(self, conflict: Conflict, version: int) -> None:
        actor = self._actor
        for event, fields in steps_of(actor.resolve(conflict)):
            handler = actor.handlers.events.get(event.__class__)
            if handler is None:
                raise NoHandler(
                    f"{type(actor).__qualname__}.resolve returned {event!r}, and there is no @event_handler for it",
                    version=version,
                )
            handler(actor, event)
            for field in fields:
                setattr(actor.state, field, getattr(event, field))

    def _is_in_conflict(self, stamp: Stamp) -> bool:
        clock = stamp.clock
        return any(count > clock[origin] for origin, count in self._counts.items())

    def _without(self, stamp: Stamp) -> list[Stamped]:
        """What stands before an event that was written without it."""
        found: list[Entry] = []
        for origin, entries in self._by_origin.items():
            first = entries[0].stamp.sequence if entries else 0
            start = max(stamp.clock[origin] + 1 - first, 0)
            found += (entry for entry in entries[start:] if entry.key < stamp.key)
        return [Stamped(event, entry.stamp) for entry in sorted(found) for event in decoded(self._actor, entry)]

    # Checkpoints

    def _checkpoint(self) -> None:
        actor, held = self._actor, len(self.entries)
        self._checkpoint_from = held + CHECKPOINT_EVERY
        state = snapshot_data(actor.state_type, actor.state, actor.persistence_id, self.base.version + held)
        if state is None:
            # It would be wound back to another state: an older checkpoint costs time, and nothing else.
            return
        self._checkpoints.append(_Checkpoint(held, state, dict(self._counts)))
        self._thin()

    def _thin(self) -> None:
        """Let go of checkpoints in between, so that the further back they are the fewer there are."""
        end = len(self.entries) + CHECKPOINT_EVERY
        kept = [self._checkpoints[-1]]
        before = self._checkpoints[-2::-1]
        for number, checkpoint in enumerate(before):
            is_first = number == len(before) - 1
            if is_first or end - before[number + 1].after > 2 * (end - kept[-1].after):
                kept.append(checkpoint)
        self._checkpoints = kept[::-1]

    def _rewind(self, index: int) -> int:
        """Wind the state back to the nearest checkpoint that is not behind a place. Returns where that is."""
        while self._checkpoints[-1].after > index:
            self._checkpoints.pop()
        start, state, counts = self._checkpoints[-1]
        self._checkpoint_from = start + CHECKPOINT_EVERY
        actor = self._actor
        actor.state = actor.initial_state() if state is None else actor.state_type.load(state)
        self._counts = dict(counts)
        for origin, entries in self._by_origin.items():
            first = entries[0].stamp.sequence if entries else 0
            del entries[max(counts.get(origin, 0) + 1 - first, 0) :]
        return start

    def _stable(self, known_everywhere: VectorClock, through: int) -> Sequence[int]:
        """How many of the first entries the base may move over: every later event is written after them, and, if the
        actor has a rule of its own, every one behind them as well, because that may be asked about it again."""
        held = len(self.entries)
        known_behind = [known_everywhere] * (held + 1)
        if self._actor.has_rule:
            for index in range(held - 1, -1, -1):
                known_behind[index] = known_behind[index + 1].meet(self.entries[index].stamp.clock)
        cuts: list[int] = []
        reached = self.base.clock
        for index, entry in enumerate(self.entries, 1):
            reached = reached.merge(entry.stamp.clock)
            if entry.version > through or not known_everywhere.covers(reached):
                break
            if known_behind[index].covers(reached):
                cuts.append(index)
        return cuts

    def _move_base(self, cuts: Sequence[int]) -> None:
        if not cuts:
            return
        if cuts[-1] == len(self.entries) != self._checkpoints[-1].after:
            self._checkpoint()
        checkpoint = next((each for each in reversed(self._checkpoints) if each.after in cuts), None)
        if checkpoint is None:
            return
        index, state, counts = checkpoint
        gone, kept = self.entries[:index], self.entries[index:]
        # Up to the first event that is not in it, the journal holds nothing else.
        newest = max(self.base.version, *(entry.version for entry in gone))
        version = min((entry.version - 1 for entry in kept), default=newest)
        self.base = Base(state, VectorClock(counts), gone[-1].key, version)
        self.entries = kept
        for origin, entries in self._by_origin.items():
            first = entries[0].stamp.sequence if entries else 0
            del entries[: max(counts.get(origin, 0) + 1 - first, 0)]
        later = [each._replace(after=each.after - index) for each in self._checkpoints if each.after > index]
        self._checkpoints = [_Checkpoint(0, state, counts), *later]
        self._checkpoint_from -= index


def decoded(actor: ReplicatedActor[Any], entry: Entry) -> Sequence[Event]:
    """The event of an entry, as it is today: several, if an upcaster has split it. Raises as replay does."""
    stream_id, version = actor.persistence_id, entry.version
    type_, schema_version, payload, checksum = entry[4:]
    check = crc32(payload, checksum_seed(type_, schema_version))
    if check != checksum & PAYLOAD_BITS:
        raise damaged(
            "its type, schema version or payload do not match its checksum", stream_id=stream_id, version=version
        )
    return decoded_for(actor, type_, schema_version, payload, stream_id=stream_id, version=version)


def _fold_failed(actor: ReplicatedActor[Any], entry: Entry, error: BaseException) -> RecoveryError:
    # Where that is to be merged, the version is the one that it would have here; the other replicas know its number.
    origin, sequence, _, _ = entry.stamp
    return RecoveryError(
        actor.persistence_id,
        f"a handler or resolve raised {type(error).__name__} at version {entry.version}, event {sequence} of "
        f"{origin!r}, when events were put in order: {error}",
        version=entry.version,
    )

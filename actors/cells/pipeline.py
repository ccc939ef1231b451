"""Pipeline: what one actor has decided, on its way into the journal, and the replies that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from actors.actor import PersistentActor
from actors.cells.commit import Commit
from actors.cells.mailbox import Envelope
from actors.snapshotting import due_snapshot
from eventstore.backend import Appended, AppendOutcome, CommandOutcome, EncodedEvent
from eventstore.calls.group_commit import GroupCommit
from eventstore.errors import EventStoreError, JournalCorrupt, ProjectionFailed


class Decider(Protocol):
    """The actor whose decisions these are."""

    stream_id: str
    version: int
    epoch: int | None
    is_ready: bool
    actor: PersistentActor[Any]
    cls: type[PersistentActor[Any]]

    def deliver(self, envelope: Envelope) -> None: ...

    def lost(self, envelopes: Sequence[Envelope], error: EventStoreError) -> None: ...

    def outcome_known(self, stored: Commit | None) -> None: ...

    def pump(self) -> None: ...


class Pipeline:
    """At most one commit in flight, and one behind it that what is decided meanwhile joins.

    `sent_version` is the actor's version without what its present command has staged.
    """

    __slots__ = ("_commits", "_decider", "head", "sent_version", "tail")

    def __init__(self, decider: Decider, commits: GroupCommit) -> None:
        self._decider = decider
        self._commits = commits
        self.head: Commit | None = None
        self.tail: Commit | None = None
        self.sent_version = 0

    @property
    def is_congested(self) -> bool:
        """Whether so much waits that no more should be decided."""
        tail = self.tail
        return tail is not None and (tail.is_full or tail.is_apart or self._commits.is_full)

    def put(self, envelope: Envelope, staged: list[EncodedEvent] | None, outcome: CommandOutcome | None) -> None:
        """Send a command's events and outcome on, if there are any, and let its reply wait for all so far."""
        if staged or outcome is not None:
            tail = self._send(staged or [], outcome)
        elif self.tail is not None:
            tail = self.tail
        else:
            self._decider.deliver(envelope)
            return
        tail.envelopes.append(envelope)
        if envelope.is_apart:
            tail.is_apart = True
            self._decider.is_ready = False
        if tail.is_full or self._commits.is_full:
            self._decider.is_ready = False
            tail.on_taken = self._decider.pump
            if self._commits.is_full:
                self._commits.when_room(self._decider.pump)

    def withdraw(self) -> None:
        """What waits behind a commit that was not stored must not be stored either."""
        if self.tail is not None:
            self.tail.is_withdrawn = True
            self.head = self.tail = None

    def waiting(self) -> list[Envelope]:
        """Everyone whose outcome is not known yet."""
        commits = [self.head] if self.head is self.tail else [self.head, self.tail]
        return [envelope for commit in commits if commit is not None for envelope in commit.envelopes]

    def due_snapshot(self, before: int) -> bytes | None:
        """The state written out, if the events after version `before` make a snapshot due."""
        decider = self._decider
        return due_snapshot(
            decider.cls.snapshot_policy,
            decider.cls.state_type,
            decider.actor.state,
            stream_id=decider.stream_id,
            before=before,
            version=decider.version,
        )

    def _send(self, staged: list[EncodedEvent], outcome: CommandOutcome | None) -> Commit:
        decider = self._decider
        before, self.sent_version = self.sent_version, decider.version
        tail = self.tail
        if tail is None or tail.is_taken:
            tail = Commit(decider.stream_id, before, decider.epoch, staged, outcome, self._on_outcome)
            self.tail = tail
            if self.head is None:
                self.head = tail
            self._commits.submit(tail)
        else:
            self._commits.grow(tail, tail.join(staged, outcome))
        policy = decider.cls.snapshot_policy
        if (policy.every is not None or policy.when is not None) and staged:
            data = self.due_snapshot(before)
            if data is not None:
                tail.snapshot = (decider.version, data)
        return tail

    def _on_outcome(self, commit: Commit, outcome: AppendOutcome | EventStoreError) -> None:
        behind = None if self.tail is commit else self.tail
        self.head = behind
        if behind is None:
            self.tail = None
        decider = self._decider
        if isinstance(outcome, Appended):
            stored = commit.version + len(commit.events)
            if outcome.versions[0] == stored:
                for envelope in commit.envelopes:
                    reply = envelope.reply
                    # Nearly all of them: a command that was asked and not refused.
                    if reply is not None and envelope.error is None:
                        if not reply.done():
                            reply.set_result(envelope.result)
                    else:
                        decider.deliver(envelope)
                decider.outcome_known(commit)
                return
            outcome = JournalCorrupt(
                f"events were stored up to version {outcome.versions[0]}, not {stored}", stream_id=decider.stream_id
            )
        if isinstance(outcome, ProjectionFailed) and len(commit.envelopes) == 1:
            # It was alone, so it is this one that cannot be stored.
            commit.envelopes[0].is_apart = True
        envelopes = [*commit.envelopes, *(behind.envelopes if behind else ())]
        self.withdraw()
        decider.lost(envelopes, outcome)
        decider.outcome_known(None)

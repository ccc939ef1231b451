"""Every error this package raises on purpose, in one tree, by subject: what happened, and what to do then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

E = TypeVar("E", bound="EventStoreError")


class EventStoreError(Exception):
    """The root. Catch it to catch everything the journal and the actors raise on purpose."""

    def __reduce__(self) -> tuple[Callable[..., EventStoreError], tuple[Any, ...], dict[str, Any]]:
        # A process pool pickles what its workers raise. Not by calling the class: its arguments are those that it was
        # made with only if it has no __init__ of its own.
        return remade, (type(self), *self.args), vars(self)


def remade(cls: type[E], *args: object) -> E:
    """An error with the arguments that one had, by which it says the same."""
    return cls.__new__(cls, *args)


# What was asked for cannot be meant, or cannot be had here


class InvalidArgument(EventStoreError, ValueError):
    """A call was given what cannot be meant: the message says what can. Nothing was read or stored."""


class InvalidStoreUrl(EventStoreError):
    """The URL names no store that can be opened. Nothing was touched: correct the URL."""


class InvalidStreamId(EventStoreError, ValueError):
    """The id cannot name a stream on every backend. Nothing was read or written: choose another id."""


class InvalidTenant(EventStoreError, ValueError):
    """No tenant can have that name, or the store has another one. Nothing was opened or done: choose another name."""


class InvalidCommandId(EventStoreError, ValueError):
    """The id cannot name a command. Nothing was done: choose another id."""


class InvalidQuery(EventStoreError, ValueError):
    """An audit asks for what cannot be meant: the message says what. Nothing was read: correct the question."""


class InvalidReplica(EventStoreError, ValueError):
    """A replica cannot be named so: the message says what is wrong with it."""


class DefinitionError(EventStoreError, TypeError):
    """A class is declared wrongly: found when it is defined, before anything runs. The message names the place."""


class UpcasterError(DefinitionError):
    """Upcasters contradict each other, or lead nowhere. Found when a store is opened, before anything is read."""


class CapabilityError(EventStoreError):
    """This backend, or a store that was opened for a tenant, cannot do what was asked. Nothing was done."""


class ExtraMissing(EventStoreError):
    """What was asked for needs a package that is not installed. Nothing was done: install the extra that is named."""

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(f"{what} needs a package that is not installed: pip install 'eventstore-actors[{extra}]'")
        self.extra = extra


# Another writer was there before


class ConcurrencyError(EventStoreError):
    """Another writer reached the stream first. Nothing was stored: reload it and decide again.

    `expected` is the version the append was decided on, `actual` the stream's version when it was refused; None where
    it was not the version that stood in the way, but another command that had been handled elsewhere.
    """

    def __init__(self, stream_id: str, expected: int | str, actual: int | None) -> None:
        found = "was written to by another process" if actual is None else f"is at version {actual}, not {expected}"
        super().__init__(f"stream {stream_id!r} {found}: nothing was stored; reload the stream and decide again")
        self.stream_id = stream_id
        self.expected = expected
        self.actual = actual


class FencedError(EventStoreError):
    """A newer owner has claimed the stream. Nothing was stored: stop, and drop what is held in memory."""

    def __init__(self, stream_id: str, epoch: int, current: int) -> None:
        super().__init__(
            f"stream {stream_id!r} belongs to writer epoch {current}; this writer holds epoch {epoch}: "
            "nothing was stored, stop writing to it"
        )
        self.stream_id = stream_id
        self.epoch = epoch
        self.current = current


class StoreFenced(FencedError):
    """Nothing may be added to this journal any more, by anybody: most often it was copied elsewhere, and the copy has
    taken its place. Nothing was stored: start the writer anew with the URL of the new store.

    `reason` is what whoever fenced it said. `stream_id` is "" where it was about no single stream.
    """

    def __init__(self, stream_id: str, reason: str) -> None:
        super().__init__(stream_id, 0, 0)
        place = f"stream {stream_id!r}" if stream_id else "it"
        self.args = (
            f"this store is fenced, nothing may be added to {place} any more: {reason}; nothing was stored, start this "
            "writer anew with the URL of the store that has taken its place",
        )
        self.reason = reason


class DuplicateEventError(EventStoreError):
    """An event id is already stored, in another stream or another batch. Nothing of this batch was stored.

    The same batch appended again is no error: it is answered with its original versions and positions.
    """

    def __init__(self, stream_id: str, event_id: str) -> None:
        super().__init__(
            f"event id {event_id} for stream {stream_id!r} is already stored elsewhere: nothing was stored; "
            "give every new event an id of its own"
        )
        self.stream_id = stream_id
        self.event_id = event_id


class DuplicateCommand(EventStoreError):
    """The stream remembers an outcome of this command already. Nothing was stored: read that outcome.

    Actors do so by themselves: an `ask` with the same `command_id` is answered with it.
    """

    def __init__(self, stream_id: str, command_id: str) -> None:
        super().__init__(
            f"stream {stream_id!r} remembers the outcome of command {command_id!r}: nothing was stored, read that"
        )
        self.stream_id = stream_id
        self.command_id = command_id


class CommandForgotten(EventStoreError):
    """The command was issued so long ago that its outcome, if it has one, is no longer remembered.

    Nothing was done. It may have been handled before: look at the state, and send a new id to have it handled now.
    """

    def __init__(self, stream_id: str, command_id: str) -> None:
        super().__init__(
            f"command {command_id!r} for {stream_id!r} is older than the outcomes that are remembered: nothing was "
            "done, but it may have been handled before; look at the state, and send it under a new id if it was not"
        )
        self.stream_id = stream_id
        self.command_id = command_id


# The database cannot serve, or has not answered


class StoreClosed(EventStoreError):
    """The store is not open here: not entered yet, already closed, or carried over a fork or to another loop.

    Nothing was stored by this call. Open a store of its own in each process and event loop.
    """


class OutcomeUnknown(EventStoreError):
    """The store stopped answering while it committed: the events may be stored or not.

    Append the identical events again (their ids decide, nothing is stored twice), or ask the actor again with the same
    `command_id`, which is None if the command had none: then read the stream once the store is back. Do not decide
    anew from memory.
    """

    def __init__(self, message: str, *, command_id: str | None = None) -> None:
        super().__init__(message)
        self.command_id = command_id


class BackendUnavailable(EventStoreError):
    """The database cannot serve now. This call stored nothing: try again later."""


class CircuitOpen(BackendUnavailable):
    """The database has failed so often in a row that it is left alone for a moment. Nothing was done: try again.

    `retry_after` are the seconds after which a call may reach the database again.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConnectionsBusy(BackendUnavailable):
    """Every connection of the store's pool was in use all the time. Nothing was done: try again, or give the URL a
    larger `pool_size`."""


class LeaseLost(BackendUnavailable):
    """This process holds no lease that runs, so it owns nothing. Nothing was done: it is renewed in the background,
    try again."""


class StoreBusy(BackendUnavailable):
    """Another writer was in the way for the whole time allowed. Nothing was stored: retry."""


class StorageFull(BackendUnavailable):
    """The disk, or the database's size limit, is full. Nothing of this call was stored: free space and retry."""


class DurabilityError(EventStoreError):
    """The database is not set up to keep what was asked of it. Nothing was written: change it, or ask for less."""


class SchemaError(EventStoreError):
    """The database's journal tables are not those of this version. Nothing was written.

    `found` and `expected` are schema revisions; `found` is None where there is no journal.
    """

    def __init__(self, message: str, *, found: str | None, expected: str) -> None:
        super().__init__(message)
        self.found = found
        self.expected = expected


class SchemaMissing(SchemaError):
    """The database has no journal yet. Run `eventstore migrate URL`."""


# Transactions


class TransactionError(EventStoreError):
    """A transaction is over, or is used in a way that it cannot serve. Nothing of it was stored."""


class TransactionExpired(TransactionError):
    """The transaction was open for longer than it was given, so it was rolled back: nothing of it was stored.

    Run it again, and do what takes long before it begins. `seconds` is what it was given.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the transaction was open for more than {seconds:g} s, for which it may hold others up, and was rolled "
            "back: nothing was stored; run it again, and do what takes long before it"
        )
        self.seconds = seconds


class TransactionRepeated(TransactionError):
    """A transaction with an id was stored before, so its own statements must not be run again. Nothing was done.

    `replies` are those of its commands. Ask `Transaction.is_repeated` before using its connection.
    """

    def __init__(self, command_id: str, replies: Sequence[object]) -> None:
        super().__init__(
            f"the transaction {command_id!r} was stored before: its statements were run then, and are not run again"
        )
        self.command_id = command_id
        self.replies = tuple(replies)


class TransactionOvertaken(ConcurrencyError):
    """A transaction gave way to others, so that nobody waits in a circle: to an older one, which wants what it holds
    while it wants what that one holds; or, once it has begun statements of its own, to whoever has an actor.

    Nothing of it was stored: run it again. `ActorSystem.transact` does so by itself.
    """

    def __init__(self, stream_id: str, reason: str) -> None:
        super().__init__(stream_id, "", None)
        self.args = (f"the transaction gave way at {stream_id!r}: {reason}; nothing of it was stored, run it again",)


class TransactionConflict(StoreBusy):
    """The transaction and another one stood in each other's way: a deadlock, or rows that changed under it.

    It is rolled back, nothing of it was stored: run it again from its beginning.
    """


class TransactionRefused(EventStoreError):
    """The database would not commit the user's own statements: one of them had failed, or a constraint that is checked
    at the commit does not hold. Nothing was stored. The cause is chained."""


# What is stored, and its form


class JournalCorrupt(EventStoreError):
    """Stored data contradicts itself: a hole or a repeat in the versions, a checksum or a row that is not valid.

    Nothing is skipped. Restore what is named; `eventstore verify` lists all that is damaged. `position` is that of one
    damaged event, where it is known; `tenant` whose it is, "" where that is nobody's or not known.
    """

    def __init__(
        self,
        message: str,
        *,
        stream_id: str | None = None,
        version: int | None = None,
        position: int | None = None,
        tenant: str = "",
    ) -> None:
        super().__init__(message if stream_id is None else f"stream {stream_id!r}: {message}")
        self.stream_id = stream_id
        self.version = version
        self.position = position
        self.tenant = tenant


class JournalLost(JournalCorrupt):
    """The server no longer holds what this store has seen there: it was emptied, replaced, or restored from an older
    copy. Nothing was read or stored. Restore the newer data; or open a new store, to go on without it.
    """


class CodecError(EventStoreError):
    """An event, snapshot or command could not be turned into bytes, or back."""


class EventEncodeError(CodecError):
    """An event cannot be written as JSON. Nothing was stored: give it fields that pydantic can serialise."""


class UnknownEventType(CodecError):
    """The journal holds an event type that this code has no class for. Nothing was skipped.

    Import the module that defines it, or give its class the stored name: `class X(Event, name=…)`.
    """

    def __init__(self, type: str, *, stream_id: str = "", version: int = 0) -> None:
        super().__init__(
            f"no event class is known for {type!r}{_place(stream_id, version)}: import the module that "
            f'defines it, or name a class for it with `class …(Event, name="{type}")`'
        )
        self.type = type
        self.stream_id = stream_id
        self.version = version


class EventDecodeError(CodecError):
    """Stored bytes do not fit the event's class. Nothing was skipped: fix the class, or add what it lacks."""

    def __init__(self, type: str, reason: str, *, stream_id: str = "", version: int = 0) -> None:
        super().__init__(f"event {type!r}{_place(stream_id, version)} cannot be decoded: {reason}")
        self.type = type
        self.stream_id = stream_id
        self.version = version


class EventTooNew(EventDecodeError):
    """The event has a schema version that only newer code knows. Nothing was skipped: run that code.

    During a deployment, bring the readers up to date before the writers.
    """

    def __init__(self, type: str, found: int, known: int, *, stream_id: str = "", version: int = 0) -> None:
        super().__init__(
            type,
            f"it has schema version {found} and the class has {known}: it was written by newer code; run that "
            "version, and bring readers up to date before writers",
            stream_id=stream_id,
            version=version,
        )
        self.found = found
        self.known = known


class UpcasterMissing(EventDecodeError):
    """The event has a schema version that no upcaster leads on from. Nothing was skipped: write that upcaster."""

    def __init__(self, type: str, found: int, known: int, *, stream_id: str = "", version: int = 0) -> None:
        super().__init__(
            type,
            f"it has schema version {found}, the class has {known}, and no upcaster leads on from there: "
            f'add one with @upcaster("{type}", from_version={found})',
            stream_id=stream_id,
            version=version,
        )
        self.found = found
        self.known = known


class SnapshotUnusable(CodecError):
    """A snapshot is damaged, or was taken of another state schema. Recovery goes to an older one by itself.

    `stream_id` and `version` name it.
    """

    def __init__(self, reason: str, *, stream_id: str = "", version: int = 0) -> None:
        place = f"the snapshot of {stream_id!r} at version {version} cannot be used: " if stream_id else ""
        super().__init__(place + reason)
        self.stream_id = stream_id
        self.version = version


class ReplyEncodeError(CodecError):
    """The reply to a command with an id is not what the command promises, or JSON cannot hold it. Nothing was stored:
    give the command a reply type that pydantic can write, and return that."""


class ReplyDecodeError(CodecError):
    """A remembered reply does not fit the command's reply type any more. The command was handled before, and was not
    again: let the new type accept what the old one wrote."""


class PayloadTooLarge(CodecError):
    """The encoded event or state exceeds the store's limit. Nothing was stored: split it, or raise the limit."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(
            f"{what} takes {size} bytes, over the limit of {limit}: nothing was stored; split it, "
            "or open the store with a larger max_payload_bytes"
        )
        self.size = size
        self.limit = limit


# Copies and imports


class CopyRefused(EventStoreError):
    """The target cannot become, or go on to be, a copy of the source: it holds something else, or somebody has written
    to one of the two. Nothing was stored by this call: copy into an empty journal."""


class CopyDiffers(EventStoreError):
    """A copy was compared with its source, and is not the same. Nothing was changed.

    `difference` names the first place where they differ. Do not use the copy: make another one, into an empty journal.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(f"the copy differs from its source: {difference}; do not use it, copy into an empty journal")
        self.difference = difference


class InvalidCloudEvent(EventStoreError):
    """A line is no CloudEvent that can be imported: the message says why."""


class ImportRefused(EventStoreError):
    """A line cannot be imported. Its window of lines, some hundred at most, was not stored; those before it are.

    `line` is its number, from 1. Mend it, and import the whole file again: what is stored already is known by its ids.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line


# Seals


class SealError(EventStoreError):
    """The root of what is said about seals, their keys, anchors and proofs."""


class KeyFileError(SealError):
    """A file holds no key that can be used for this. Nothing was done: the message says what it holds."""


class SealRefused(SealError):
    """No seal was made, because it would not go on from those that are there: they were made with another key, or by
    somebody else. Nothing was changed: `eventstore audit verify` says what is there."""


class ProofInvalid(SealError):
    """What was given as a proof, or as an anchor, proves nothing. The message says where it does not hold."""


# Projections


class ProjectionError(EventStoreError):
    """What concerns one projection, not the store."""


class ProjectionStopped(ProjectionError):
    """The projection is paused, by `eventstore projections pause` or by an event that it could not apply.

    Mend what `reason` names, then resume it.
    """

    def __init__(self, projection: str, reason: str) -> None:
        super().__init__(f"projection {projection!r} is stopped: {reason}")
        self.projection = projection
        self.reason = reason


class PartitionsChanged(ProjectionError):
    """A read model was made by another number of partitions than the projection's class has now. Nothing was done.

    Make it anew (`eventstore rebuild projections`), or give the class the number that is `stored`.
    """

    def __init__(self, projection: str, stored: int, wanted: int) -> None:
        super().__init__(
            f"projection {projection!r} has partitions={stored} in the store, and partitions={wanted} in its class: "
            "nothing was done; make it anew with `eventstore rebuild projections`, or give the class "
            f"partitions={stored}"
        )
        self.projection = projection
        self.stored = stored
        self.wanted = wanted


class ProjectionFailed(ProjectionError):
    """An inline projection could not apply the events, so nothing was stored: neither these nor its read model.

    What its handler raised, or the database said, is chained. `projection` is its name.
    """

    def __init__(self, projection: str, cause: BaseException) -> None:
        super().__init__(
            f"projection {projection!r} could not apply the events, so nothing was stored: "
            f"{type(cause).__name__}: {cause}"
        )
        self.projection = projection


class ProjectionBehind(ProjectionError):
    """A projection has not come to where it was waited for, or where it must have come before events are removed.

    Nothing was done. `position` is where it is, `wanted` where it must come to.
    """

    def __init__(self, projection: str, position: int, wanted: int, what: str) -> None:
        super().__init__(f"projection {projection!r} is at position {position}, not yet at {wanted}: {what}")
        self.projection = projection
        self.position = position
        self.wanted = wanted


class DeadLetterWaits(ProjectionBehind):
    """Events were to be removed, and one of them is among a projection's dead letters: it can be applied again only as
    long as it is there.

    Nothing was done: apply it again (`eventstore dead-letters replay`), or forget it (`eventstore dead-letters purge`).
    `position` is where the projection is, `wanted` where the event stands, which is `version` of `stream_id`.
    """

    def __init__(self, projection: str, position: int, wanted: int, stream_id: str, version: int, what: str) -> None:
        # Not in the words of a projection that need only be waited for.
        ProjectionError.__init__(
            self,
            f"projection {projection!r} could not apply the event at position {wanted}, {stream_id!r} version "
            f"{version}, which waits among its dead letters: {what}",
        )
        self.projection = projection
        self.position = position
        self.wanted = wanted
        self.stream_id = stream_id
        self.version = version


# Replication


class ReplicationError(EventStoreError):
    """Replicas cannot work together as they are. Nothing was lost: the message says what to do."""


class ReplicaRefused(ReplicationError):
    """A replica is not the one that was known by its name, or has lost what others have seen of it. Nothing is taken
    from it any more, because it would number other events as it numbered those.

    `replica` names it. Give what is there a name that was never used, and let it join as a new replica.
    """

    def __init__(self, replica: str, reason: str) -> None:
        super().__init__(
            f"replica {replica!r} is refused: {reason}; let it join anew, with an empty journal and a name that was "
            "never used"
        )
        self.replica = replica
        self.reason = reason


# Removing old events


class TruncationRefused(ReplicationError):
    """The stream belongs to a replicated actor, whose events other replicas may still have to be put in order with.
    Nothing was removed: take snapshots instead, which shorten its recovery."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(f"{stream_id!r} is replicated: its events stay, and nothing was removed")
        self.stream_id = stream_id


class RetentionRefused(EventStoreError):
    """A stream's old events may not go. Nothing was removed from it: the message says what stands against it."""

    def __init__(self, stream_id: str, reason: str) -> None:
        super().__init__(f"nothing of {stream_id!r} may go: {reason}")
        self.stream_id = stream_id
        self.reason = reason


# Actors


class ActorError(EventStoreError):
    """What concerns one actor, not the store."""


class CommandRejected(ActorError):
    """Raised by a command handler that refuses a command. Nothing changes, and the asker gets it as it is."""


class AskTimeout(ActorError):
    """The reply did not come in time. The command is not undone: it may still be handled and stored."""


class NotReplicated(AskTimeout):
    """Fewer replicas than asked for are known to have stored it in time. It is stored here, and will reach the others:
    do not send it again.

    `clock` is what the others were waited for to have, `known` the replicas that have it, this one included, and
    `missing` those of which that is not known. `reply` is the command's own.
    """

    def __init__(
        self, stream_id: str, clock: object, *, known: Sequence[str], missing: Sequence[str], reply: object
    ) -> None:
        super().__init__(
            f"{stream_id!r} at {clock} is stored by {', '.join(known)}; of {', '.join(missing) or 'no other replica'} "
            "it is not known yet: it is not undone, and will reach them"
        )
        self.stream_id = stream_id
        self.clock = clock
        self.known = tuple(known)
        self.missing = tuple(missing)
        self.reply = reply


class MailboxFull(ActorError):
    """The actor has as many commands waiting as its mailbox holds. This one was not accepted: try again later."""


class AskCycle(ActorError):
    """The actor waits, directly or through others, for the very command that asks it. The command was not accepted."""

    def __init__(self, chain: Sequence[str]) -> None:
        super().__init__(
            f"asking would wait for itself: {' -> '.join(chain)}; use tell, or decide with the state at hand"
        )
        self.chain = tuple(chain)


class DuplicateCommandMismatch(ActorError):
    """The id belongs to another command that was sent to this actor before. Nothing was done: use an id of its own."""

    def __init__(self, stream_id: str, command_id: str) -> None:
        super().__init__(
            f"{stream_id!r} remembers another command under the id {command_id!r}: nothing was done; "
            "give every command an id of its own, and repeat it only with the same content"
        )
        self.stream_id = stream_id
        self.command_id = command_id


class OwnedElsewhere(ActorError):
    """Another process owns the actor, and is alive. The command was not accepted: send it there.

    `owner` names the process (`eventstore owners` lists them), `remaining` are the seconds its lease still ran.
    """

    def __init__(self, stream_id: str, owner: str, remaining: float) -> None:
        super().__init__(
            f"actor {stream_id!r} is owned by {owner}: the command was not accepted; send it to that process, "
            "or try again when it has stopped"
        )
        self.stream_id = stream_id
        self.owner = owner
        self.remaining = remaining


class RecoveryError(ActorError):
    """The actor's state could not be rebuilt from the journal, so it serves no command. The cause is chained.

    `reason` is the message without the actor, `version` that of the event that stood in the way, None if it is none.
    """

    def __init__(self, stream_id: str, message: str, *, version: int | None = None) -> None:
        super().__init__(f"actor {stream_id!r} cannot recover: {message}")
        self.stream_id = stream_id
        self.reason = message
        self.version = version


class ReplicationChanged(RecoveryError):
    """The class of the actor has become replicated, or is so no more, and the stream has events from before.

    Nothing is stored among them: replicated events have a stamp that says where they belong, and the others have none.
    Let the class be what it was, or give what it has become a kind of its own. `version` is that of the first event of
    the other sort that was met.
    """

    def __init__(self, stream_id: str, version: int, *, is_replicated: bool) -> None:
        super().__init__(
            stream_id,
            f"the event at version {version} "
            + (
                "was not written by a replicated actor, so that no other replica has it, and its class is a "
                "ReplicatedActor now: let it be a PersistentActor, or give it another kind, whose actors begin anew"
                if is_replicated
                else "was written by a replicated actor, and its class is none any more; what it stored would reach no "
                "other replica, and stop this one: let it be a ReplicatedActor, or give it another kind, whose actors "
                "begin anew"
            ),
            version=version,
        )


class ActorStopped(ActorError):
    """The actor, or its system, is stopped. The command was not handled, unless the message says otherwise."""


def _place(stream_id: str, version: int) -> str:
    return f" (stream {stream_id!r}, version {version})" if stream_id else ""

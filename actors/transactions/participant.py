"""Participant: one actor within a transaction, which has it for itself, and what it has decided there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from actors.cells.cell import Cell
from actors.cells.detaching import detached
from actors.cells.rejections import decode_rejection, encode_rejection
from actors.cells.replies import decode_reply, encode_reply, outcome_of
from actors.command import Command
from actors.command_identity import CommandIdentity
from actors.handlers import CommandRoute
from actors.told_error import told_error
from eventstore.backend import CommandOutcome, EncodedEvent, StoredCommand, StreamWrite
from eventstore.errors import (
    CommandForgotten,
    CommandRejected,
    ConcurrencyError,
    DuplicateCommand,
    DuplicateCommandMismatch,
    FencedError,
    OutcomeUnknown,
    TransactionError,
)

# Tells a transaction's part from a single command that was sent under the same id.
_PERSON = b"eventstore-parts"


class Told(NamedTuple):
    """One command of a transaction with an id: the digest of what was asked, and its reply or rejection as JSON."""

    fingerprint: bytes
    reply: str
    is_rejection: bool


class Participant:
    """What a transaction has of one actor.

    The actor decides on its own state, which nobody else sees until the transaction has released it. Where that state
    is not stored in the end, the actor is rebuilt from the journal.
    """

    def __init__(self, cell: Cell, *, limit: int) -> None:
        self.cell = cell
        self.version = cell.version
        """The version that the journal must have for all of it to be stored."""
        self.is_asked = False
        self.is_touched = False
        self.remembered: tuple[str, ...] | None = None
        """The streams of all participants, where the transaction was stored before."""
        self.told: list[Told] = []
        self.outcome: CommandOutcome | None = None
        self.is_taken_for_new = False
        """Whether the journal was not asked for the transaction's id, because this process knew of no such command."""
        self._limit = limit
        self._told_before: list[Told] | None = None

    @property
    def stream_id(self) -> str:
        return self.cell.stream_id

    @property
    def is_owned(self) -> bool:
        """Whether only this process may store what becomes of the actor's commands."""
        return self.cell.epoch is not None

    @property
    def is_repeated(self) -> bool:
        """Whether the transaction was stored before, so that this actor's part of it is known."""
        return self._told_before is not None

    def expect_new(self, command_id: str, issued_at: int) -> None:
        """Go by what this process knows of commands, if it says that there was none with this id."""
        self.is_taken_for_new = self.cell.knows_new(CommandIdentity(command_id, b"", issued_at))

    def must_prepare(self, command_id: str | None) -> bool:
        """Whether the journal must be asked before anything is decided."""
        return (command_id is not None and not self.is_taken_for_new) or not self.cell.is_certain

    async def prepare(self, command_id: str | None, issued_at: int) -> None:
        """Bring the state up to date, or find out that there is nothing to decide.

        Raises `CommandForgotten`, and `DuplicateCommandMismatch` where the id belongs to something else.
        """
        cell = self.cell
        if command_id is not None and not self.is_taken_for_new:
            found = await cell.memory().look_up(command_id)
            if found.outcome is not None:
                self.remembered, self._told_before = _read(found.outcome, self.stream_id)
                return
            if 0 < issued_at <= found.forgotten:
                raise CommandForgotten(self.stream_id, command_id)
        await cell.catch_up()
        self.version = cell.version

    async def refresh(self) -> None:
        """Bring the state, on which nothing was decided yet, up to the journal, where it may be behind unknowingly."""
        await self.cell.catch_up(is_fresh=True)
        self.version = self.cell.version

    async def remembers_by_now(self, command_id: str) -> bool:
        """Whether the journal has an outcome of the transaction; then the next run is told of it."""
        found = await self.cell.memory().look_up(command_id)
        self.cell.forget_commands()
        return found.outcome is not None

    def check_sound(self) -> None:
        """Raises `TransactionError` if the state is not what the events have made of it."""
        if self.cell.is_spoilt:
            raise TransactionError(
                f"{self.stream_id!r}: a command failed after it had persisted, so nothing of the transaction can be "
                "stored; let the error leave the block"
            )

    def decide(self, route: CommandRoute, command: Command[Any], metadata: bytes) -> tuple[Any, list[EncodedEvent]]:
        """Let a plain handler decide. Returns its reply, and what it persisted."""
        self.cell.begin_decision(metadata, is_async=False)
        try:
            reply = detached(route.handle(self.cell.actor, command))
        except BaseException as error:
            failure = self._failed(error)
            raise failure from failure.__cause__
        return reply, self._persisted()

    async def handle(
        self, route: CommandRoute, command: Command[Any], metadata: bytes
    ) -> tuple[Any, list[EncodedEvent]]:
        """The same for an `async def` handler."""
        self.cell.begin_decision(metadata, is_async=True)
        try:
            reply = detached(await route.handle(self.cell.actor, command))
        except asyncio.CancelledError:
            self._failed(TransactionError(f"{self.stream_id!r}: the handler was cancelled"))
            raise
        except BaseException as error:
            failure = self._failed(error)
            raise failure from failure.__cause__
        return reply, self._persisted()

    def remember(self, command: Command[Any], identity: CommandIdentity, reply: object) -> None:
        """Keep a reply for the outcome that is stored under the transaction's id."""
        self.told.append(Told(identity.fingerprint, encode_reply(command, reply).decode(), is_rejection=False))

    def remember_rejection(self, rejection: CommandRejected, identity: CommandIdentity) -> None:
        """The same for a command that the block may go on without."""
        self.told.append(Told(identity.fingerprint, encode_rejection(rejection).decode(), is_rejection=True))

    def repeat(self, command: Command[Any], identity: CommandIdentity) -> Any:
        """The reply that the command was given when the transaction was stored. Raises the rejection if it was one."""
        remembered = self._told_before or []
        if len(remembered) <= len(self.told) or remembered[len(self.told)].fingerprint != identity.fingerprint:
            raise DuplicateCommandMismatch(self.stream_id, identity.command_id)
        told = remembered[len(self.told)]
        self.told.append(told)
        if told.is_rejection:
            raise decode_rejection(type(command), told.reply, identity.command_id)
        return decode_reply(type(command), told.reply, identity.command_id)

    def check_repeated(self, command_id: str) -> None:
        """Raises `DuplicateCommandMismatch` unless every command was asked again."""
        if self.told != self._told_before:
            raise DuplicateCommandMismatch(self.stream_id, command_id)

    def conclude(self, command_id: str, issued_at: int, streams: Sequence[str]) -> None:
        """Write out what is remembered of this part. Raises `PayloadTooLarge`."""
        told = [(told.fingerprint.hex(), told.reply, told.is_rejection) for told in self.told]
        payload = orjson.dumps({"participants": streams, "told": told})
        identity = CommandIdentity(command_id, _fingerprint(self.told), issued_at)
        self.outcome = outcome_of(identity, payload, is_rejection=False, limit=self._limit)

    def write(self, events: list[EncodedEvent], version: int) -> StreamWrite:
        """Events that were decided at a version."""
        return StreamWrite(self.stream_id, version, events, self.cell.epoch)

    def last_write(self) -> StreamWrite | None:
        """What is to be stored besides events: the outcome; where there are no events, the expectation alone."""
        if self.outcome is None and self.is_touched:
            return None
        commands = () if self.outcome is None else (self.outcome,)
        return StreamWrite(self.stream_id, self.cell.version, (), self.cell.epoch, commands)

    def stored(self) -> None:
        """All of it is in the journal: publish it."""
        self.cell.stored(self.version, self.outcome)
        self.cell.release()

    def refused(self, error: Exception) -> None:
        """The append was not stored, or nobody knows: release the actor, which goes on as after one of its own."""
        if isinstance(error, (DuplicateCommand, CommandForgotten, OutcomeUnknown)):
            # Also where it was only read: its part of the outcome may be stored.
            self.cell.forget_commands()
        is_own = isinstance(error, (ConcurrencyError, FencedError)) and error.stream_id == self.stream_id
        self.abandon(error if is_own or (self.is_touched and isinstance(error, OutcomeUnknown)) else None)

    def abandon(self, reason: Exception | None = None) -> None:
        """Nothing of it is stored: release the actor, with the state that the journal has."""
        if reason is None and self.is_touched:
            reason = TransactionError(f"{self.stream_id!r}: a transaction was not stored")
        self.cell.release(reason)

    def _persisted(self) -> list[EncodedEvent]:
        events, failure = self.cell.end_decision(None)
        if failure is not None:
            raise failure
        self.is_touched = self.is_touched or bool(events)
        return events

    def _failed(self, error: BaseException) -> BaseException:
        """What is to be raised: where the handler failed because it could not persist, that."""
        error = told_error(error, self.stream_id)
        _, failure = self.cell.end_decision(error)
        return failure or error


def _fingerprint(told: Sequence[Told]) -> bytes:
    return blake2b(b"".join(each.fingerprint for each in told), digest_size=16, person=_PERSON).digest()


def _read(stored: StoredCommand, stream_id: str) -> tuple[tuple[str, ...], list[Told]]:
    """The participants, and this one's commands. Raises `DuplicateCommandMismatch` for what no transaction stored."""
    try:
        payload = orjson.loads(stored.payload)
        told = [Told(bytes.fromhex(fingerprint), *reply) for fingerprint, *reply in payload["told"]]
        participants = tuple(payload["participants"])
    except (ValueError, TypeError, LookupError):
        raise DuplicateCommandMismatch(stream_id, stored.command_id) from None
    if _fingerprint(told) != stored.fingerprint:
        raise DuplicateCommandMismatch(stream_id, stored.command_id)
    return participants, told


async def finished(task: asyncio.Task[Any]) -> None:
    """Wait for the end of a task. Whoever waits and is cancelled cancels it, and waits for its end all the same,
    however often that happens: as long as it runs, it has the actor's state."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
            task.cancel()
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # Nobody is left to be told.
        raise cancelled

"""LivingCell: how an actor comes to life, fails, is rebuilt and leaves memory, and what becomes of its mailbox then."""

from __future__ import annotations

import logging
from typing import Any

from actors.actor import PersistentActor, new_actor
from actors.cells.append_failures import NOT_ITS_OWN, OVERTAKEN
from actors.cells.cell_runtime import CellRuntime
from actors.cells.mailbox import Envelope, Hold, Mailbox
from actors.cells.phase import Phase
from actors.cells.staging_cell import StagingCell
from actors.handling import Handling, serving
from actors.snapshotting import snapshot_data
from eventstore.errors import (
    ActorStopped,
    BackendUnavailable,
    CodecError,
    CommandRejected,
    FencedError,
    OutcomeUnknown,
    TransactionError,
)

logger = logging.getLogger(__name__)


class LivingCell(StagingCell):
    """An actor with a mailbox, in one of its phases.

    `is_ready` says that a command may be decided at once, in the caller's own turn. `epoch` is that of an actor whose
    stream this process owns, None where it is shared; `lease` is the number of the lease that it was claimed under.
    `is_doubtful` says that another process may have changed the stream since the state was read. `base` is the state at
    an earlier version, kept where others interfere.
    """

    __slots__ = (
        "_handled",
        "_mailbox",
        "base",
        "epoch",
        "is_doubtful",
        "is_overtaken",
        "is_ready",
        "lease",
        "used",
    )

    def __init__(self, runtime: CellRuntime, cls: type[PersistentActor[Any]], stream_id: str) -> None:
        super().__init__(runtime, cls, stream_id)
        self.used = 0
        self.is_ready = False
        self.epoch: int | None = None
        self.lease = 0
        self.is_doubtful = False
        self.is_overtaken = False
        self.base: tuple[int, Any] | None = None
        self._mailbox: Mailbox | None = None
        # The command that a task is there for.
        self._handled: Envelope | None = None

    def pump(self) -> None:
        """Serve the mailbox as far as it goes without waiting."""
        raise NotImplementedError

    def doubt(self) -> None:
        """Another process has moved the stream on: catch up before the next command is served."""
        self.is_doubtful = True
        self.is_ready = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done or waited for, so that the actor may leave memory."""
        return self.phase is Phase.LIVE and self._pipeline.head is None and not self._mailbox and self._failure is None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight here any more, whatever the reason."""
        return self.is_idle or self.phase in (Phase.PAUSED, Phase.STOPPED, Phase.PASSIVE)

    def accept(self, envelope: Envelope) -> None:
        """Take a command in, or a transaction: serve it if that can be done now, else keep it in the mailbox.

        Raises `MailboxFull`, or `ActorStopped`.
        """
        if self.phase is Phase.STOPPED:
            raise ActorStopped("the actor system is closed: the command was not accepted")
        if self._mailbox is None:
            self._mailbox = Mailbox(self._runtime.mailbox_size)
        if isinstance(envelope, Hold):
            # Where others wait for room, a transaction waits in here: of those it is known who waits for whom.
            self._mailbox.put_hold(envelope, self.stream_id, is_bounded=self._runtime.mailbox_overflow == "reject")
        else:
            self._mailbox.put(envelope, self.stream_id)
        self.is_ready = False
        if len(self._mailbox) == 1:
            self.pump()

    @property
    def has_no_room(self) -> bool:
        """Whether the mailbox is full."""
        return self._mailbox is not None and self._mailbox.is_full

    async def room(self) -> None:
        """Wait until the mailbox, which is full, may have room again."""
        mailbox = self._mailbox
        if mailbox is not None:
            waiter = mailbox.room(self._runtime.new_reply())
            try:
                await waiter
            finally:
                mailbox.leave(waiter)

    def deliver(self, envelope: Envelope) -> None:
        """Answer the asker; what a told command came to is nobody's but the runtime's."""
        if envelope.reply is not None:
            envelope.answer()
        elif envelope.error is not None:
            self._runtime.tell_failed(self, envelope, envelope.error)

    def begin_handling(self) -> None:
        """From here on, what this context asks is asked by this actor."""
        self.handling = Handling()
        serving.set(self.handling)

    def end_handling(self) -> None:
        """The handler is done; what it left running asks for itself."""
        if self.handling is not None:
            self.handling.is_over = True
            self.handling = None

    def activate(self, pause: float) -> None:
        """Rebuild the state from the journal, after a pause; then serve the mailbox."""
        if self._runtime.is_shut:
            self.abandon()
            return
        self.phase = Phase.RECOVERING if pause == 0 else Phase.PAUSED
        self.is_ready = False
        self._runtime.start_task(self._runtime.recover(self, pause), None)

    def start_anew(self) -> PersistentActor[Any]:
        """The actor in its initial state, for recovery to begin with."""
        self.phase = Phase.RECOVERING
        self.version = 0
        self._memory = None
        self.is_doubtful = False
        self.actor = new_actor(self.cls, self)
        return self.actor

    def recovered(self) -> None:
        """The state is that of the journal: begin to serve."""
        self.phase = Phase.LIVE
        self._pipeline.sent_version = self.version
        self.is_overtaken = False
        self.pump()

    def recovery_failed(self, error: BaseException) -> None:
        """Nobody can be served: tell everyone who waits, and leave memory."""
        self._fail_mailbox(error)
        self.phase = Phase.PASSIVE
        if isinstance(error, NOT_ITS_OWN):
            self._runtime.forget(self)
        else:
            self._runtime.supervise(self, error)

    def stop(self, error: ActorStopped) -> None:
        """Serve nobody any more: it has left memory."""
        self._fail_mailbox(error)

    def passivate(self) -> None:
        """Leave memory. Only for a cell with nothing in flight."""
        # References to the actor may hold this cell: they should not hold its state.
        self._let_go()
        self.phase = Phase.PASSIVE

    def _let_go(self) -> None:
        self.is_ready = False
        self.base = self._memory = None
        if hasattr(self, "actor"):
            del self.actor

    def snapshot_on_passivation(self) -> bytes | None:
        """The state to keep when the actor leaves memory, if its class wants that."""
        if not (self.cls.snapshot_policy.on_passivation and self.version):
            return None
        try:
            return snapshot_data(self.cls.state_type, self.actor.state, self.stream_id, self.version)
        except CodecError:
            logger.exception("%s: no snapshot was taken at version %d", self.stream_id, self.version)
            return None

    def abandon(self) -> None:
        """The system closes and waits no longer: answer whoever still waits."""
        self.phase = Phase.STOPPED
        self.is_ready = self._is_deciding = False
        handled, self._handled = self._handled, None
        if handled is not None:
            # Its task was cancelled before it began, or does not heed it. What it has not awaited is not stored.
            self._staged = None
            handled.error = ActorStopped(
                f"actor {self.stream_id!r}: the system was closed while it handled the command"
            )
            self.deliver(handled)
        self._fail_mailbox(
            ActorStopped(f"actor {self.stream_id!r}: the system was closed; the command was not handled")
        )
        unknown = OutcomeUnknown(f"actor {self.stream_id!r}: the system was closed before the outcome was known")
        for envelope in self._pipeline.waiting():
            envelope.error = unknown
            self.deliver(envelope)

    def _lapsed(self) -> None:
        """The lease ran out, so another process may have claimed the stream: the state here counts no more."""
        self.is_ready = False
        self._failure = BackendUnavailable(f"{self.stream_id!r}: this process's lease ran out")
        self._after_failure()

    def _after_failure(self) -> None:
        """Once nothing is in flight any more, drop the state that is not the journal's, and rebuild it."""
        if self._failure is None or self._pipeline.head is not None or self.phase is not Phase.LIVE:
            return
        failure, self._failure = self._failure, None
        if isinstance(failure, FencedError):
            # The stream has a new owner: what waits here is that one's to answer.
            self._fail_mailbox(failure)
            self._runtime.forget(self)
        elif isinstance(failure, (*OVERTAKEN, *NOT_ITS_OWN, CommandRejected)):
            # Nothing is wrong with the actor: it was overtaken, or changed its mind, or the database was away.
            self.is_overtaken = isinstance(failure, (*OVERTAKEN, TransactionError))
            self.activate(0)
        else:
            self._runtime.supervise(self, failure)

    def _fail_mailbox(self, error: BaseException) -> None:
        mailbox, self._mailbox = self._mailbox, None
        for envelope in mailbox.empty() if mailbox is not None else ():
            envelope.error = error
            self.deliver(envelope)

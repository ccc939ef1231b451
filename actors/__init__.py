"""Persistent actors: live objects that journal every change of their state as events."""

from actors.actor import PersistentActor
from actors.command import Command, new_command_id
from actors.dead_letters import DeadLetter
from actors.handlers import command_handler
from actors.message_metadata import with_metadata
from actors.ref import ActorRef
from actors.replicas.conflict import Conflict, last_writer_wins
from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_ref import ReplicatedRef
from actors.retention import CommandRetention
from actors.snapshotting import SnapshotPolicy
from actors.stats import SystemStats
from actors.supervision import Escalate, Match, Restart, Resume, Stop, Supervision
from actors.supervisor import Failure
from actors.system import ActorSystem
from actors.time_travel.folding import Fold, Folded, fold
from actors.transactions.transaction import Transaction
from eventstore.errors import (
    ActorError,
    ActorStopped,
    AskCycle,
    AskTimeout,
    BackendUnavailable,
    CommandForgotten,
    CommandRejected,
    ConcurrencyError,
    DefinitionError,
    DuplicateCommandMismatch,
    FencedError,
    InvalidCommandId,
    MailboxFull,
    OutcomeUnknown,
    OwnedElsewhere,
    RecoveryError,
    TransactionError,
    TransactionExpired,
    TransactionOvertaken,
    TransactionRepeated,
)
from eventstore.event_handlers import event_handler

__all__ = [
    "ActorError",
    "ActorRef",
    "ActorStopped",
    "ActorSystem",
    "AskCycle",
    "AskTimeout",
    "BackendUnavailable",
    "Command",
    "CommandForgotten",
    "CommandRejected",
    "CommandRetention",
    "ConcurrencyError",
    "Conflict",
    "DeadLetter",
    "DefinitionError",
    "DuplicateCommandMismatch",
    "Escalate",
    "Failure",
    "FencedError",
    "Fold",
    "Folded",
    "InvalidCommandId",
    "MailboxFull",
    "Match",
    "OutcomeUnknown",
    "OwnedElsewhere",
    "PersistentActor",
    "RecoveryError",
    "ReplicatedActor",
    "ReplicatedRef",
    "Restart",
    "Resume",
    "SnapshotPolicy",
    "Stop",
    "Supervision",
    "SystemStats",
    "Transaction",
    "TransactionError",
    "TransactionExpired",
    "TransactionOvertaken",
    "TransactionRepeated",
    "command_handler",
    "event_handler",
    "fold",
    "last_writer_wins",
    "new_command_id",
    "with_metadata",
]

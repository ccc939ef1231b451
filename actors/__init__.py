"""Persistent actors: live objects that journal every change of their state as events."""

from actors.actor import PersistentActor
from actors.command import Command
from actors.handlers import command_handler, event_handler
from actors.recovery import Folded, fold
from actors.ref import ActorRef
from actors.snapshotting import SnapshotPolicy
from actors.supervision import Restart, Stop, Supervision
from actors.system import ActorSystem, SystemStats
from eventstore.errors import (
    ActorError,
    ActorStopped,
    AskCycle,
    AskTimeout,
    CommandRejected,
    DefinitionError,
    MailboxFull,
    RecoveryError,
)

__all__ = [
    "ActorError",
    "ActorRef",
    "ActorStopped",
    "ActorSystem",
    "AskCycle",
    "AskTimeout",
    "Command",
    "CommandRejected",
    "DefinitionError",
    "Folded",
    "MailboxFull",
    "PersistentActor",
    "RecoveryError",
    "Restart",
    "SnapshotPolicy",
    "Stop",
    "Supervision",
    "SystemStats",
    "command_handler",
    "event_handler",
    "fold",
]

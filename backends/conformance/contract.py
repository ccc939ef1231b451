"""BackendContract: every part of the contract in one class."""

from __future__ import annotations

from backends.conformance.appending import Appending
from backends.conformance.archives import Archives
from backends.conformance.auditing import Auditing
from backends.conformance.batches import Batches
from backends.conformance.checkpoints import Checkpoints
from backends.conformance.commands import Commands
from backends.conformance.concurrency import Concurrency
from backends.conformance.epochs import Epochs
from backends.conformance.following import Following
from backends.conformance.forgetting import Forgetting
from backends.conformance.ids import Ids
from backends.conformance.log import Log
from backends.conformance.moved import MovedStreams
from backends.conformance.ownership import Ownership
from backends.conformance.reading import Reading
from backends.conformance.recovery import RecoveryContract
from backends.conformance.repeats import Repeats
from backends.conformance.replicas import ReplicatedEvents
from backends.conformance.seals import Seals
from backends.conformance.snapshots import Snapshots
from backends.conformance.sql import SQLCapability
from backends.conformance.subscriptions import Subscriptions
from backends.conformance.tenants import Tenants
from backends.conformance.truncation import Truncation


class BackendContract(
    Appending,
    Archives,
    Auditing,
    Batches,
    Checkpoints,
    Commands,
    Concurrency,
    Epochs,
    Following,
    Forgetting,
    Ids,
    Log,
    MovedStreams,
    Ownership,
    Reading,
    RecoveryContract,
    Repeats,
    ReplicatedEvents,
    Seals,
    Snapshots,
    SQLCapability,
    Subscriptions,
    Tenants,
    Truncation,
):
    """Inherit from it, and give it a fixture `url` that names an empty journal."""

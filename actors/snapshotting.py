"""SnapshotPolicy: when an actor's state is kept, so that its recovery need not start from the first event."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.state import ReadAsAnother, StateType
from eventstore.errors import DefinitionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """Set it on the class: `snapshot_policy = SnapshotPolicy(every=100)`. By default no snapshot is taken.

    `every` takes one whenever so many events have been stored; `when(state, version)` decides after every command
    that stored events; `on_passivation` takes one when the actor leaves memory. The newest `keep` are kept.
    A snapshot is valid as long as the state's schema is unchanged; raise `revision` when an event handler, or `resolve`
    of a replicated actor, changes what it computes, and snapshots of the old meaning are left aside.
    """

    every: int | None = None
    when: Callable[[Any, int], bool] | None = None
    on_passivation: bool = False
    keep: int = 2
    revision: int = 0

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise DefinitionError(f"SnapshotPolicy(every={self.every}): take one every 1 or more events, or None")
        if self.keep < 1:
            raise DefinitionError(f"SnapshotPolicy(keep={self.keep}): keep at least the one just taken")

    def is_due(self, state: Any, before: int, version: int) -> bool:
        """Whether the events after version `before` up to `version` make one due."""
        if self.every is not None and version // self.every > before // self.every:
            return True
        return self.when is not None and self.when(state, version)


def due_snapshot(
    policy: SnapshotPolicy, state_type: StateType, state: Any, *, stream_id: str, before: int, version: int
) -> bytes | None:
    """The state written out, if the events after version `before` make a snapshot due.

    What handlers do to the state later does not reach it.
    """
    try:
        return snapshot_data(state_type, state, stream_id, version) if policy.is_due(state, before, version) else None
    except Exception:
        # It is only an optimisation, and a policy of the user's own may fail in any way.
        logger.exception("%s: no snapshot was taken at version %d", stream_id, version)
        return None


def snapshot_data(state_type: StateType, state: Any, stream_id: str, version: int) -> bytes | None:
    """The state written out for a snapshot. None where it would be read as another one: that is logged once for a
    class. Raises `CodecError` if it cannot be written."""
    try:
        return state_type.kept(state)
    except ReadAsAnother as error:
        if not state_type.is_complained_of:
            state_type.is_complained_of = True
            logger.error(
                "%s: no snapshot was taken at version %d, nor will be of states like that: %s; give the field a type "
                "that holds just what is in it",
                stream_id,
                version,
                error,
            )
        return None

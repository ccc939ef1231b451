"""ReplicatedActor: an actor that several replicas change at the same time, and that agrees with itself afterwards."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, TypeVar

from actors.actor import PersistentActor
from actors.replicas.conflict import Conflict, Resolution
from eventstore.errors import ActorError, DefinitionError
from eventstore.stamp import Stamp

S = TypeVar("S")


class ReplicatedActor(PersistentActor[S]):
    """A `PersistentActor` that is alive on several replicas, each with a journal of its own.

    Every replica takes commands, whether it sees the others or not. Events travel to all of them, and the state is the
    fold of all known events in one order, which is the same everywhere: an event stands behind all that it was written
    after; of two that did not know each other, that with the earlier time stands first. So replicas that know the same
    events have the same state, whatever the event handlers do. A late event may change what later ones lead to: what a
    command handler was promised (no overdraft, one winner) holds on its replica, at its time.

    `resolve` and `after_merge` are for those who want more than that order.
    """

    __slots__ = ("_applied",)

    has_rule: ClassVar[bool] = False
    """Whether the class has a `resolve` of its own."""
    has_afterthought: ClassVar[bool] = False
    """Whether the class has an `after_merge` of its own."""

    _applied: tuple[Stamp, int] | None

    def __init_subclass__(cls, *, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(kind=kind, **kwargs)
        for rule in (cls.resolve, cls.after_merge):
            if inspect.iscoroutinefunction(rule):
                raise DefinitionError(f"{cls.__qualname__}.{rule.__name__} cannot be async: it is part of the fold")
        cls.has_rule = cls.resolve is not _DEFAULT.resolve
        cls.has_afterthought = cls.after_merge is not _DEFAULT.after_merge

    @property
    def stamp(self) -> Stamp:
        """Where and after what the event was written that is being applied. Only for event handlers and `resolve`."""
        applied = self._now_applied()
        if applied is None:
            raise ActorError(f"{self.persistence_id!r}: only while an event is applied there is a stamp, that event's")
        return applied[0]

    @property
    def version(self) -> int:
        """The version of the state. While an event is applied: of that event, in this replica's journal. Other
        replicas have it at another version, so a state must not depend on it."""
        applied = self._now_applied()
        return self._stage.version if applied is None else applied[1]

    def _now_applied(self) -> tuple[Stamp, int] | None:
        return getattr(self, "_applied", None)

    def resolve(self, conflict: Conflict) -> Resolution:
        """What is to be applied instead of an event that meets others it was written without. By default the event.

        Return events, one, several or none; each goes to its event handler. Change nothing here. It is called anew
        whenever events are put in order, on every replica, so it uses the conflict and the state alone: no clock, no
        random numbers, nothing of the place where it runs. `actors.testing.converges` tries that. Like an event handler
        it is no part of a snapshot's schema: raise `SnapshotPolicy.revision` when it changes what it returns.
        """
        return conflict.event

    def after_merge(self) -> None:
        """Called when events of other replicas were merged, on one replica alone: the first by name of those that take
        part. It may persist events, which are stored together with what was merged.

        It looks at the state, as a command handler does, and persists what is to be made good, once: the state should
        show that it was. Where it raises, nothing is merged, and it is tried again later.
        """


_DEFAULT: Any = ReplicatedActor


def applying(actor: ReplicatedActor[Any], applied: tuple[Stamp, int] | None) -> None:
    """Let the actor see the stamp and the version of the event that is applied next; None: none is."""
    actor._applied = applied  # pyright: ignore[reportPrivateUsage]

"""PersistentActor: the class applications subclass."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, cast, get_args, get_origin

from actors.handlers import Handlers, collect_handlers
from actors.retention import CommandRetention
from actors.snapshotting import SnapshotPolicy
from actors.state import StateType
from actors.supervision import Escalate, Match, Restart, Resume, Stop, Supervision, check_supervision
from eventstore.class_options import refusing_unknown_options
from eventstore.errors import DefinitionError, InvalidStreamId
from eventstore.events import Event, checked_stream_id

S = TypeVar("S")

_SETTINGS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((SnapshotPolicy,), "snapshot_policy"),
    ((CommandRetention,), "command_retention"),
    ((Resume, Restart, Stop, Escalate, Match), "supervision"),
)


class Stage(Protocol):
    """What stands behind a live actor: it stages events, and knows the stream they go to."""

    stream_id: str
    version: int

    def stage(self, events: tuple[Event, ...]) -> Awaitable[None]: ...


class PersistentActor(Generic[S]):
    """An actor whose state is the fold of its events. `S` is the state: any type pydantic can handle.

    Subclass it, and write command handlers that decide and event handlers that change `self.state`. The journal
    keeps its events in the stream `kind-key`; the kind is the class's name, or given:
    `class Account(PersistentActor[Balance], kind="account")`.

    One command is handled at a time. What is wrong with the handlers is found when the class is defined.
    """

    __slots__ = ("_stage", "state")

    snapshot_policy: ClassVar[SnapshotPolicy] = SnapshotPolicy()
    command_retention: ClassVar[CommandRetention | None] = None
    ownership: ClassVar[Literal["shared", "exclusive"] | None] = None
    """"exclusive": one process at a time, which claims the stream. "shared": any number. None: as the system says."""
    always_fresh: ClassVar[bool] = False
    """Whether every `ask` of a shared actor is `fresh`."""
    supervision: ClassVar[Supervision] = Escalate()

    kind: ClassVar[str]
    handlers: ClassVar[Handlers]
    state_type: ClassVar[StateType]

    state: S
    _stage: Stage

    def __init_subclass__(cls, *, kind: str | None = None, **kwargs: Any) -> None:
        with refusing_unknown_options(cls, kwargs, known="kind"):
            super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            raise DefinitionError(
                f"{cls.__qualname__}.__init__: an actor is made by the runtime; set up its state in initial_state, "
                "and what depends on it in recovered"
            )
        _check_settings(cls)
        if inspect.iscoroutinefunction(cls.before_restart):
            raise DefinitionError(f"{cls.__qualname__}.before_restart cannot be async; after_restart can")
        annotation = _state_annotation(cls)
        if isinstance(annotation, TypeVar):
            return  # A generic base of actors, not an actor yet.
        # Before anything is set on the class, which could take the place of a handler.
        cls.handlers = collect_handlers(cls)
        cls.kind = cls.__name__ if kind is None else kind
        # Whoever has no type checker gives anything.
        if not isinstance(cast("object", cls.kind), str) or not cls.kind or "-" in cls.kind:
            raise DefinitionError(f"{cls.__qualname__}: a kind is a name without a dash, not {cls.kind!r}")
        cls.state_type = StateType(annotation, place=cls.__qualname__, revision=cls.snapshot_policy.revision)
        if cls.initial_state is _DEFAULT_INITIAL_STATE:
            try:
                cls.state_type.initial()
            except Exception as error:
                raise DefinitionError(
                    f"{cls.__qualname__}: the state {annotation!r} cannot be made without arguments; "
                    "give its fields defaults or define initial_state"
                ) from error

    def initial_state(self) -> S:
        """The state before the first event. By default the state's type, called without arguments."""
        return self.state_type.initial()  # type: ignore[no-any-return]

    def recovered(self) -> Awaitable[None] | None:
        """Called once after every recovery, before the first command. It may be `async def`; it cannot persist."""
        return None

    def before_restart(self, error: BaseException) -> None:
        """Called on the actor that failed, when `Restart` was chosen. Its state may hold events that were never stored.

        What it raises is logged, and changes nothing.
        """

    def after_restart(self, error: BaseException) -> Awaitable[None] | None:
        """Called after `recovered` on the actor that was rebuilt. It may be `async def`; it cannot persist.

        What it raises is a failure of its own: the commands that wait are answered with `RecoveryError`.
        """
        return None

    def persist(self, *events: Event) -> Awaitable[None]:
        """Apply events to the state at once, and stage them to be stored as one batch when the handler ends.

        An event handler that raises ends the command, and nothing of it is stored. An `async def` handler that must
        know the events are durable before it goes on awaits the result: what is staged so far is stored then.
        Raises `CodecError` for an event that cannot be stored, before the state is touched, and `ActorError` where no
        command handler runs, or one that this code is no part of: a task that an earlier handler has left running.
        """
        return self._stage.stage(events)

    @property
    def persistence_id(self) -> str:
        """The id of the actor's stream: its kind, a dash, its key."""
        return self._stage.stream_id

    @property
    def key(self) -> str:
        """What tells this actor from others of its class."""
        return self._stage.stream_id[len(self.kind) + 1 :]

    @property
    def version(self) -> int:
        """The version of the state: how many events it is made of, staged ones included."""
        return self._stage.version


_DEFAULT_INITIAL_STATE: Any = PersistentActor[Any].initial_state


def stream_id_of(cls: type[PersistentActor[Any]], key: str) -> str:
    """The stream of one actor. Raises `InvalidStreamId` for a key no stream can be named by, and `DefinitionError` for
    what is no class of actors."""
    # Whoever has no type checker gives anything.
    given_class, given_key = cast("object", cls), cast("object", key)
    if not (isinstance(given_class, type) and issubclass(given_class, PersistentActor)):
        raise DefinitionError(f"a reference is to an actor of a subclass of PersistentActor, not of {given_class!r}")
    if not isinstance(given_key, str) or not given_key:
        raise InvalidStreamId(f"the key of an actor is a text that is not empty: {cls.kind!r} with {key!r} names none")
    return checked_stream_id(f"{cls.kind}-{key}")


def new_actor(cls: type[PersistentActor[S]], stage: Stage) -> PersistentActor[S]:
    """An actor in its initial state."""
    actor = cls()
    actor._stage = stage  # pyright: ignore[reportPrivateUsage]
    actor.state = actor.initial_state()
    return actor


def _check_settings(cls: type[PersistentActor[Any]]) -> None:
    if cls.ownership not in (None, "shared", "exclusive"):
        raise DefinitionError(f"{cls.__qualname__}.ownership is 'shared', 'exclusive' or None, not {cls.ownership!r}")
    check_supervision(cls.supervision, f"{cls.__qualname__}.supervision")
    # Whoever has no type checker gives anything.
    policy, retention = cast("object", cls.snapshot_policy), cast("object", cls.command_retention)
    if not isinstance(policy, SnapshotPolicy):
        raise DefinitionError(f"{cls.__qualname__}.snapshot_policy is a SnapshotPolicy(every=…), not {policy!r}")
    if retention is not None and not isinstance(retention, CommandRetention):
        raise DefinitionError(
            f"{cls.__qualname__}.command_retention is a CommandRetention(count=…, seconds=…) or None, not {retention!r}"
        )
    # A name that nothing reads says nothing, and leaves what holds for all.
    for kinds, setting in _SETTINGS:
        read = [getattr(cls, setting)]
        if isinstance(read[0], Match):
            read += (*read[0].policies.values(), read[0].otherwise)
        for name, value in vars(cls).items():
            if isinstance(value, kinds) and name != setting and all(value is not each for each in read):
                raise DefinitionError(
                    f"{cls.__qualname__}.{name} has no effect: a {type(value).__name__} is set as {setting} = …"
                )


def _state_annotation(cls: type) -> Any:
    for klass in cls.__mro__:
        for base in vars(klass).get("__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, PersistentActor):
                return get_args(base)[0]
    raise DefinitionError(f"{cls.__qualname__}: name the state's type: class {cls.__name__}(PersistentActor[State])")

"""Projection: the class applications subclass to keep a read model beside the journal."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from eventstore.backend import EventFilter
from eventstore.class_options import refusing_unknown_options
from eventstore.errors import DefinitionError
from eventstore.event_batch import EventBatch
from eventstore.event_handlers import EVENT, ROLE, check_plain, is_awaited
from eventstore.events import Event, RecordedEvent
from eventstore.read_model_tables import while_building
from eventstore.tenant import checked_tenant
from eventstore.upcasters import stored_names

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_ARGUMENTS = 3
_MOST_PARTITIONS = 256


class Handler(NamedTuple):
    """One handler, and what it wants besides the event: its record, the connection; or all its events of a batch."""

    name: str
    handle: Callable[..., Any]
    takes_record: bool
    takes_connection: bool
    takes_batch: bool
    is_async: bool


class Projection:
    """A read model, kept by handlers of events.

        class Balances(Projection, name="balances", kinds=("Account",)):
            tables = (balances,)

            @event_handler
            async def deposited(self, event: Deposited, recorded: RecordedEvent, connection: AsyncConnection) -> None:
                await connection.execute(…)

    A handler takes the event, and if it wants to the record that the event is stored in, and SQLAlchemy's connection.
    It may be `async def`. The events come in the order of the log, each once: on SQL stores the connection's
    transaction also stores how far the projection has come, so that neither is there without the other. Handlers with
    a connection are for SQL stores alone. What is done without it (on Redis, in memory, in another system) is done at
    least once: after a crash the last batch comes again.

    A handler of `EventBatch[Deposited]` gets all its events of a batch in one call, and SQLAlchemy's connection if it
    wants to. It is called when the handlers of single events have been called for the whole batch.

    An instance lives for one batch of events. `flush` is called at its end: a handler may collect what it writes then,
    in attributes that `__init__` sets up.

    `tables` are made when the projection is first run. A rebuild makes them anew beside the live ones, under other
    names, and takes their place in one transaction; so use `self.table(balances)` in statements.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    """Only events of these kinds of streams; of all if there are none."""
    tags: ClassVar[tuple[str, ...]]
    """Only events with one of these tags."""
    tenants: ClassVar[tuple[str, ...]]
    """Only events of these tenants, "" for those of none; of all that the store shows if there are none."""
    partitions: ClassVar[int]
    """Into how many parts the streams are divided, each brought forward by itself (`partitions=4`)."""
    handlers: ClassVar[Mapping[type[Event], Handler]]

    tables: ClassVar[Sequence[Table]] = ()
    batch_size: ClassVar[int] = 4000
    """The most events in one transaction. A runner that is behind comes to that where its batches are quick: it begins
    with fewer, and has more or fewer in the next one, so that each takes about `batch_seconds` or less."""
    batch_seconds: ClassVar[float] = 0.1
    on_poison: ClassVar[Literal["park", "pause"]] = "park"
    """What becomes of an event that cannot be applied: it is put among the dead letters, or the projection pauses."""
    retries: ClassVar[int] = 3
    first_pause_seconds: ClassVar[float] = 0.1
    """Before the first retry; each pause is twice as long as the one before."""
    max_dead_letters: ClassVar[int] = 1000
    """With more the projection pauses: then it is not the events that are wrong."""

    version: int = 0
    """The version of the read model that is being written."""
    partition: int = 0
    """The number of the part that is being written, from 0."""
    is_building: bool = False
    """Whether that is a rebuild, which nobody reads yet: effects on others are left out then."""

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        kinds: Sequence[str] = (),
        tags: Sequence[str] = (),
        tenants: Sequence[str] = (),
        partitions: int = 1,
        **options: Any,
    ) -> None:
        with refusing_unknown_options(cls, options, known="name, kinds, tags, tenants, partitions"):
            super().__init_subclass__(**options)
        if isinstance(kinds, str) or isinstance(tags, str) or isinstance(tenants, str):
            raise DefinitionError(
                f'{cls.__qualname__}: kinds, tags and tenants are several names, such as kinds=("Account",)'
            )
        cls.name = cls.__name__ if name is None else name
        if not cls.name.isprintable() or not 0 < len(cls.name) <= 200:
            raise DefinitionError(f"{cls.__qualname__}: a projection's name has 1 to 200 printable characters")
        if cls.on_poison not in ("park", "pause"):
            raise DefinitionError(f"{cls.__qualname__}.on_poison is 'park' or 'pause', not {cls.on_poison!r}")
        if not 1 <= partitions <= _MOST_PARTITIONS:
            raise DefinitionError(f"{cls.__qualname__}: partitions is 1 to {_MOST_PARTITIONS}, not {partitions!r}")
        cls.kinds, cls.tags, cls.partitions = tuple(kinds), tuple(tags), partitions
        cls.tenants = tuple(tenant and checked_tenant(tenant) for tenant in tenants)
        cls.handlers = dict(_handlers(cls, sys._getframe(1).f_locals))  # pyright: ignore[reportPrivateUsage]

    @classmethod
    def where(cls) -> EventFilter:
        """Which events of the log it gets: the database leaves out the others."""
        types_ = () if Event in cls.handlers else stored_names(*cls.handlers)
        return EventFilter(kinds=cls.kinds, types=types_, tags=cls.tags, tenants=cls.tenants)

    @classmethod
    def needs_connection(cls) -> bool:
        """Whether it works on SQL stores alone."""
        return bool(cls.tables) or any(handler.takes_connection for handler in cls.handlers.values())

    def table(self, table: Table) -> Table:
        """A table of the read model, under the name that it has in this version."""
        if not self.is_building:
            return table
        tables = self.tables if table in self.tables else (table,)
        return while_building(tables, self.version)[table]

    async def prepare(self, connection: AsyncConnection | None) -> None:
        """Called before the first event of a version. On SQL stores the tables are there then."""

    async def flush(self, connection: AsyncConnection | None) -> None:
        """Called after each batch."""

    async def switched(self, connection: AsyncConnection | None) -> None:
        """Called when a rebuild takes the place of the version before, on SQL stores in that transaction."""


def _handlers(cls: type[Projection], local_names: Mapping[str, Any]) -> Iterator[tuple[type[Event], Handler]]:
    found: dict[type[Event], str] = {}
    for name in dir(cls):
        function = inspect.getattr_static(cls, name)
        place = f"{cls.__qualname__}.{name}"
        check_plain(function, place)
        if getattr(function, ROLE, None) != EVENT:
            continue
        arguments = list(inspect.signature(function).parameters.values())[1:]
        if not 1 <= len(arguments) <= _MOST_ARGUMENTS or any(a.kind is not a.POSITIONAL_OR_KEYWORD for a in arguments):
            raise DefinitionError(
                f"{place}: a projection's handler takes an event, and then, if it wants to, its record and the "
                "connection: `event: Deposited, recorded: RecordedEvent, connection: AsyncConnection`; or all events "
                "of a batch, and then, if it wants to, the connection: `batch: EventBatch[Deposited]`"
            )
        first, *others = (argument.name for argument in arguments)
        if first not in function.__annotations__:
            raise DefinitionError(f"{place}: annotate `{first}` with the event it handles, such as `event: Deposited`")
        handled = _hint(function, first, place, local_names)
        takes_batch = get_origin(handled) is EventBatch
        # The connection's type is often imported for type checkers alone, and so is not looked at.
        if takes_batch:
            (handled,) = get_args(handled)
            if len(others) > 1 or function.__annotations__.get("".join(others)) in (RecordedEvent, "RecordedEvent"):
                raise DefinitionError(f"{place}: a batch has the records of its events: leave that argument out")
        elif others and _hint(function, others[0], place, local_names) not in (None, RecordedEvent):
            raise DefinitionError(f"{place}: the second argument is the record: annotate it with RecordedEvent")
        handler = Handler(
            name,
            function,
            takes_record=len(arguments) > 1 and not takes_batch,
            takes_connection=len(arguments) == (2 if takes_batch else _MOST_ARGUMENTS),
            takes_batch=takes_batch,
            is_async=is_awaited(function, place),
        )
        is_union = get_origin(handled) in (Union, types.UnionType)
        for event in get_args(handled) if is_union else (handled,):
            if not (isinstance(event, type) and issubclass(event, Event)):
                raise DefinitionError(f"{place}: `{first}` is annotated with a subclass of Event")
            if event in found:
                raise DefinitionError(f"{place}: {event.__qualname__} already has a handler: {found[event]}")
            found[event] = place
            yield event, handler


def _hint(function: Any, name: str, place: str, local_names: Mapping[str, Any]) -> Any:
    """What an argument is annotated with; None if it is not."""
    if name not in function.__annotations__:
        return None
    probe = types.SimpleNamespace(__annotations__={name: function.__annotations__[name]})
    try:
        return get_type_hints(probe, inspect.unwrap(function).__globals__, dict(local_names))[name]
    except NameError as error:
        raise DefinitionError(
            f"{place}: the annotation names {error.name!r}, which is not defined here: define or import it first"
        ) from error

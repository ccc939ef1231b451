"""Events: what a user declares, what an append is given, and what the journal gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import from_json

from eventstore.class_options import refusing_unknown_options
from eventstore.errors import DefinitionError, InvalidStreamId
from eventstore.json_form import Loss, survey_of

MAX_STREAM_ID_BYTES = 1024
MAX_EVENT_TYPE_CHARACTERS = 255
MAX_SCHEMA_VERSION = 2**31 - 1
"""What every database's column holds. A greater one would cost all that share a commit with it."""

_event_classes: dict[str, type[Event]] = {}


class Event(BaseModel):
    """A fact. Subclass it with typed fields; it is stored as JSON under a name and a schema version.

    `class Deposited(Event, name="account.deposited", version=2)` sets both; without them the name is the
    class's own and the version is 1. The name is what the journal keeps, never the Python path, so a class
    may move between modules. Two classes with one name are an error when the second is defined.
    A class that was renamed reads what is stored under its former names with `aliases=("Deposited",)`; its versions
    go on. What an older version has stored is read through `@upcaster`s.

    `tags=("money",)` are stored with every event of the class and of its subclasses, and `event_tags` may add some of
    an event's own: `EventFilter(tags=…)` finds them. What is stored keeps the tags that it was appended with.

    A field that the class does not know is an error in Python, where it is a typing slip, and is kept when it
    comes out of the journal, where newer code wrote it. Not-a-number, infinities and bytes survive the journal.
    Fields are stored by their names, whatever aliases they have; computed ones are not stored. A field that is excluded
    or secret is an error when the class is defined, and an event that would be read as another one is not stored.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", ser_json_bytes="base64", val_json_bytes="base64"
    )

    __event_type__: ClassVar[str] = "Event"
    __schema_version__: ClassVar[int] = 1
    __aliases__: ClassVar[tuple[str, ...]] = ()
    __tags__: ClassVar[tuple[str, ...]] = ()

    @property
    def model_extra(self) -> dict[str, Any]:
        """The fields that the class does not know, as newer code has stored them. Empty where there are none, whether
        the event was made here or read."""
        return self.__pydantic_extra__ or {}

    def event_tags(self) -> Iterable[str]:
        """Tags of this one event, besides those of its class: `return (f"customer-{self.customer}",)`.

        Called once, when the event is appended; nothing is stored if it raises, or gives what is no tag.
        """
        return ()

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int = 1,
        aliases: Sequence[str] = (),
        tags: Sequence[str] = (),
        **config: Any,
    ) -> None:
        with refusing_unknown_options(
            cls, config, known="name, version, aliases, tags, and those of pydantic's models"
        ):
            super().__init_subclass__(**config)

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int = 1,
        aliases: Sequence[str] = (),
        tags: Sequence[str] = (),
        **config: Any,
    ) -> None:
        super().__pydantic_init_subclass__(**config)
        if isinstance(aliases, str):
            raise DefinitionError(f'{cls.__qualname__}: aliases are several names, such as aliases=("{aliases}",)')
        if isinstance(tags, str) or not all(is_tag(tag) for tag in tags):
            raise DefinitionError(f'{cls.__qualname__}: tags are several texts that are not empty: tags=("money",)')
        # One that names what is not defined yet is looked at when it is first encoded.
        if cls.__pydantic_complete__ and (losses := survey_of(cls).losses):
            raise DefinitionError(loss_of(cls, losses[0]))
        cls.__tags__ = tuple(dict.fromkeys((*cls.__tags__, *tags)))
        names = [_checked_type(cls, known) for known in (cls.__name__ if name is None else name, *aliases)]
        if not isinstance(cast("object", version), int) or not 1 <= version <= MAX_SCHEMA_VERSION:
            raise DefinitionError(
                f"{cls.__qualname__}: an event's schema version is 1 to {MAX_SCHEMA_VERSION}, not {version!r}"
            )
        cls.__event_type__, *others = names
        cls.__aliases__ = tuple(others)
        cls.__schema_version__ = version
        _event_classes.update(dict.fromkeys(names, cls))


def loss_of(cls: type, loss: Loss) -> str:
    """What is said of a class with a field that would not come back."""
    return (
        f"{cls.__qualname__}.{loss.place} would not come back from the journal: {loss.reason}; store what it holds, or "
        "keep it out of the class"
    )


def is_tag(tag: object) -> bool:
    """Whether an event can be tagged with it. Postgres holds no NUL."""
    return isinstance(tag, str) and tag != "" and "\0" not in tag


def event_class(type_name: str) -> type[Event] | None:
    """The class that was defined for a stored name, a former one too, if its module has been imported."""
    return _event_classes.get(type_name)


def event_classes() -> frozenset[type[Event]]:
    """Every event class that was defined, the newest of each name."""
    return frozenset(_event_classes.values())


def _checked_type(cls: type[Event], name: str) -> str:
    if not name or len(name) > MAX_EVENT_TYPE_CHARACTERS or not name.isprintable():
        raise DefinitionError(
            f"{cls.__qualname__}: an event's stored name has 1 to {MAX_EVENT_TYPE_CHARACTERS} printable "
            f"characters, not {name!r}"
        )
    other = _event_classes.get(name)
    # The same place in the source defined again is a reload (a notebook cell, importlib.reload), not a clash.
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise DefinitionError(
            f"{cls.__module__}.{cls.__qualname__}: the stored name {name!r} already belongs to "
            f'{other.__module__}.{other.__qualname__}; give one of them its own with `class …(Event, name="…")`'
        )
    return name


class Metadata(BaseModel):
    """What is known about an event besides its content. Absent fields are stored as absent.

    `values` is for the application's own keys. `tags` can be filtered on (`EventFilter`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    correlation_id: str | None = None
    causation_id: str | None = None
    command_id: str | None = None
    user: str | None = None
    traceparent: str | None = None
    tags: tuple[str, ...] = ()
    # A default that can be changed is copied for each event, which takes longer than reading all else.
    values: Mapping[str, JsonValue] = Field(default_factory=dict)


class NewEvent(NamedTuple):
    """An event to append, with the id and the metadata it shall be stored with.

    Give an `event_id` to make a retry recognisable across processes; without one the store makes a UUIDv7.
    """

    event: Event
    event_id: UUID | None = None
    metadata: Metadata | None = None


class RecordedEvent(NamedTuple):
    """One event as the journal holds it. `payload` is the JSON as stored, byte for byte.

    `version` is its place in the stream, from 1 and without holes; `position` its place in the whole log,
    rising, with holes where nothing was stored. `recorded_at` is the store's clock in UTC and never decides
    an order. Events with one `batch_id` were stored together and stand in their order; on Postgres those of others may
    stand between them. `EventStore.decode` makes the `Event` of it.
    `checksum` was made of type, schema version, payload and metadata when the event was appended, and matches them.
    `metadata_bytes` is the metadata's JSON as stored, byte for byte; None where there is none.
    """

    position: int
    stream_id: str
    version: int
    type: str
    schema_version: int
    payload: bytes
    metadata: Metadata | None
    event_id: UUID
    batch_id: UUID
    epoch: int
    recorded_at: datetime
    checksum: int
    tenant: str = ""
    origin: str | None = None
    origin_sequence: int | None = None
    clock: bytes | None = None
    concurrent: bool = False
    metadata_bytes: bytes | None = None

    def json(self) -> Any:
        """The payload as plain JSON values: no event class is needed, no upcaster is applied."""
        # Not orjson: it would turn integers of more than 64 bits into floats.
        return from_json(self.payload)


class Snapshot(NamedTuple):
    """A state as it was after `version`, as JSON. `fingerprint` names the schema the state had then."""

    stream_id: str
    version: int
    fingerprint: str
    data: bytes
    recorded_at: datetime


def checked_stream_id(stream_id: str) -> str:
    """Return the id, or raise `InvalidStreamId`.

    Ids are compared byte for byte on every backend: no case folding and no Unicode normalisation, so forms
    that look equal are different streams. The length limit is what the smallest index of the backends holds.
    """
    if not stream_id:
        raise InvalidStreamId("a stream id cannot be empty")
    if "\0" in stream_id:
        raise InvalidStreamId(f"a stream id cannot hold a NUL character: {stream_id[:80]!r}")
    try:
        size = len(stream_id.encode())
    except UnicodeEncodeError as error:
        raise InvalidStreamId(
            f"a stream id must be text that UTF-8 can encode; it has half of a surrogate pair: {stream_id[:80]!r}"
        ) from error
    if size > MAX_STREAM_ID_BYTES:
        raise InvalidStreamId(
            f"a stream id takes at most {MAX_STREAM_ID_BYTES} bytes of UTF-8, this one takes {size}: "
            f"{stream_id[:40]!r}…"
        )
    return stream_id


def stream_kind(stream_id: str) -> str:
    """The part before the first dash: `Account` of `Account-alice`. A stream without a dash is its own kind."""
    return stream_id.partition("-")[0]

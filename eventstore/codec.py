"""Events to bytes and back: stored names, schema versions, and the errors when the two sides disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import lru_cache
from itertools import repeat
from math import isfinite
from typing import Any, NamedTuple, cast
from zlib import crc32

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from uuid_utils import uuid7

from eventstore.backend import EncodedEvent, ReplicaFields
from eventstore.contract.record_page import RecordPage
from eventstore.errors import EventDecodeError, EventEncodeError, InvalidArgument, JournalCorrupt, PayloadTooLarge
from eventstore.event_array import EventArray
from eventstore.events import Event, Metadata, NewEvent, RecordedEvent, event_class, is_tag, loss_of
from eventstore.json_form import JsonForm, form_of_model, keeping_reader, survey_of
from eventstore.upcasters import UPCASTERS

DEFAULT_MAX_PAYLOAD_BYTES = 4 * 1024 * 1024

PAYLOAD_BITS = 0xFFFFFFFF
"""The part of a checksum that does not depend on the metadata."""

_METADATA_BITS = 0x7FFFFFFF

_ALL_METADATA = TypeAdapter(list[Metadata])


class Special(NamedTuple):
    """What else is to be done with the events of a class."""

    form: JsonForm
    is_tagged: bool


class Encoding(NamedTuple):
    """How one event class is written: cached, because looking it up costs as much as using it. `seed` is what its
    checksums go on from. `special` is None if its events have no tags, and always come back as they were. `keep` also
    writes what the class does not know of itself."""

    type: str
    schema_version: int
    seed: int
    to_json: Callable[[Event], bytes]
    special: Special | None
    keep: Callable[[Event], bytes]


_encodings: dict[type[Event], Encoding] = {}
# As the class does it by itself, without a call in Python for each event.
_new_encoded = cast("Callable[[type[EncodedEvent], tuple[Any, ...]], EncodedEvent]", tuple.__new__)


def _encoding_of(cls: type[Event]) -> Encoding:
    type_, schema_version = cls.__event_type__, cls.__schema_version__
    is_tagged = bool(cls.__tags__) or cls.event_tags is not Event.event_tags
    form = form_of_model(cls, extra="allow")
    if form.losses:
        raise EventEncodeError(f"{loss_of(cls, form.losses[0])}; nothing was stored")
    seed = checksum_seed(type_, schema_version)
    special = Special(form, is_tagged) if is_tagged or not form.is_always_exact else None
    # To write what classes do not know takes up to a seventh more. Whether there is any, an event tells of itself, and
    # not of what is nested in it.
    to_json = form_of_model(cls).write if survey_of(cls).is_flat else form.write
    encoding = Encoding(type_, schema_version, seed, to_json, special, form.write)
    _encodings[cls] = encoding
    return encoding


def encode_event(
    event: Event,
    metadata: bytes | None = None,
    *,
    limit: int = DEFAULT_MAX_PAYLOAD_BYTES,
    event_id: bytes | None = None,
    batch_id: bytes | None = None,
    replica: ReplicaFields | None = None,
) -> EncodedEvent:
    """An event as it is stored, with its tags and its checksum. Without an id it gets a new one, and without a
    `batch_id` it is the first of its batch.

    Raises `EventEncodeError` or `PayloadTooLarge`, and whatever `event_tags` raises; nothing has been stored then.
    """
    cls = event.__class__
    type_, schema_version, seed, to_json, special, keep = _encodings.get(cls) or _encoding_of(cls)
    try:
        payload = keep(event) if event.__pydantic_extra__ else to_json(event)
    except (PydanticSerializationError, UnicodeEncodeError, ValueError, TypeError, RecursionError) as error:
        raise EventEncodeError(f"event {type_!r} cannot be written as JSON, nothing was stored: {error}") from error
    if len(payload) > limit:
        raise PayloadTooLarge(f"event {type_!r}", len(payload), limit)
    if special is not None:
        if not special.form.is_exact:
            _check_return(event, payload, special.form)
        if special.is_tagged:
            metadata = with_tags(event, metadata)
    # As `checksum_of` has it.
    checksum = crc32(payload, seed)
    if metadata is not None:
        checksum |= (crc32(metadata) & _METADATA_BITS) << 32
    own = event_id or uuid7().bytes
    return _new_encoded(
        EncodedEvent, (own, type_, schema_version, payload, metadata, batch_id or own, checksum, replica)
    )


def _check_return(event: Event, payload: bytes, form: JsonForm) -> None:
    """Raises `EventEncodeError` for an event that would be read as another one, or not at all."""
    difference = form.difference(event, payload)
    if difference is not None:
        raise EventEncodeError(
            f"event {event.__event_type__!r} would not come back from the journal as it is, nothing was stored: "
            f"{difference}; give the field a type that holds just what is in it"
        )


def with_tags(event: Event, metadata: bytes | None) -> bytes | None:
    """The encoded metadata with the event's own tags in it, behind those that it was given.

    Raises `EventEncodeError` if these are no tags, and whatever `event_tags` raises.
    """
    of_event = tuple(event.event_tags())
    if not all(is_tag(tag) for tag in of_event):
        raise EventEncodeError(
            f"event {event.__event_type__!r}: event_tags gives texts that are not empty, not {of_event!r}; nothing was "
            "stored"
        )
    tags = (*event.__tags__, *of_event)
    if metadata is None:
        return _tags_alone(tags) if tags else None
    given = decode_metadata(metadata) or Metadata()
    return encode_metadata(given.model_copy(update={"tags": tuple(dict.fromkeys((*given.tags, *tags)))}))


@lru_cache(maxsize=1024)
def _tags_alone(tags: tuple[str, ...]) -> bytes | None:
    return encode_metadata(Metadata(tags=tuple(dict.fromkeys(tags))))


def encode_metadata(metadata: Metadata | None, *, limit: int = DEFAULT_MAX_PAYLOAD_BYTES) -> bytes | None:
    """Metadata as JSON with only the fields that are set; None stays None."""
    if metadata is None:
        return None
    try:
        # As null it would be read as None.
        if metadata.values and (number := _no_json_number(metadata.values)) is not None:
            raise ValueError(f"JSON has no number {number}")
        encoded = metadata.__pydantic_serializer__.to_json(metadata, exclude_defaults=True)
    except (PydanticSerializationError, ValueError) as error:
        raise EventEncodeError(f"metadata cannot be written as JSON, nothing was stored: {error}") from error
    if len(encoded) > limit:
        raise PayloadTooLarge("metadata", len(encoded), limit)
    return encoded


def _no_json_number(value: object) -> float | None:
    """What is not a number, or infinite, in what is JSON otherwise; None if nothing is."""
    if isinstance(value, float):
        return None if isfinite(value) else value
    held: Iterable[object] = ()
    if isinstance(value, Mapping):
        held = cast("Mapping[str, object]", value).values()
    elif isinstance(value, list):
        held = cast("list[object]", value)
    return next((found for each in held if (found := _no_json_number(each)) is not None), None)


@lru_cache(maxsize=1024)
def checksum_seed(type: str, schema_version: int) -> int:
    """The CRC-32 that an event's payload goes on from. No name holds the separator."""
    return crc32(f"{type}\0{schema_version}\0".encode())


def checksum_of(type: str, schema_version: int, payload: bytes, metadata: bytes | None) -> int:
    """What an event is checked by. Below 2**63, the largest number that every database holds.

    The lower 32 bits are the CRC-32 of type, schema version and payload: replay reads no more than these. The bits
    above are the metadata's, and 0 where there is none.
    """
    checksum = crc32(payload, checksum_seed(type, schema_version))
    return checksum if metadata is None else checksum | (crc32(metadata) & _METADATA_BITS) << 32


def encoded_event(
    event_id: bytes, type: str, schema_version: int, payload: bytes, metadata: bytes | None, batch_id: bytes
) -> EncodedEvent:
    """An event with its checksum."""
    checksum = checksum_of(type, schema_version, payload, metadata)
    return EncodedEvent(event_id, type, schema_version, payload, metadata, batch_id, checksum)


def verify_checksum(checksum: int, type: str, schema_version: int, payload: bytes, metadata: bytes | None) -> None:
    """Raises `ValueError`, which says what does not match."""
    expected = checksum_of(type, schema_version, payload, metadata)
    if checksum != expected:
        is_metadata = checksum & PAYLOAD_BITS == expected & PAYLOAD_BITS
        part = "metadata does" if is_metadata else "type, schema version or payload do"
        raise ValueError(f"its {part} not match its checksum")


def are_sound(
    types: Sequence[str],
    schema_versions: Sequence[int],
    kinds: Set[tuple[str, int]],
    payloads: Sequence[bytes],
    metadata: Sequence[bytes | None] | None,
    checksums: Sequence[int],
) -> bool:
    """Whether events match their checksums, all of them. Without `metadata` none has any. `kinds` are every type with
    every schema version that it has here: most pages are of few."""
    seeds = {kind: checksum_seed(*kind) for kind in kinds}
    each = (
        repeat(next(iter(seeds.values())))
        if len(seeds) == 1
        else map(seeds.__getitem__, zip(types, schema_versions, strict=True))
    )
    found = list(map(crc32, payloads, each))
    if metadata is not None:
        found = [
            checksum if notes is None else checksum | (crc32(notes) & _METADATA_BITS) << 32
            for checksum, notes in zip(found, metadata, strict=True)
        ]
    return found == checksums


def damaged(
    reason: object, *, stream_id: str, version: int, position: int | None = None, tenant: str = ""
) -> JournalCorrupt:
    """The error for one stored event that cannot be read."""
    return JournalCorrupt(
        f"the event at version {version} is damaged ({reason}); restore it from a copy, `eventstore verify` lists all "
        "that is damaged",
        stream_id=stream_id,
        version=version,
        position=position,
        tenant=tenant,
    )


def new_event_id() -> bytes:
    """A UUIDv7: unique everywhere, and rising with time, so that the index on it grows at one end."""
    return uuid7().bytes


def encode_batch(
    events: Iterable[Event | NewEvent], *, limit: int, batch_id: bytes | None = None
) -> tuple[EncodedEvent, ...]:
    """Encode events that are appended together; those without an id get one. Reads the events now, not later.

    Without a `batch_id` they are a batch of their own.
    """
    encoded: list[EncodedEvent] = []
    for item in events:
        if isinstance(item, Event):
            event, event_id, metadata = item, None, None
        elif isinstance(cast("object", item), NewEvent):
            event, event_id, metadata = item
        else:
            raise InvalidArgument(
                f"{_shortly(item)} is no event: give instances of Event or of NewEvent; nothing was stored"
            )
        encoded.append(
            encode_event(
                event,
                encode_metadata(metadata, limit=limit),
                limit=limit,
                event_id=None if event_id is None else event_id.bytes,
                batch_id=batch_id,
            )
        )
        batch_id = encoded[0].batch_id
    return tuple(encoded)


def _shortly(item: object) -> str:
    """What somebody took for an event, without what it holds."""
    return f"the class {item.__qualname__}" if isinstance(item, type) else f"a {type(item).__qualname__}"


def decode_metadata(encoded: str | bytes | None) -> Metadata | None:
    """Metadata out of the journal; None stays None. Raises `ValueError`, which does not tell what is stored."""
    if encoded is None:
        return None
    try:
        metadata: Metadata = Metadata.__pydantic_validator__.validate_json(encoded)
    except ValidationError as error:
        raise ValueError(f"its metadata: {_reasons(error)}") from error
    return metadata


def decode_all_metadata(encoded: Sequence[bytes | None]) -> Sequence[Metadata | None]:
    """The same for many. Raises `ValueError`, which does not tell of which."""
    there = [notes for notes in encoded if notes is not None]
    decoded = _ALL_METADATA.validate_json(b"[%b]" % b",".join(there))
    if len(decoded) != len(there):
        raise ValueError("what is stored as metadata is no JSON object")
    if len(there) == len(encoded):
        return decoded
    one_by_one = iter(decoded)
    return [None if notes is None else next(one_by_one) for notes in encoded]


_one = lru_cache(maxsize=1024)(keeping_reader)
_array = lru_cache(maxsize=1024)(EventArray)


def decode_together(page: RecordPage) -> Sequence[Event] | None:
    """The events of records, one for each, validated together. None if something is wrong with one of them, or one
    was stored by older code: then each has to be looked at (`decode_parts`)."""
    types, payloads = page.types, page.payloads
    classes: dict[str, type[Event]] = {}
    for type_, schema_version in page.kinds:
        cls = event_class(type_)
        if cls is None or cls.__schema_version__ != schema_version:
            return None
        classes[type_] = cls
    if len(classes) == 1:
        return _array(next(iter(classes.values()))).read(payloads)
    events: list[Any] = [None] * len(types)
    for type_, cls in classes.items():
        places = [place for place, found in enumerate(types) if found == type_]
        decoded = _array(cls).read([payloads[place] for place in places])
        if decoded is None:
            return None
        for place, event in zip(places, decoded, strict=True):
            events[place] = event
    return events


def decode_event(recorded: RecordedEvent) -> Event:
    """The event of a record, as its class has it now.

    Raises what `decode_parts` raises, and `EventDecodeError` for one that has become several.
    """
    parts = decode_parts(recorded)
    if len(parts) > 1:
        raise EventDecodeError(
            recorded.type,
            f"it has become {len(parts)} events since it was stored: read them with decode_parts",
            stream_id=recorded.stream_id,
            version=recorded.version,
        )
    return parts[0]


def decode_parts(recorded: RecordedEvent) -> Sequence[Event]:
    """The event of a record, as it is today: several, in order, if an upcaster has split it. They share its place.

    Raises `UnknownEventType`, `EventTooNew`, `UpcasterMissing` or `EventDecodeError`, which name stream and version.
    """
    return decode_stored(
        recorded.type,
        recorded.schema_version,
        recorded.payload,
        stream_id=recorded.stream_id,
        version=recorded.version,
    )


def decode_stored(
    name: str,
    schema_version: int,
    payload: str | bytes,
    *,
    class_of: Callable[[str], type[Event] | None] = event_class,
    stream_id: str,
    version: int,
) -> Sequence[Event]:
    """What is stored of one event as events of the classes that have its name, or that it has become. Raises as
    `decode_parts` does. `class_of` gives the class of a stored name."""
    cls = class_of(name)
    if cls is not None and cls.__schema_version__ == schema_version:
        return (decode_payload(cls, payload, stream_id=stream_id, version=version),)
    parts = UPCASTERS.upcast(name, schema_version, payload, class_of=class_of, stream_id=stream_id, version=version)
    return [decode_payload(part, data, stream_id=stream_id, version=version) for part, data in parts]


def decode_payload(cls: type[Event], payload: str | bytes, *, stream_id: str, version: int) -> Event:
    """A payload of a class's current version; fields that the class does not know are kept."""
    try:
        event: Event = _one(cls)(payload)
        return event
    except ValidationError as error:
        raise EventDecodeError(cls.__event_type__, _reasons(error), stream_id=stream_id, version=version) from error


def _reasons(error: ValidationError) -> str:
    """What is wrong, field by field, without the stored values: they may be personal."""
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc']) or 'payload'}: {detail['msg']}"
        for detail in error.errors(include_input=False, include_url=False, include_context=False)[:5]
    )

"""CloudEvents 1.0: a recorded event as a line of structured JSON, and such lines, ours or anybody's, as events again.

docs/copying.md has the attributes. A line's `data` is the payload as it is stored, byte for byte, and so it comes back:
it is cut out of the line, and not written anew.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import NAMESPACE_URL, UUID, uuid5

import orjson
from pydantic import ValidationError

from eventstore.backend import EncodedEvent
from eventstore.codec import damaged, encode_metadata, encoded_event
from eventstore.errors import InvalidCloudEvent, PayloadTooLarge
from eventstore.events import MAX_EVENT_TYPE_CHARACTERS, Metadata, RecordedEvent, checked_stream_id
from eventstore.tenant import NO_TENANT

DEFAULT_SOURCE = "urn:eventstore"

# CloudEvents allows these in no attribute: control characters, and code points that are no characters.
_NOT_ALLOWED = re.compile("[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")
_NAME = re.compile("[a-z0-9]{1,64}")
_UNCHANGED_ONLY_IN_BASE64 = re.compile(rb"[\r\n]|\A[ \t]|[ \t]\Z")
_NOT_JSON = "NaN and infinity are not JSON"

# Attributes that carry one field of the metadata each.
_METADATA = {
    "correlationid": "correlation_id",
    "causationid": "causation_id",
    "commandid": "command_id",
    "user": "user",
    "traceparent": "traceparent",
}


class Imported(NamedTuple):
    """An event to append, and its stream. `version` is the one that it had where it was exported, None if it comes from
    somewhere else."""

    stream_id: str
    event: EncodedEvent
    version: int | None


def to_line(recorded: RecordedEvent, *, source: str = DEFAULT_SOURCE) -> bytes:
    """The event as one line of JSON, with its line end. Raises `JournalCorrupt` for a payload that is no JSON."""
    try:
        _check_json(recorded.payload.decode())
    except (ValueError, RecursionError) as error:
        raise damaged(
            f"its payload is no JSON: {error}",
            stream_id=recorded.stream_id,
            version=recorded.version,
            position=recorded.position,
        ) from error
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(recorded.event_id),
        "source": source,
        "type": recorded.type,
    }
    if _is_allowed(recorded.stream_id):
        attributes["subject"] = recorded.stream_id
    else:
        attributes["streamid"] = base64.b64encode(recorded.stream_id.encode()).decode()
    attributes |= {
        "time": recorded.recorded_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataschema": f"urn:eventstore:schema:{quote(recorded.type, safe='')}:{recorded.schema_version}",
        "schemaversion": recorded.schema_version,
        # An integer of CloudEvents has 32 bits: what may have more is text.
        "streamversion": str(recorded.version),
        "position": str(recorded.position),
        "batchid": str(recorded.batch_id),
    }
    if recorded.epoch:
        attributes["epoch"] = str(recorded.epoch)
    if recorded.tenant:
        attributes["tenant"] = recorded.tenant
    if recorded.origin is not None and recorded.clock is not None:
        attributes |= {
            "origin": recorded.origin,
            "originsequence": str(recorded.origin_sequence),
            "clock": _escaped(recorded.clock.decode()),
            "concurrent": recorded.concurrent,
        }
    attributes |= _metadata_attributes(recorded.metadata)
    payload = recorded.payload
    if _UNCHANGED_ONLY_IN_BASE64.search(payload):
        attributes["data_base64"] = base64.b64encode(payload).decode()
        return orjson.dumps(attributes) + b"\n"
    return b'%b,"data":%b}\n' % (orjson.dumps(attributes)[:-1], payload)


def from_line(line: bytes, *, limit: int, stream_id: str | None = None, tenant: str = NO_TENANT) -> Imported:
    """The event of a line. `stream_id` is for events that name none, and `limit` what a payload may have. An exported
    event of another tenant than `tenant` is refused; one of no tenant is not.

    Raises `InvalidCloudEvent`, `PayloadTooLarge` or `InvalidStreamId`.
    """
    attributes, data = _parsed(line)
    if attributes.get("specversion") != "1.0":
        raise InvalidCloudEvent(f"specversion is {attributes.get('specversion')!r}, and not '1.0'")
    for name in ("id", "source", "type"):
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            raise InvalidCloudEvent(f"{name} is missing, or no text")
    for name, value in attributes.items():
        if name != "data_base64" and not _NAME.fullmatch(name):
            raise InvalidCloudEvent(f"{name!r} is no attribute's name: these have lower-case letters and digits alone")
        if not isinstance(value, (str, int)):
            raise InvalidCloudEvent(f"{name} is neither text, nor a whole number, nor true or false")
    type_ = attributes["type"]
    if len(type_) > MAX_EVENT_TYPE_CHARACTERS or not type_.isprintable():
        raise InvalidCloudEvent(f"type has more than {MAX_EVENT_TYPE_CHARACTERS} characters, or some that do not print")
    payload = _payload(attributes, data)
    if "streamversion" in attributes:
        return _own(attributes, type_, payload, tenant, limit=limit)
    return _foreign(attributes, type_, payload, stream_id, limit=limit)


def _own(attributes: dict[str, Any], type_: str, payload: bytes, tenant: str, *, limit: int) -> Imported:
    if "origin" in attributes:
        raise InvalidCloudEvent(
            "it is an event of a replicated actor, and those are numbered by their replica: copy the journal with "
            "`eventstore copy`"
        )
    if attributes.get("tenant", tenant) != tenant:
        raise InvalidCloudEvent(
            f"it belongs to the tenant {attributes['tenant']!r}: import that one's events into a store that was opened "
            "for it"
        )
    try:
        event_id, batch_id = UUID(attributes["id"]), UUID(str(attributes.get("batchid", attributes["id"])))
        version, schema_version = int(attributes["streamversion"]), int(attributes.get("schemaversion", 1))
        if "streamid" in attributes:
            stream_id = base64.b64decode(str(attributes["streamid"]), validate=True).decode()
        else:
            stream_id = str(attributes.get("subject", ""))
        metadata = _metadata_of(attributes)
    except (ValueError, TypeError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise InvalidCloudEvent(f"an attribute of ours is not what it should be: {reason}") from error
    if version < 1 or not 1 <= schema_version < 2**31:
        raise InvalidCloudEvent("streamversion and schemaversion begin with 1")
    notes = encode_metadata(metadata, limit=limit)
    event = encoded_event(event_id.bytes, type_, schema_version, _checked(payload, type_, limit), notes, batch_id.bytes)
    return Imported(checked_stream_id(stream_id), event, version)


def _foreign(attributes: dict[str, Any], type_: str, payload: bytes, stream_id: str | None, *, limit: int) -> Imported:
    """Somebody else's event: `subject` is the stream, and what has no place of its own is kept in the metadata."""
    subject = attributes.get("subject") or stream_id
    if not isinstance(subject, str):
        raise InvalidCloudEvent("subject is missing, which names the stream: name one for such events with --stream")
    known = {field: attributes[name] for name, field in _METADATA.items() if isinstance(attributes.get(name), str)}
    rest = {name: value for name, value in attributes.items() if name not in _METADATA or not isinstance(value, str)}
    for name in ("specversion", "type"):
        del rest[name]
    metadata = Metadata(**known, values={"cloudevents": rest})
    # An id is unique together with its source. Anybody who imports the event gets the same.
    try:
        event_id = UUID(attributes["id"])
    except ValueError:
        event_id = uuid5(NAMESPACE_URL, f"{attributes['source']}\n{attributes['id']}")
    notes = encode_metadata(metadata, limit=limit)
    event = encoded_event(event_id.bytes, type_, 1, _checked(payload, type_, limit), notes, event_id.bytes)
    return Imported(checked_stream_id(subject), event, None)


def _payload(attributes: dict[str, Any], data: bytes | None) -> bytes:
    content_type = str(attributes.get("datacontenttype", "application/json")).partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise InvalidCloudEvent(f"datacontenttype is {content_type!r}: events hold JSON alone")
    encoded = attributes.pop("data_base64", None)
    if encoded is None:
        return b"{}" if data is None else data
    if data is not None:
        raise InvalidCloudEvent("it has both data and data_base64")
    try:
        payload = base64.b64decode(encoded, validate=True)
        _check_json(payload.decode())
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise InvalidCloudEvent(f"data_base64 holds no JSON: {error}") from error
    return payload


def _checked(payload: bytes, type_: str, limit: int) -> bytes:
    if len(payload) > limit:
        raise PayloadTooLarge(f"event {type_!r}", len(payload), limit)
    return payload


def _metadata_attributes(metadata: Metadata | None) -> dict[str, Any]:
    """Metadata as attributes: each text that CloudEvents allows under its own name, and the rest as JSON in one."""
    if metadata is None:
        return {}
    found: dict[str, Any] = {}
    rest = metadata.model_dump(mode="json", exclude_defaults=True)
    for name, field in _METADATA.items():
        if (value := rest.get(field)) and _is_allowed(value):
            found[name] = rest.pop(field)
    # Also where nothing is left: that there was metadata at all.
    if rest or not found:
        found["metadata"] = _escaped(json.dumps(rest, separators=(",", ":")))
    return found


def _metadata_of(attributes: dict[str, Any]) -> Metadata | None:
    known = {field: attributes[name] for name, field in _METADATA.items() if name in attributes}
    if not known and "metadata" not in attributes:
        return None
    rest: dict[str, Any] = orjson.loads(str(attributes.get("metadata", "{}")))
    return Metadata.model_validate({**rest, **known})


def _escaped(text: str) -> str:
    """JSON text without any character that an attribute must not have."""
    return _NOT_ALLOWED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _is_allowed(text: str) -> bool:
    return bool(text) and _NOT_ALLOWED.search(text) is None


def _refuse(_: str) -> Any:
    raise ValueError(_NOT_JSON)


# Numbers are not made: the grammar is checked, and a number may have more digits than Python makes an integer of.
_GRAMMAR = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)
_VALUES = json.JSONDecoder(parse_constant=_refuse)
_SPACE = re.compile(r"[ \t\r\n]*")


def _check_json(text: str) -> None:
    _, end = _GRAMMAR.raw_decode(text, _after_space(text, 0))
    if _after_space(text, end) != len(text):
        raise ValueError("something follows it")


def _parsed(line: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The members of the object on a line but for `data`, and that as it stands there. Raises `InvalidCloudEvent`."""
    try:
        text = line.decode()
        return _members(text)
    except (ValueError, RecursionError, IndexError) as error:
        reason = "it is cut off" if isinstance(error, IndexError) else error
        raise InvalidCloudEvent(f"it is no JSON object: {reason}") from error


def _members(text: str) -> tuple[dict[str, Any], bytes | None]:
    at = _behind(text, 0, "{")
    members: dict[str, Any] = {}
    data: bytes | None = None
    while text[at] != "}":
        if members or data is not None:
            at = _behind(text, at, ",")
        if text[at] != '"':
            raise ValueError(f"a name is missing at character {at + 1}")
        name, at = _VALUES.raw_decode(text, at)
        at = _behind(text, at, ":")
        value, end = (_GRAMMAR if name == "data" else _VALUES).raw_decode(text, at)
        if name in members or (name == "data" and data is not None):
            raise ValueError(f"{name!r} is there twice")
        if name == "data":
            data = text[at:end].encode()
        else:
            members[name] = value
        at = _after_space(text, end)
    if _after_space(text, at + 1) != len(text):
        raise ValueError("something follows the object")
    # As if it were not there, says the specification.
    return {name: value for name, value in members.items() if value is not None}, data


def _behind(text: str, at: int, character: str) -> int:
    """The place behind a character, and behind the space around it."""
    at = _after_space(text, at)
    if text[at] != character:
        raise ValueError(f"{character!r} is missing at character {at + 1}")
    return _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()

"""The parameters of an append: the columns of a group's events, streams and commands, as its statement takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from backends.deciding import Head
from eventstore.backend import CommandOutcome, ReplicaFields
from eventstore.errors import EventEncodeError

# What stands between texts that are strung together.
_SEPARATOR = "\x1e"

RECORDED_AT = 10
"""The place among an append's parameters, behind the columns of events, of the time below which none may be recorded:
it is known when the append before has ended."""


def event_columns(rows: Sequence[tuple[Any, ...]], places: Mapping[int, int]) -> list[object]:
    """The columns of events, `stream` to `checksum`. `places` has the numbers of streams without a row, by head."""
    if not rows:
        return ["{}", "{}", "", [], "", [], b"", [], "{}", "{}"]
    heads, versions, types, schema_versions, payloads, metadata, event_ids, batch_ids, checksums, epochs = zip(
        *rows, strict=True
    )
    try:
        texts = _SEPARATOR.encode().join(payloads).decode()
        notes = [None if item is None else item.decode() for item in metadata] if any(metadata) else []
    except UnicodeDecodeError as error:
        raise EventEncodeError(f"an event holds bytes that are no UTF-8 text, nothing was stored: {error}") from error
    names = _SEPARATOR.join(types)
    if not texts.count(_SEPARATOR) == names.count(_SEPARATOR) == len(rows) - 1:
        raise EventEncodeError("an event holds a control character that no JSON and no name has; nothing was stored")
    return [
        numbers(head.id or places[id(head)] for head in heads),
        numbers(versions),
        names,
        [] if schema_versions.count(1) == len(rows) else schema_versions,
        texts,
        notes,
        b"".join(event_ids),
        batch_ids if any(batch_ids) else [],
        numbers(epochs) if any(epochs) else "{}",
        numbers(checksums),
    ]


def command_columns(commands: Sequence[tuple[Head, int, CommandOutcome]], places: Mapping[int, int]) -> list[object]:
    """The columns of outcomes, from `stream` to `issued_at`."""
    heads, versions, outcomes = zip(*commands, strict=True)
    command_ids, fingerprints, outcome_ids, rejections, payloads, issued = zip(*outcomes, strict=True)
    try:
        texts = _SEPARATOR.encode().join(payloads).decode()
    except UnicodeDecodeError as error:
        raise EventEncodeError(f"a reply holds bytes that are no UTF-8 text, nothing was stored: {error}") from error
    if texts.count(_SEPARATOR) != len(commands) - 1:
        raise EventEncodeError("a reply holds a control character that no JSON has; nothing was stored")
    return [
        numbers(head.id or places[id(head)] for head in heads),
        numbers(versions),
        command_ids,
        # All of the one, then all of the other.
        b"".join(fingerprints + outcome_ids),
        rejections if any(rejections) else [],
        texts,
        numbers(issued) if any(issued) else "{}",
    ]


def replica_columns(replicas: Mapping[int, ReplicaFields]) -> list[object]:
    """The columns of what replicas say of events, after the events' places, which count from 1."""
    origins, sequences, clocks, concurrent = zip(*replicas.values(), strict=True)
    try:
        texts = [clock.decode() for clock in clocks]
    except UnicodeDecodeError as error:
        raise EventEncodeError(f"a clock holds bytes that are no UTF-8 text, nothing was stored: {error}") from error
    return [[place + 1 for place in replicas], origins, sequences, texts, concurrent]


def head_columns(heads: Iterable[tuple[Head, int]]) -> list[Sequence[int]]:
    """The columns of streams that have rows: as they must be found, and the versions they get."""
    known = [(head.id, head.version, after, head.epoch) for head, after in heads]
    return list(zip(*known, strict=True)) or [(), (), (), ()]


def forgotten_column(heads: Sequence[Head]) -> str:
    """Up to when the streams have forgotten commands. Most have forgotten none."""
    return numbers(head.forgotten for head in heads) if any(head.forgotten for head in heads) else "{}"


def numbers(column: Iterable[int]) -> str:
    """Numbers as the text of an array."""
    return f"{{{','.join(map(str, column))}}}"

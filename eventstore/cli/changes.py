"""Changes of states as rows, and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import JsonValue

from actors.time_travel.state_changes import StateChange
from eventstore.cli.escaping import printable_json
from eventstore.cli.output import json_fragment

_LONGEST_VALUE = 60


def difference_in_words(change: StateChange) -> str:
    """A snapshot's state is before the change, the folded one behind it."""
    place = change.pointer or "the state"
    match change.kind:
        case "removed":
            return f"{place} is in it, and not there when replayed"
        case "added":
            return f"{place} is not in it, and there when replayed"
        case "changed":
            return f"{place} is {short(change.before)} in it, {short(change.after)} when replayed"


def short(value: JsonValue) -> str:
    """A value as JSON, cut where it gets long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def text_of(value: JsonValue) -> str:
    """A value as JSON for a table, whole."""
    return printable_json(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def json_of(value: JsonValue) -> orjson.Fragment:
    """A value for an object that is written, integers of any size digit for digit."""
    return json_fragment(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass"))


def record_of(change: StateChange) -> Mapping[str, Any]:
    """A change as an object: `before` and `after` are there where there is such a value."""
    record: dict[str, Any] = {"pointer": change.pointer, "kind": change.kind}
    if change.kind != "added":
        record["before"] = json_of(change.before)
    if change.kind != "removed":
        record["after"] = json_of(change.after)
    return record

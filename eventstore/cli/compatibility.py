"""Compatibility: whether what was stored by one version of the code can be read by another, by their descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, cast

from eventstore.cli.described import Description

Schema = Mapping[str, Any]

# They say nothing about which values there are. Fields that a class does not know are kept in any case.
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$defs", "discriminator"}
)
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_STRUCTURE = frozenset(
    {"$ref", "type", "anyOf", "oneOf", "const", "enum", "properties", "required", "additionalProperties", "items"}
    | {"prefixItems", *_LOWER, *_UPPER}
)


class Verdict(Enum):
    """What a change asks of its author."""

    COMPATIBLE = "compatible"
    NEEDS_UPCASTER = "needs an upcaster"
    BREAKING = "breaking"


class Change(NamedTuple):
    """One difference between two descriptions."""

    verdict: Verdict
    what: str
    text: str


def changes(old: Description, new: Description) -> Iterator[Change]:
    """What became of everything in the old description, and what is new."""
    yield from _event_changes(old, new)
    yield from _upcaster_changes(old, new)
    yield from _command_changes(old["commands"], new["commands"])
    yield from _state_changes(old["states"], new["states"])


class _Readers:
    """What can be read, according to one description."""

    def __init__(self, description: Description) -> None:
        self._events: Mapping[str, Any] = description["events"]
        self._names = {alias: name for name, event in self._events.items() for alias in event["aliases"]}
        self._names.update({name: name for name in self._events})
        self._steps = {(step["type"], step["version"]) for step in description["upcasters"]}

    def name_of(self, stored: str) -> str | None:
        """The name that the class of a stored name has now."""
        return self._names.get(stored)

    def leads_on(self, stored: str, version: int) -> bool:
        """Whether an upcaster starts there, under any name of the class."""
        name = self.name_of(stored)
        known = {stored, *(() if name is None else (name, *self._events[name]["aliases"]))}
        return any((one, version) in self._steps for one in known)


def _event_changes(old: Description, new: Description) -> Iterator[Change]:
    readers = _Readers(new)
    for stored, event in old["events"].items():
        for name in (stored, *event["aliases"]):
            yield from _event_change(name, event, new["events"], readers)
    known = _Readers(old)
    for name, event in new["events"].items():
        if all(known.name_of(one) is None for one in (name, *event["aliases"])):
            yield Change(Verdict.COMPATIBLE, f"event {name!r}", "is new")


def _event_change(
    stored: str, event: Mapping[str, Any], events: Mapping[str, Any], readers: _Readers
) -> Iterator[Change]:
    what, version = f"event {stored!r}", event["version"]
    name = readers.name_of(stored)
    if name is None:
        if readers.leads_on(stored, version):
            yield Change(Verdict.COMPATIBLE, what, "has no class any more, and is read through an upcaster")
        else:
            yield Change(Verdict.BREAKING, what, "has no class any more: what is stored under that name cannot be read")
        return
    now = events[name]
    if now["version"] < version:
        text = f"went back from version {version} to {now['version']}: what is stored would be of newer code"
        yield Change(Verdict.BREAKING, what, text)
    elif now["version"] > version:
        is_read = readers.leads_on(stored, version)
        text = f"went from version {version} to {now['version']}, "
        text += "and is read through an upcaster" if is_read else "and no upcaster leads on from there"
        yield Change(Verdict.COMPATIBLE if is_read else Verdict.NEEDS_UPCASTER, what, text)
    else:
        reasons = list(misfits(event["schema"], now["schema"]))
        for reason in reasons:
            yield Change(Verdict.NEEDS_UPCASTER, what, reason)
        if not reasons and (name, event["schema"]) != (stored, now["schema"]):
            yield Change(Verdict.COMPATIBLE, what, "changed, and what is stored still fits")


def _upcaster_changes(old: Description, new: Description) -> Iterator[Change]:
    readers = _Readers(new)
    for step in old["upcasters"]:
        stored, version = step["type"], step["version"]
        name = readers.name_of(stored)
        is_current = name is not None and new["events"][name]["version"] == version
        if not is_current and not readers.leads_on(stored, version):
            text = "has no upcaster any more: what is stored of that version cannot be read"
            yield Change(Verdict.BREAKING, f"event {stored!r} version {version}", text)


def _command_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name, command in old.items():
        what, now = f"command {name}", new.get(name)
        if now is None:
            yield Change(Verdict.BREAKING, what, "is gone: who sends it must change first")
            continue
        reasons = [f"who sends it must change first: {reason}" for reason in misfits(command["schema"], now["schema"])]
        reasons += [f"remembered replies do not fit: {reason}" for reason in misfits(command["reply"], now["reply"])]
        for reason in reasons:
            yield Change(Verdict.BREAKING, what, reason)
        if not reasons and command != now:
            yield Change(Verdict.COMPATIBLE, what, "changed, and what was sent still fits")
    for name in new.keys() - old.keys():
        yield Change(Verdict.COMPATIBLE, f"command {name}", "is new")


def _state_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for kind, state in old.items():
        what, now = f"state of {kind!r}", new.get(kind)
        if now is None:
            yield Change(Verdict.BREAKING, what, "has no actor any more: nobody reads the streams of that kind")
        elif now["fingerprint"] != state["fingerprint"]:
            yield Change(Verdict.COMPATIBLE, what, "changed: its snapshots are left aside, and states are replayed")
    for kind in new.keys() - old.keys():
        yield Change(Verdict.COMPATIBLE, f"state of {kind!r}", "is new")


def misfits(old: Schema, new: Schema) -> Iterator[str]:
    """Why a value that the old schema allows may not be one for the new. Nothing: every value fits.

    It is strict: where it cannot tell, it says so.
    """
    yield from _Comparison(old, new).misfits(old, new, "$")


class _Comparison:
    """Two schemas with their definitions. Those that refer to themselves are looked at once."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old_definitions: Schema = old.get("$defs", {})
        self._new_definitions: Schema = new.get("$defs", {})
        self._seen: set[tuple[str, str]] = set()

    def misfits(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        if "$ref" in old or "$ref" in new:
            pair = (old.get("$ref", str(old)), new.get("$ref", str(new)))
            if pair in self._seen:
                return
            self._seen.add(pair)
            old = self._resolved(old, self._old_definitions)
            new = self._resolved(new, self._new_definitions)
            yield from self.misfits(old, new, path)
            self._seen.discard(pair)
            return
        old = {key: value for key, value in old.items() if key not in _ANNOTATIONS}
        new = {key: value for key, value in new.items() if key not in _ANNOTATIONS}
        if not new:
            return
        if alternatives := old.get("anyOf", old.get("oneOf")):
            for alternative in alternatives:
                yield from self.misfits(alternative, new, path)
        elif alternatives := new.get("anyOf", new.get("oneOf")):
            if all(next(self.misfits(old, alternative, path), None) is not None for alternative in alternatives):
                yield f"{path} was {_named(old)}, which is none of {' | '.join(map(_named, alternatives))}"
        else:
            yield from self._plain(old, new, path)

    def _plain(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        was, now = old.get("type"), new.get("type")
        if now is not None and was != now and (was, now) != ("integer", "number"):
            yield f"{path} was {_named(old)}, and is {_named(new)}"
            return
        if (allowed := _values(new)) is not None:
            before = _values(old)
            if before is None or any(value not in allowed for value in before):
                yield f"{path} allows fewer values: {', '.join(map(repr, allowed))}"
            return
        for key in _LOWER:
            if key in new and (key not in old or old[key] < new[key]):
                yield f"{path} has a {key} of {new[key]}{f', it was {old[key]}' if key in old else ''}"
        for key in _UPPER:
            if key in new and (key not in old or old[key] > new[key]):
                yield f"{path} has a {key} of {new[key]}{f', it was {old[key]}' if key in old else ''}"
        for key in new.keys() - _STRUCTURE:
            if old.get(key) != new[key]:
                yield f"{path} has {key} {new[key]!r}{f', it was {old[key]!r}' if key in old else ''}"
        yield from self._members(old, new, path)
        yield from self._items(old, new, path)

    def _members(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        before: Schema = old.get("properties", {})
        now: Schema = new.get("properties", {})
        for name in new.get("required", ()):
            if name not in old.get("required", ()):
                yield f"{path}.{name} is required, and may be missing in what is stored"
        for name in before.keys() & now.keys():
            yield from self.misfits(before[name], now[name], f"{path}.{name}")
        others, wanted = old.get("additionalProperties"), _schema_at(new, "additionalProperties")
        if wanted is not None:
            for name in before.keys() - now.keys():
                yield from self.misfits(before[name], wanted, f"{path}.{name}")
            # A class writes its own fields, and no others.
            if others or not before:
                yield from self.misfits(_schema_at(old, "additionalProperties") or {}, wanted, f"{path}.*")

    def _items(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        before, now = old.get("prefixItems", ()), new.get("prefixItems", ())
        for index, item in enumerate(now):
            was = before[index] if index < len(before) else _schema_at(old, "items")
            yield from self.misfits(was or {}, item, f"{path}[{index}]")
        wanted = _schema_at(new, "items")
        if wanted is None:
            return
        for index in range(len(now), len(before)):
            yield from self.misfits(before[index], wanted, f"{path}[{index}]")
        if old.get("maxItems", len(before) + 1) > len(before):
            yield from self.misfits(_schema_at(old, "items") or {}, wanted, f"{path}[]")

    def _resolved(self, schema: Schema, definitions: Schema) -> Schema:
        if "$ref" not in schema:
            return schema
        resolved: Schema = definitions[schema["$ref"].rpartition("/")[2]]
        return resolved


def _schema_at(schema: Schema, key: str) -> Schema | None:
    """The schema under a key, where there is no plain true or false."""
    found = schema.get(key)
    return cast("Schema", found) if isinstance(found, dict) else None


def _values(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _named(schema: Schema) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    name = schema.get("title") if schema.get("type") == "object" else None
    return str(name or schema.get("format") or schema.get("type") or "anything")

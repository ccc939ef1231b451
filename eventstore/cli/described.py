"""Descriptions: the JSON Schemas of what modules define: events with their upcasters, commands, states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import orjson
from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from actors.actor import PersistentActor
from actors.command import Command, reply_type
from eventstore.cli.exits import WrongUsage
from eventstore.cli.targets import imported_module
from eventstore.events import event_classes
from eventstore.upcasters import UPCASTERS

Description = dict[str, Any]

FORMAT = 1


class Modules:
    """What some modules define, those below them included if they have been imported."""

    def __init__(self, names: Sequence[str]) -> None:
        for name in names:
            imported_module(name)
        self.names = tuple(names)
        self.events = self._own(event_classes())
        self.commands = self._own(command for command in _below(Command) if _is_plain(command))
        self.actors: list[type[PersistentActor[Any]]] = [
            actor for actor in self._own(_below(PersistentActor)) if "kind" in dir(actor)
        ]

    def describe(self) -> Description:
        """Everything as JSON, in an order that depends on the names alone."""
        upcasters = [step for step in UPCASTERS.steps() if self._is_own(step.function.__module__)]
        return {
            "format": FORMAT,
            "events": {
                event.__event_type__: {
                    "version": event.__schema_version__,
                    "aliases": sorted(event.__aliases__),
                    "schema": _schema(event),
                }
                for event in self.events
            },
            "upcasters": [
                {"type": type_, "version": version, "into": {target.type: target.version for target in step.targets}}
                for (type_, version), step in sorted((step.source, step) for step in upcasters)
            ],
            "commands": {
                f"{command.__module__}:{command.__qualname__}": {
                    "schema": _schema(command),
                    "reply": _schema(reply_type(command)),
                }
                for command in self.commands
            },
            "states": {
                actor.kind: {
                    "actor": f"{actor.__module__}:{actor.__qualname__}",
                    "fingerprint": actor.state_type.fingerprint,
                    "schema": _schema(actor.state_type.annotation),
                }
                for actor in self.actors
            },
        }

    def _own(self, classes: Any) -> list[Any]:
        own = [cls for cls in classes if self._is_own(cls.__module__)]
        return sorted(own, key=lambda cls: (cls.__module__, cls.__qualname__))

    def _is_own(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.names)


def read_description(path: Path) -> Description:
    """A description that `eventstore schema export` wrote. Raises `WrongUsage`."""
    try:
        found = orjson.loads(path.read_bytes())
    except OSError as error:
        raise WrongUsage(f"{path} cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise WrongUsage(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or "events" not in found:
        raise WrongUsage(f"{path} is no export of schemas: make one with `eventstore schema export`")
    description = cast("Description", found)
    if description.get("format") != FORMAT:
        raise WrongUsage(
            f"{path} has format {description.get('format')!r}, this version reads {FORMAT}: export it anew"
        )
    return description


def as_json(description: Description) -> bytes:
    """Indented and sorted: it is kept beside the code, and its changes are looked at."""
    return orjson.dumps(description, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    for below in cls.__subclasses__():
        yield below
        yield from _below(below)


def _is_plain(command: type[Command[Any]]) -> bool:
    """Whether it is a class that someone wrote, and not `Command[int]`."""
    return command.__pydantic_generic_metadata__["origin"] is None


def _schema(annotation: Any) -> dict[str, Any]:
    try:
        return TypeAdapter(annotation).json_schema(mode="validation")
    except PydanticInvalidForJsonSchema:
        # Without a schema the name has to do.
        return {"$comment": f"no JSON Schema describes it: {annotation!r}"}

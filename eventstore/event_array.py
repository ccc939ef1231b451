"""EventArray: what reads events of one class out of their JSON, many in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from eventstore.events import Event
from eventstore.json_form import reader, survey_of


class EventArray:
    """A tenth to a fifth faster than one after another. Fields that the class does not know are kept.

    To keep them takes a dictionary for each event, empty or not. So the events of a class for which it makes no other
    difference are read without first, until one comes that has such a field: pages of newer code's are not read twice.
    """

    __slots__ = ("_extra", "_read")

    def __init__(self, cls: type[Event]) -> None:
        adapter: TypeAdapter[list[Event]] = TypeAdapter(cast("Any", GenericAlias(list, (cls,))))
        self._read: Callable[..., list[Event]] = reader(cls, adapter.validator.validate_json)
        makes_no_difference = (
            cls.__pydantic_complete__ and cls.model_config.get("extra") == "forbid" and survey_of(cls).is_flat
        )
        self._extra = "forbid" if makes_no_difference else "allow"

    def read(self, payloads: Sequence[bytes]) -> list[Event] | None:
        """The events, one for each payload. None: one of them cannot be read, which does not tell which."""
        array = b"[%b]" % b",".join(payloads)
        try:
            events = self._read(array, extra=self._extra)
        except ValidationError:
            if self._extra == "allow":
                return None
            try:
                events = self._read(array, extra="allow")
            except ValidationError:
                return None
            self._extra = "allow"
        except AttributeError:
            # A dataclass with slots has no room for what it does not know.
            return None
        return events if len(events) == len(payloads) else None

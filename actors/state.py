"""StateType: an actor class's state as pydantic sees it: made, written, read, and told apart by its schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, get_origin

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic_core import PydanticSerializationError

from actors.canonical import in_order, is_array, is_object
from eventstore.collector import collector_paused
from eventstore.errors import CodecError, DefinitionError, SnapshotUnusable
from eventstore.json_form import JsonForm, form_of

# What a JSON Schema says to readers alone, and what in it is by names that users give, or is a value.
_WORDS = frozenset({"title", "description", "examples"})
_BY_NAME = frozenset({"properties", "patternProperties", "$defs"})
_VALUES = frozenset({"default", "const", "enum"})


class ReadAsAnother(CodecError):
    """A state would come back from its JSON as another one, so that no snapshot of it can be used."""


class StateType:
    """Any type that pydantic can validate and serialise."""

    __slots__ = ("_adapter", "_fingerprint", "_form", "_has_come_back", "_revision", "annotation", "is_complained_of")

    def __init__(self, annotation: Any, *, place: str, revision: int) -> None:
        self.annotation = annotation
        self._revision = revision
        self._fingerprint: str | None = None
        self._has_come_back = False
        self.is_complained_of = False
        """Whether it was said that its states do not come back from snapshots."""
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)
            self._form: JsonForm = form_of(self._adapter)
        except PydanticUserError as error:
            raise DefinitionError(f"{place}: pydantic cannot validate the state {annotation!r}: {error}") from error
        if self._form.losses:
            lost, reason = self._form.losses[0]
            what = f"{getattr(annotation, '__qualname__', annotation)}.{lost}" if lost else repr(annotation)
            raise DefinitionError(
                f"{place}: its state's {what} would not come back from a snapshot: {reason}; have it written, or keep "
                "it out of the state"
            )

    def initial(self) -> Any:
        """The type called without arguments."""
        if self.annotation is None or self.annotation is type(None):
            return None
        make: Callable[[], Any] = get_origin(self.annotation) or self.annotation
        return make()

    @property
    def fingerprint(self) -> str:
        """Names the schema: two equal ones can read each other's snapshots. What it only says to readers, such as
        docstrings, is no part of it."""
        if self._fingerprint is None:
            try:
                schema = self._adapter.json_schema(mode="serialization")
            except PydanticInvalidForJsonSchema:
                # Without a schema the name has to do; `SnapshotPolicy.revision` tells changes apart then.
                schema = {"type": repr(self.annotation)}
            described = orjson.dumps([_without_words(schema), self._revision], option=orjson.OPT_SORT_KEYS)
            self._fingerprint = blake2b(described, digest_size=12).hexdigest()
        return self._fingerprint

    def dump(self, state: Any) -> bytes:
        """The state as JSON. Raises `CodecError` if pydantic cannot write it."""
        try:
            return self._form.write(state)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise CodecError(f"the state cannot be written as JSON: {error}") from error

    def kept(self, state: Any) -> bytes:
        """The state as JSON that is read as the same state. Raises `ReadAsAnother`, and `CodecError` as `dump` does."""
        data = self.dump(state)
        if (difference := self.difference(state, data)) is not None:
            raise ReadAsAnother(f"a snapshot of the state would be read as another one: {difference}")
        return data

    def difference(self, state: Any, data: bytes) -> str | None:
        """Where what `dump` gave of a state would be read as another one. None if it would not."""
        # Where the type says that every value comes back, it is tried once.
        if self._has_come_back and self._form.is_exact:
            return None
        with collector_paused():
            difference = self._form.difference(state, data)
        self._has_come_back = self._has_come_back or difference is None
        return difference

    def canonical(self, state: Any) -> Any:
        """The state as plain JSON values: two states that are equal give equal ones, in any process. They are those
        that `dump` writes, with the members of sets in one order. Raises `CodecError` as `dump` does."""
        # Not orjson: it would turn integers of more than 64 bits into floats.
        written = json.loads(self.dump(state))
        try:
            value = self._form.to_python(state, warnings=False)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError):
            # Its serialisers are for JSON alone: what is written is all there is to go by.
            return written
        return in_order(value, written)

    def load(self, data: bytes) -> Any:
        """The state out of its JSON. Raises `SnapshotUnusable`."""
        try:
            with collector_paused():
                return self._form.read(data)
        except ValidationError as error:
            raise SnapshotUnusable(f"it does not fit the state: {error.error_count()} errors") from error
        except Exception as error:
            # A validator of the user's own may raise anything.
            raise SnapshotUnusable(f"it does not fit the state: {type(error).__name__}: {error}") from error


def _without_words(schema: Any) -> Any:
    """A JSON Schema without what is for readers: a docstring is mended, and every snapshot serves as before."""
    if is_array(schema):
        return [_without_words(each) for each in schema]
    if not is_object(schema):
        return schema
    kept: dict[str, Any] = {}
    for word, value in schema.items():
        if word in _BY_NAME:
            kept[word] = {name: _without_words(each) for name, each in value.items()}
        elif word not in _WORDS:
            kept[word] = value if word in _VALUES else _without_words(value)
    return kept

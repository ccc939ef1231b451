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

from actors.canonical import in_order
from eventstore.collector import collector_paused
from eventstore.errors import CodecError, DefinitionError, SnapshotUnusable


class StateType:
    """Any type that pydantic can validate and serialise."""

    __slots__ = ("_adapter", "_fingerprint", "_revision", "annotation")

    def __init__(self, annotation: Any, *, place: str, revision: int) -> None:
        self.annotation = annotation
        self._revision = revision
        self._fingerprint: str | None = None
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        except PydanticUserError as error:
            raise DefinitionError(f"{place}: pydantic cannot validate the state {annotation!r}: {error}") from error

    def initial(self) -> Any:
        """The type called without arguments."""
        if self.annotation is None or self.annotation is type(None):
            return None
        make: Callable[[], Any] = get_origin(self.annotation) or self.annotation
        return make()

    @property
    def fingerprint(self) -> str:
        """Names the schema: two equal ones can read each other's snapshots."""
        if self._fingerprint is None:
            try:
                schema = self._adapter.json_schema(mode="serialization")
            except PydanticInvalidForJsonSchema:
                # Without a schema the name has to do; `SnapshotPolicy.revision` tells changes apart then.
                schema = {"type": repr(self.annotation)}
            described = orjson.dumps([schema, self._revision], option=orjson.OPT_SORT_KEYS)
            self._fingerprint = blake2b(described, digest_size=12).hexdigest()
        return self._fingerprint

    def dump(self, state: Any) -> bytes:
        """The state as JSON. Raises `CodecError` if pydantic cannot write it."""
        try:
            return self._adapter.serializer.to_json(state)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise CodecError(f"the state cannot be written as JSON: {error}") from error

    def canonical(self, state: Any) -> Any:
        """The state as plain JSON values: two states that are equal give equal ones, in any process. They are those
        that `dump` writes, with the members of sets in one order. Raises `CodecError` as `dump` does."""
        # Not orjson: it would turn integers of more than 64 bits into floats.
        written = json.loads(self.dump(state))
        try:
            value = self._adapter.serializer.to_python(state, warnings=False)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError):
            # Its serialisers are for JSON alone: what is written is all there is to go by.
            return written
        return in_order(value, written)

    def load(self, data: bytes) -> Any:
        """The state out of its JSON. Raises `SnapshotUnusable`."""
        try:
            with collector_paused():
                return self._adapter.validator.validate_json(data)
        except ValidationError as error:
            raise SnapshotUnusable(f"it does not fit the state: {error.error_count()} errors") from error

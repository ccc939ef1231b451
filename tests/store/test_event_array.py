"""Many events in one call are read as each would be by itself, with the fields that their class does not know."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from itertools import product
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    JsonValue,
    PlainValidator,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    computed_field,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from typing_extensions import TypeAliasType, TypedDict

from eventstore import Event
from eventstore.event_array import EventArray
from eventstore.json_form import keeping_reader, survey_of


class Plain(Event, name="event-array.plain"):
    number: int
    words: list[str] = Field(default_factory=list)
    note: str | None = None
    both: int | str = 0


class Short(BaseModel):
    x: int


class Long(BaseModel):
    x: int
    y: int | None = None


class Nested(Event, name="event-array.nested"):
    item: Short


class Either(Event, name="event-array.either"):
    item: Short | Long


class Tree(Event, name="event-array.tree"):
    below: Sequence[Tree] = ()


class Checked(Event, name="event-array.checked"):
    number: int

    @field_validator("number")
    @classmethod
    def is_checked(cls, number: int) -> int:
        return number


class Wrapped(Event, name="event-array.wrapped"):
    number: int

    @model_validator(mode="wrap")
    @classmethod
    def forgives(cls, data: Any, handler: ValidatorFunctionWrapHandler) -> Wrapped:
        made: Wrapped = handler(data)
        return made


class Prepared(Event, name="event-array.prepared"):
    number: int

    def model_post_init(self, context: Any, /) -> None:
        pass


@pytest.mark.parametrize("cls", [Nested, Either, Tree, Checked, Wrapped, Prepared])
def test_only_where_nothing_else_depends_on_unknown_fields_they_are_refused_first(cls: type[Event]):
    assert survey_of(Plain).is_flat
    assert not survey_of(cls).is_flat


@pytest.mark.parametrize(
    ("cls", "payloads"),
    [
        (Plain, [b'{"number":1}', b'{"number":2,"words":["a"],"note":"b","both":"c"}']),
        (Plain, [b'{"number":1}', b'{"number":2,"colour":"red","size":{"w":1}}', b'{"number":3}']),
        (Nested, [b'{"item":{"x":1}}', b'{"item":{"x":1,"z":2}}']),
        (Either, [b'{"item":{"x":1}}', b'{"item":{"x":1,"y":2}}', b'{"item":{"x":1,"y":2,"z":3},"w":4}']),
        (Tree, [b'{"below":[{"below":[],"leaf":true}]}']),
        (Wrapped, [b'{"number":1,"colour":"red"}']),
    ],
    ids=str,
)
def test_many_are_read_as_one_by_one(cls: type[Event], payloads: list[bytes]):
    array = EventArray(cls)
    expected = [cls.model_validate_json(payload, extra="allow") for payload in payloads]
    # Twice: the first page may tell what is to be expected of the next.
    for _ in range(2):
        assert array.read(payloads) == expected
    assert [event.model_extra for event in array.read(payloads) or ()] == [event.model_extra for event in expected]


@pytest.mark.parametrize(
    "wrong", [b"", b"{}", b"[]", b'{"number":"x"}', b'{"number":1},{"number":2}', b'{"number":"x","colour":"red"}']
)
def test_where_one_cannot_be_read_none_is_and_later_ones_are(wrong: bytes):
    array = EventArray(Plain)
    assert array.read([b'{"number":1}', wrong]) is None
    assert array.read([b'{"number":1}']) == [Plain(number=1)]


class Color(Enum):
    RED = "red"

    @classmethod
    def _missing_(cls, value: object) -> Color:
        return cls.RED


class Pair(NamedTuple):
    x: int
    y: int = 0


class Keyed(TypedDict):
    x: int


@dataclass
class Point:
    x: int


@dataclass(slots=True)
class Slotted:
    x: int


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    x: int


def or_none(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


Numbers = TypeAliasType("Numbers", "list[int]")
T = TypeVar("T")

TYPES: dict[str, tuple[Any, list[str]]] = {
    "strict": (Annotated[int, Field(strict=True)], ["1", '"1"']),
    "constrained": (Annotated[int, Field(ge=3)], ["1", "5"]),
    "after": (Annotated[int, AfterValidator(lambda value: value + 1)], ["1"]),
    "before": (Annotated[int, BeforeValidator(len)], ['"abc"']),
    "wrap": (Annotated[int, WrapValidator(lambda value, handler: handler(value))], ["1"]),
    "plain": (Annotated[Any, PlainValidator(lambda value: value)], ['{"x":1}']),
    "enum": (Color, ['"red"', '"blue"']),
    "literal": (Literal["a", 1], ['"a"', "1", "2"]),
    "decimal": (Decimal, ["1", '"1.10"', "1.1"]),
    "any": (Any, ["1", '{"x":[1]}']),
    "json value": (JsonValue, ["1", '{"x":[null]}']),
    "json": (Json[dict[str, int]], [r'"{\"x\":1}"']),
    "default dict": (defaultdict[str, list[Short]], ['{"a":[{"x":1,"z":2}]}']),
    "deque": (deque[int], ["[1]"]),
    "named tuple": (Pair, ["[1,2]", '{"x":1}', '{"x":1,"z":2}']),
    "typed dict": (Keyed, ['{"x":1}', '{"x":1,"z":2}']),
    "dataclass": (Point, ['{"x":1}', '{"x":1,"z":2}']),
    "dataclass with slots": (Slotted, ['{"x":1}', '{"x":1,"z":2}']),
    "forbidding or not": (Forbidding | Long, ['{"x":1}', '{"x":1,"y":2}', '{"x":1,"z":2}']),
    "the first that fits": (
        Annotated[Short | Long, Field(union_mode="left_to_right")],
        ['{"x":1}', '{"x":1,"y":2}', '{"x":1,"z":2}'],
    ),
    "forgiving": (Annotated[Short | None, WrapValidator(or_none)], ['{"x":1}', '{"x":1,"z":2}']),
    "discriminated": (Annotated[Cat | Dog, Field(discriminator="kind")], ['{"kind":"dog","z":1}']),
    "union": (int | str | list[int] | dict[str, int], ["1", '"1"', "[1]", '{"x":1}']),
    "alias of a type": (Numbers, ["[1]"]),
    "bytes": (bytes, ['"YQ=="', '"?"']),
    "time": (timedelta, ["1", '"P1D"']),
    "url": (AnyUrl, ['"http://x"']),
}


class Aliased(Event, name="event-array.aliased"):
    value: int = Field(alias="amount")
    other: int = Field(0, validation_alias=AliasChoices("first", "second"))
    deep: int = Field(0, validation_alias=AliasPath("a", "b"))


class Made(Event, name="event-array.made"):
    value: int
    twice: int = Field(default_factory=lambda data: data["value"] * 2)
    _private: list[int] = PrivateAttr(default_factory=list)


class Shown(Event, name="event-array.shown"):
    value: int

    @computed_field
    def count(self) -> int:
        return len(self.model_extra)

    @model_serializer(mode="wrap")
    def written(self, handler: SerializerFunctionWrapHandler) -> Any:
        return handler(self)


class Allowing(Event, name="event-array.allowing"):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]
    value: int


class Ignoring(Event, name="event-array.ignoring"):
    model_config = ConfigDict(extra="ignore")
    value: int


class Derived(Ignoring, name="event-array.derived"):
    model_config = ConfigDict(extra="forbid")
    more: int = 0


class Boxed(Event, Generic[T], name="event-array.generic"):
    value: T


CLASSES: list[tuple[type[Event], list[str]]] = [
    *((create_model(name, __base__=Event, value=(kind, ...)), values) for name, (kind, values) in TYPES.items()),
    *((cls, ["1", '"x"']) for cls in (Aliased, Made, Shown, Allowing, Ignoring, Derived, Boxed[int])),
]


@pytest.mark.parametrize(("cls", "values"), CLASSES, ids=lambda each: getattr(each, "__name__", ""))
def test_whatever_a_class_has_in_it_two_are_read_as_one_after_the_other(cls: type[Event], values: list[str]):
    known = [f'"value":{value}' for value in values]
    unknown = ["", ',"z":{"x":1}', ',"amount":2', ',"first":1,"second":2', ',"a":{"b":3,"c":4},"deep":5']
    texts = ["{" + field + more + "}" for field, more in product(known, unknown)]
    payloads = [text.encode() for text in (*texts, "{}", '{"amount":1}', "null")]
    read_one = keeping_reader(cls)
    expected: dict[bytes, Event] = {}
    for payload in payloads:
        with suppress(ValidationError):
            expected[payload] = read_one(payload)
    for pair in product(payloads, repeat=2):
        array = EventArray(cls)
        for _ in range(2):
            events = array.read(pair)
            has_no_room = cls.__name__ == "dataclass with slots" and any(b'"z":2' in payload for payload in pair)
            assert (events is None) == (has_no_room or not expected.keys() >= set(pair))
            for event, payload in zip(events or (), pair, strict=False):
                assert event == expected[payload]
                assert event.model_extra == expected[payload].model_extra
                assert event.model_fields_set == expected[payload].model_fields_set
                assert repr(event) == repr(expected[payload])


def test_an_event_without_unknown_fields_has_an_empty_dictionary_of_them_however_it_was_made():
    [read] = EventArray(Plain).read([b'{"number":1}']) or ()
    assert (
        Plain(number=1).model_extra == read.model_extra == Plain.model_validate_json(b'{"number":1}').model_extra == {}
    )

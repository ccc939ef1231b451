"""Many events in one call are read as each would be by itself, with the fields that their class does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from eventstore import Event
from eventstore.event_array import EventArray
from eventstore.json_form import survey_of


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


def test_an_event_without_unknown_fields_has_an_empty_dictionary_of_them_however_it_was_made():
    [read] = EventArray(Plain).read([b'{"number":1}']) or ()
    assert (
        Plain(number=1).model_extra == read.model_extra == Plain.model_validate_json(b'{"number":1}').model_extra == {}
    )

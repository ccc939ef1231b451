"""What is written as JSON and read again is what it was, or is refused before anything is stored."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntFlag
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar
from uuid import UUID

import pytest
from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    SecretStr,
    TypeAdapter,
    computed_field,
    field_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from eventstore import DefinitionError, Event, EventEncodeError, EventStore
from eventstore.codec import decode_payload, encode_event
from eventstore.json_form import form_of, form_of_model

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Pair(Enum):
    ONE = (1, 2)


class One(Enum):
    NUMBER = Decimal(1)
    TEXT = "1"


class Rights(IntFlag):
    READ = 1
    WRITE = 2


class Item(BaseModel):
    price: float | None = None
    prices: dict[str, float] = {}


class Book(Item):
    pages: int = 0


@dataclass
class Point:
    x: float


class Measured(TypedDict):
    x: int


class Sampled(TypedDict):
    x: int
    sample: Annotated[int, PlainSerializer(lambda value: value + 1), BeforeValidator(lambda value: value - 1)]
    note: NotRequired[int]


class Taken(Event, name="json-form.taken"):
    """What the first choice has stands in the second one, too."""

    of: Measured | Sampled
    more: list[Measured | Sampled | int]


class Weighed(Event, name="json-form.weighed"):
    of: Measured | Sampled


class Named(Event, name="json-form.named"):
    """Its fields are called as parts of pydantic's schemas are."""

    members: list[Item]
    type: int = 0
    ref: int = 0


class Place(TypedDict):
    y: float


class Prices(RootModel[list[float]]):
    pass


class Tree(BaseModel):
    weight: float = 0
    kids: list[Tree] = []


class Plain(Event, name="tests.form-plain"):
    number: int
    text: str = ""
    ratio: float = 0
    is_so: bool = False
    at: datetime | None = None
    day: date | None = None
    id: UUID | None = None
    colour: Colour = Colour.RED
    kind: Literal["a", "b"] = "a"
    amount: Decimal = Decimal(0)
    names: tuple[str, ...] = ()
    counts: dict[str, int] = Field(default={})


class Aliased(Event, name="tests.form-aliased"):
    amount: int = Field(alias="amt")


class Camel(Event, name="tests.form-camel"):
    model_config = ConfigDict(alias_generator=AliasGenerator(alias=to_camel), serialize_by_alias=True)
    unit_price: int


class Part(BaseModel):
    part_name: str = Field(alias="partName")


class WithParts(Event, name="tests.form-parts"):
    parts: list[Part]


class Framed(BaseModel):
    item: Item


class Chosen(Event, name="json-form.chosen"):
    """A union of what is told apart by its class."""

    of: Framed | int
    place: Place


class Sold(Event, name="tests.form-sold"):
    item: Item


class Nested(Event, name="tests.form-nested"):
    items: list[Item] = Field(default=[])
    point: Point | None = None
    place: Place | None = None
    prices: Prices = Prices([])
    tree: Tree | None = None


class Loose(Event, name="tests.form-loose"):
    value: Any = None


class Either(Event, name="tests.form-either"):
    value: float | str


class Doubled(Event, name="tests.form-doubled"):
    number: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.number


class Parsed(Event, name="tests.form-parsed"):
    value: Json[list[int]]


class OfPairs(Event, name="tests.form-pairs"):
    pair: Pair


class Granted(Event, name="tests.form-granted"):
    rights: Rights


class Strict(Event, name="tests.form-strict"):
    value: float = Field(strict=True)


class Short(Event, name="tests.form-short"):
    text: str = Field(default="", min_length=1)


class Shown(Event, name="tests.form-shown"):
    secret: SecretStr

    @field_serializer("secret", when_used="json")
    def show(self, secret: SecretStr) -> str:
        return secret.get_secret_value()


class Own(Event, name="tests.form-own"):
    model_config = ConfigDict(ser_json_inf_nan="null", ser_json_bytes="hex")
    value: float | None = None
    data: bytes = b""


class Counting(Event, name="tests.form-counting"):
    number: int
    _seen: int = PrivateAttr(default=0)

    def see(self) -> Counting:
        self._seen += 1
        return self


class Painted(Event, name="tests.form-painted"):
    colour: Colour
    value: Any = None


class Searched(Event, name="tests.form-searched"):
    pattern: re.Pattern[str]


class OfOnes(Event, name="tests.form-ones"):
    one: One


async def stored(store: EventStore, event: Event) -> Event:
    await store.append("x", [event])
    [recorded] = [each async for each in store.read("x", backwards=True, limit=1)]
    return store.decode(recorded)


INFINITE = Item(price=math.inf, prices={"a": -math.inf})


@pytest.mark.parametrize(
    "event",
    [
        Plain(number=10**30, ratio=math.inf, at=datetime(2026, 1, 1, tzinfo=UTC), amount=Decimal("0.10")),
        Aliased(amt=3),  # type: ignore[call-arg]
        Camel(unitPrice=3),  # type: ignore[call-arg]
        WithParts(parts=[Part(partName="a")]),  # type: ignore[call-arg]
        Sold(item=INFINITE),
        Nested(items=[INFINITE], point=Point(math.inf), place={"y": -math.inf}, prices=Prices([math.inf])),
        Nested(tree=Tree(kids=[Tree(weight=math.inf)])),
        Loose(value={"a": [1, 10**30, None, "x", 1.5]}),
        Either(value=1.5),
        Either(value="1.5"),
        Doubled(number=2),
        Parsed(value="[1,2]"),  # type: ignore[arg-type]
        Granted(rights=Rights.READ | Rights.WRITE),
        Strict(value=1.5),
        Short(text="x"),
        Shown(secret=SecretStr("x")),
        Own(value=math.inf),
        Counting(number=1),
        Painted(colour=Colour.BLUE, value=1),
        OfOnes(one=One.TEXT),
        Searched(pattern=re.compile("a+")),
        Named(members=[Item(price=math.inf)]),
        Weighed(of={"x": 1, "sample": 2}),
        Taken(of={"x": 1, "sample": 2}, more=[{"x": 2, "sample": 2}, {"x": 3}, 4]),
    ],
    ids=repr,
)
async def test_an_event_comes_back_as_it_was(event: Event):
    async with EventStore.open("memory://") as store:
        again = await stored(store, event)
    assert again == event
    assert not again.model_extra


@pytest.mark.parametrize(
    ("cls", "payload"),
    [
        (Plain, '{"number":1,"size":{"a":[1,2.5,null]}}'),
        (Aliased, '{"amount":1,"size":2}'),
        (Sold, '{"item":{"price":"Infinity","size":2},"size":{"b":3}}'),
        (Sold, '{"item":{"size":2}}'),
        (Nested, '{"place":{"y":1.0,"z":2.0}}'),
        (Nested, '{"tree":{"kids":[{"kids":[{"leaves":4}]}],"leaves":5}}'),
        (Loose, '{"value":{"a":1},"size":2}'),
        (Named, '{"members":[{"size":1}]}'),
        (Chosen, '{"of":{"item":{"size":2}},"place":{"y":1.0,"z":2.0}}'),
    ],
)
async def test_what_its_class_does_not_know_of_an_event_is_stored_again(cls: type[Event], payload: str):
    # As `read` gives it: newer code has written fields that this one does not have.
    event = decode_payload(cls, payload, stream_id="x", version=1)
    async with EventStore.open("memory://") as store:
        again = await stored(store, event)
        [recorded] = [each async for each in store.read("x")]
    assert again == event
    assert again.model_extra == event.model_extra
    unknown = re.compile(rb'"(?:size|z|leaves)":')
    assert unknown.findall(recorded.payload) == unknown.findall(payload.encode())


async def test_what_a_typed_dictionary_of_a_union_does_not_know_is_refused_if_it_would_not_come_back():
    event = decode_payload(Weighed, '{"of":{"x":1,"sample":2,"size":2}}', stream_id="x", version=1)
    async with EventStore.open("memory://") as store:
        with pytest.warns(UserWarning, match="Unexpected field"), pytest.raises(EventEncodeError):
            await store.append("x", [event])
        assert await store.version("x") == 0


async def test_not_a_number_comes_back_from_within_a_nested_model():
    async with EventStore.open("memory://") as store:
        again = await stored(store, Sold(item=Item(price=math.nan)))
    assert isinstance(again, Sold)
    assert again.item.price is not None
    assert math.isnan(again.item.price)


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (Sold(item=Book(pages=3)), "item, a Book, would be read as a Item"),
        (Loose(value=(1, 2)), "value, a tuple, would be read as a list"),
        (Loose(value=math.inf), "value, a float, would be read as a str"),
        (Loose(value={"a": [INFINITE]}), "would be read as a dict"),
        (Either(value=math.inf), "value, a float, would be read as a str"),
        (OfPairs(pair=Pair.ONE), "pair could not be read again"),
        (Strict(value=math.inf), "value could not be read again"),
        (Short(), "text could not be read again"),
        (Own(data=b"ab"), "data would be read as another bytes"),
        (Counting(number=1).see(), "_seen would be read as another int"),
        (Painted(colour=Colour.RED, value=Colour.BLUE), "value, a Colour, would be read as a str"),
        (OfOnes(one=One.NUMBER), "one would be read as another One"),
    ],
    ids=repr,
)
async def test_an_event_that_would_be_read_as_another_is_refused_and_not_stored(event: Event, found: str):
    async with EventStore.open("memory://") as store:
        with pytest.raises(EventEncodeError, match=r"would not come back .* nothing was stored") as raised:
            await store.append("x", [event])
        assert found in str(raised.value)
        assert await store.version("x") == 0


class Limb(BaseModel):
    name: str
    _body: Any = PrivateAttr(None)


class Body(Event, name="tests.form-body"):
    limbs: list[Limb]
    label: Any = None

    @model_validator(mode="after")
    def _bind(self) -> Body:
        for limb in self.limbs:
            limb._body = self
        return self


async def test_what_leads_back_to_where_it_belongs_comes_back_as_it_was():
    async with EventStore.open("memory://") as store:
        again = await stored(store, Body(limbs=[Limb(name="arm"), Limb(name="leg")]))
        assert isinstance(again, Body)
        assert [limb.name for limb in again.limbs] == ["arm", "leg"]
        assert all(limb._body is again for limb in again.limbs)


async def test_behind_what_leads_back_a_difference_is_found():
    with pytest.raises(EventEncodeError, match="label, a tuple, would be read as a list"):
        encode_event(Body(limbs=[Limb(name="arm")], label=(1, 2)))


def test_the_refusal_does_not_tell_the_value():
    class Person(BaseModel):
        name: str

    class Employee(Person):
        salary: str = "4111"

    class Hired(Event, name="tests.form-hired"):
        who: Person

    with pytest.raises(EventEncodeError) as raised:
        encode_event(Hired(who=Employee(name="Jane")))
    assert "Jane" not in str(raised.value)
    assert "4111" not in str(raised.value)


async def test_what_was_written_by_its_alias_is_read_as_well():
    async with EventStore.open("memory://") as store:
        await store.append("x", [Aliased(amt=3)])  # type: ignore[call-arg]
        [recorded] = [each async for each in store.read("x")]
        assert recorded.json() == {"amount": 3}
        assert store.decode(recorded._replace(payload=b'{"amt":4}')) == Aliased(amt=4)  # type: ignore[call-arg]


async def test_fields_are_stored_by_their_names_and_integers_with_all_their_digits():
    async with EventStore.open("memory://") as store:
        await store.append("x", [Camel(unitPrice=3), Plain(number=10**21 + 1)])  # type: ignore[call-arg]
        camel, plain = [each.json() async for each in store.read("x")]
    assert camel == {"unit_price": 3}
    assert plain["number"] == 10**21 + 1


def test_an_excluded_field_is_refused_when_the_class_is_defined():
    with pytest.raises(DefinitionError, match=r"Hidden\.number would not come back .* excluded"):

        class Hidden(Event, name="tests.form-hidden"):
            number: int = Field(exclude=True)


def test_an_excluded_field_of_a_nested_model_is_refused_too():
    class Inner(BaseModel):
        number: int = Field(default=0, exclude=True)

        @model_validator(mode="after")
        def checked(self) -> Inner:
            return self

    with pytest.raises(DefinitionError, match=r"Outer\.inners\.number would not come back"):

        class Outer(Event, name="tests.form-outer"):
            inners: dict[str, list[Inner]]


def test_a_secret_is_refused_when_the_class_is_defined():
    with pytest.raises(DefinitionError, match=r"Login\.password would not come back .* asterisks"):

        class Login(Event, name="tests.form-login"):
            password: SecretStr | None = None


def test_a_class_that_could_not_be_looked_at_when_it_was_defined_is_refused_when_it_is_encoded():
    class Early(Event, name="tests.form-early"):
        late: list[Late]

    class Late(BaseModel):
        number: int = Field(default=0, exclude=True)

    Early.model_rebuild(_types_namespace={"Late": Late})
    with pytest.raises(EventEncodeError, match="nothing was stored"):
        encode_event(Early(late=[Late()]))


def test_a_subclass_that_is_defined_later_makes_the_events_be_looked_at():
    class Animal(BaseModel):
        legs: int = 0

    class Seen(Event, name="tests.form-seen"):
        animal: Animal

    encode_event(Seen(animal=Animal(legs=4)))

    class Bird(Animal):
        wings: int = 2

    encode_event(Seen(animal=Animal(legs=4)))
    with pytest.raises(EventEncodeError, match="animal, a .*Bird, would be read as"):
        encode_event(Seen(animal=Bird()))


def test_plain_events_need_no_second_look():
    assert form_of_model(Plain).is_always_exact


@pytest.mark.parametrize("annotation", [int, float | None, list[float], dict[str, Item], Point, Place, Prices, Tree])
def test_infinities_are_texts_in_every_type(annotation: Any):
    form = form_of(TypeAdapter(annotation))
    value: dict[Any, Any] = {
        list[float]: [math.inf],
        dict[str, Item]: {"a": INFINITE},
        Point: Point(math.inf),
        Place: {"y": math.inf},
        Prices: Prices([math.inf]),
        Tree: Tree(kids=[Tree(weight=math.inf)]),
        int: 10**40,
    }
    one = next((each for kind, each in value.items() if kind == annotation), math.inf)
    written = form.write(one)
    assert b"null" not in written
    assert form.difference(one, written) is None


def test_a_generic_event_and_its_constraints_are_written_as_any_other():
    class Changed(Event, Generic[T], name="tests.form-changed"):
        value: T

    class Limited(Changed[Annotated[int, Field(gt=0)]], name="tests.form-limited"):
        pass

    assert encode_event(Limited(value=3)).payload == b'{"value":3}'

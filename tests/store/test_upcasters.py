"""Upcasters: what older code has stored is read as today's classes have it, or not at all, and then it says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from eventstore import (
    DefinitionError,
    Event,
    EventDecodeError,
    EventStore,
    EventTooNew,
    UnknownEventType,
    UpcasterError,
    UpcasterMissing,
    stored_names,
    upcaster,
)
from eventstore.backend import Expected, StreamWrite
from eventstore.codec import encoded_event, new_event_id
from eventstore.events import RecordedEvent
from eventstore.upcasters import Step, Stored, Upcasters


class Paid(Event, name="upcast.paid", version=3, aliases=("upcast.payed",)):
    cents: int
    currency: str


class Withdrawn(Event, name="upcast.withdrawn"):
    cents: int


class Deposited(Event, name="upcast.deposited", version=2):
    cents: int
    to: str


class Current(Event, name="upcast.current"):
    text: str
    at: bytes = b""


@upcaster("upcast.payed", from_version=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    data["cents"] = data.pop("euros") * 100
    return data


@upcaster("upcast.paid", from_version=2)
def with_currency(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "currency": "EUR"}


@upcaster("upcast.moved", from_version=4, into={"upcast.withdrawn": 1, "upcast.deposited": 1})
def in_two(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("upcast.withdrawn", data), ("upcast.deposited", data)]


@upcaster("upcast.deposited", from_version=1)
def to_whom(data: dict[str, Any]) -> dict[str, Any]:
    data["to"] = "nobody"
    return data


@upcaster("upcast.broken", from_version=1, into={"upcast.current": 1})
def breaks(data: dict[str, Any]) -> Any:
    if "raises" in data:
        raise LookupError("not there")
    return data["returns"]


class Strange(Event, name="upcast.strange", version=2):
    pass


@upcaster("upcast.strange", from_version=1)
def no_json(data: dict[str, Any]) -> Any:
    return {"x": object()} if data else None


async def stored(type: str, version: int, payload: bytes) -> RecordedEvent:
    """An event as other code has stored it, and as a store reads it."""
    async with EventStore.open("memory://") as store:
        event_id = new_event_id()
        event = encoded_event(event_id, type, version, payload, None, event_id)
        await store._backend.append([[StreamWrite("a", Expected.ANY, [event])]])
        (recorded,) = [recorded async for recorded in store.read("a")]
        return recorded


async def read(type: str, version: int, payload: bytes) -> Sequence[Event]:
    async with EventStore.open("memory://") as store:
        return store.decode_parts(await stored(type, version, payload))


async def test_a_chain_leads_from_the_oldest_version_under_a_former_name_to_the_class():
    assert await read("upcast.payed", 1, b'{"euros":3}') == [Paid(cents=300, currency="EUR")]
    assert await read("upcast.paid", 1, b'{"euros":3}') == [Paid(cents=300, currency="EUR")]
    assert await read("upcast.payed", 2, b'{"cents":3}') == [Paid(cents=3, currency="EUR")]
    assert await read("upcast.payed", 3, b'{"cents":3,"currency":"CHF"}') == (Paid(cents=3, currency="CHF"),)


async def test_one_event_becomes_several_each_through_the_rest_of_its_own_chain():
    assert await read("upcast.moved", 4, b'{"cents":5}') == [Withdrawn(cents=5), Deposited(cents=5, to="nobody")]


async def test_what_one_part_changes_does_not_reach_the_other():
    withdrawn, _ = await read("upcast.moved", 4, b'{"cents":5}')
    assert withdrawn.model_extra == {}


async def test_an_event_that_became_several_is_not_decoded_as_one():
    recorded = await stored("upcast.moved", 4, b'{"cents":5}')
    async with EventStore.open("memory://") as store:
        with pytest.raises(EventDecodeError, match=r"it has become 2 events .* decode_parts"):
            store.decode(recorded)


async def test_fields_that_nobody_knows_go_through_the_chain():
    (event,) = await read("upcast.paid", 1, b'{"euros":3,"note":"kept"}')
    assert event.model_extra == {"note": "kept"}


async def test_numbers_beyond_64_bits_go_through_the_chain_digit_for_digit():
    (event,) = await read("upcast.paid", 2, b'{"cents":123456789012345678901234567890}')
    assert event == Paid(cents=123456789012345678901234567890, currency="EUR")


@pytest.mark.parametrize(
    ("type", "version", "payload", "error", "message"),
    [
        ("upcast.paid", 4, b"{}", EventTooNew, "written by newer code; run that version"),
        ("upcast.deposited", 9, b"{}", EventTooNew, r"schema version 9 and the class has 2"),
        ("upcast.moved", 3, b"{}", UnknownEventType, "no event class is known for 'upcast.moved'"),
        ("upcast.never", 1, b"{}", UnknownEventType, "no event class is known for 'upcast.never'"),
        ("upcast.paid", 1, b'{"pounds":3}', EventDecodeError, r"in_cents from version 1 failed: KeyError"),
        ("upcast.paid", 2, b'{"cents":"many"}', EventDecodeError, "cents: Input should be a valid integer"),
        ("upcast.paid", 2, b"[1]", EventDecodeError, "a payload is a dict, not list"),
        (
            "upcast.broken",
            1,
            b'{"raises":1}',
            EventDecodeError,
            "breaks from version 1 failed: LookupError: not there",
        ),
        ("upcast.broken", 1, b'{"returns":[]}', EventDecodeError, "it returned no event"),
        (
            "upcast.broken",
            1,
            b'{"returns":[["upcast.paid",{}]]}',
            EventDecodeError,
            "'upcast.paid', which is not in `into`",
        ),
        ("upcast.broken", 1, b'{"returns":[["upcast.current",1]]}', EventDecodeError, "a payload is a dict, not int"),
        ("upcast.strange", 1, b"{}", EventDecodeError, "a payload is a dict, not NoneType"),
        ("upcast.strange", 1, b'{"a":1}', EventDecodeError, "is no JSON object: Object of type object"),
    ],
)
async def test_what_cannot_be_read_is_an_error_that_names_it(
    type: str, version: int, payload: bytes, error: type[Exception], message: str
):
    recorded = await stored(type, version, payload)
    async with EventStore.open("memory://") as store:
        with pytest.raises(error, match=message) as raised:
            store.decode_parts(recorded)
        assert (raised.value.stream_id, raised.value.version) == ("a", 1)  # type: ignore[attr-defined]


async def test_a_version_without_an_upcaster_names_the_one_to_write():
    class Lonely(Event, name="upcast.lonely", version=2):
        pass

    with pytest.raises(UpcasterMissing, match=r'@upcaster\("upcast.lonely", from_version=1\)') as raised:
        await read("upcast.lonely", 1, b"{}")
    assert (raised.value.found, raised.value.known) == (1, 2)


def test_the_stored_names_of_a_class_are_all_that_its_events_come_from():
    assert stored_names(Deposited) == ("upcast.deposited", "upcast.moved")
    assert stored_names(Paid, Withdrawn) == ("upcast.paid", "upcast.payed", "upcast.withdrawn", "upcast.moved")


def test_two_upcasters_from_one_version_are_an_error_when_the_second_is_defined():
    with pytest.raises(UpcasterError, match=r"'upcast.paid' version 2 has an upcaster already: .*with_currency"):

        @upcaster("upcast.paid", from_version=2)
        def other(data: dict[str, Any]) -> dict[str, Any]:
            return data


@pytest.mark.parametrize("version", [0, "1", None])
def test_a_schema_version_is_a_number_above_zero(version: Any):
    with pytest.raises(UpcasterError, match=f"schema versions start at 1, not {version!r}"):
        upcaster("upcast.paid", from_version=version)(lambda data: data)
    with pytest.raises(DefinitionError, match=f"schema version is 1 to 2147483647, not {version!r}"):
        type("Versioned", (Event,), {"__module__": __name__}, name="upcast.versioned", version=version)


def test_an_upcaster_that_is_loaded_again_takes_the_place_of_itself():
    def define() -> Callable[..., Any]:
        @upcaster("upcast.reloaded", from_version=1, into={"upcast.current": 1})
        def again(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
            return [("upcast.current", data)]

        return again

    assert define() is not define()


@pytest.mark.parametrize("aliases", ["upcast.text", ("upcast.paid",), ("",), ("upcast.payed",)])
def test_an_alias_that_names_nothing_of_its_own_is_an_error_when_the_class_is_defined(aliases: Any):
    with pytest.raises(DefinitionError):
        type("Renamed", (Event,), {"__module__": __name__}, name="upcast.renamed", aliases=aliases)


def checked(*steps: tuple[str, int, Mapping[str, int] | None]) -> None:
    upcasters = Upcasters()
    for type_, version, into in steps:
        upcasters.add(Step(Stored(type_, version), into, with_currency))
    upcasters.check()


def test_chains_that_end_at_classes_are_sound():
    checked(("upcast.paid", 1, None), ("upcast.payed", 2, None))
    checked(("upcast.paid", 2, None))
    checked(("x", 1, {"upcast.paid": 1, "upcast.current": 1}), ("upcast.paid", 1, None), ("upcast.paid", 2, None))
    checked(("x", 1, {"y": 1}), ("y", 1, {"upcast.current": 1}), ("z", 1, {"y": 1}))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [("upcast.paid", 1, None)],
            "leads to 'upcast.paid' version 2, and no upcaster goes on from there to version 3",
        ),
        ([("x", 1, None)], "leads to 'x' version 2, and neither an upcaster nor a class is there"),
        ([("x", 1, {"upcast.current": 1, "y": 1})], "leads to 'y' version 1, and neither"),
        ([("x", 1, {"upcast.current": 2})], "leads to 'upcast.current' version 2, but Current has version 1"),
        ([("upcast.current", 1, None)], "'upcast.current' version 1 needs no upcaster, for Current has version 1"),
        ([("upcast.payed", 3, {"upcast.current": 1})], "'upcast.payed' version 3 needs no upcaster"),
        ([("x", 1, {"y": 1}), ("y", 1, {"x": 1})], "in a circle: 'x' version 1 -> 'y' version 1 -> 'x' version 1"),
        ([("x", 1, {"x": 1})], "in a circle: 'x' version 1 -> 'x' version 1"),
        ([("w", 1, {"x": 1}), ("x", 1, {"x": 1})], "in a circle: 'x' version 1 -> 'x' version 1"),
        ([("upcast.paid", 2, None), ("upcast.payed", 2, None)], "an upcaster already under another name"),
        ([("upcast.paid", 0, None)], "schema versions start at 1, not 0"),
        ([("x", 1, {})], "an event becomes at least one"),
    ],
)
def test_chains_that_contradict_themselves_or_lead_nowhere_are_errors(steps: list[Any], message: str):
    with pytest.raises(UpcasterError, match=message):
        checked(*steps)


BROKEN = """
import asyncio
from eventstore import Event, EventStore, UpcasterError, upcaster

class Paid(Event, name="paid", version=3):
    cents: int

@upcaster("paid", from_version=1)
def in_cents(data):
    return data

async def main():
    try:
        async with EventStore.open("memory://"):
            print("open")
    except UpcasterError as error:
        print(error)

asyncio.run(main())
"""


def test_no_store_is_opened_with_upcasters_that_lead_nowhere():
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout.startswith("__main__.in_cents: it leads to 'paid' version 2, and no upcaster goes on from there")

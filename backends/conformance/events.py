"""The events of the contract's tests, and short ways to make, write and collect them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel

from eventstore.backend import CommandOutcome, EncodedEvent, Expected, StreamWrite
from eventstore.codec import encoded_event, new_event_id
from eventstore.events import Event, Metadata, NewEvent, RecordedEvent

_T = TypeVar("_T")


class Happened(Event, name="conformance.happened"):
    number: int = 0


class Noted(Event, name="conformance.noted"):
    text: str


class Listed(Event, name="conformance.listed"):
    items: list[str]


class Charged(Event, name="conformance.charged", tags=("money", "charged")):
    """Tagged by its class, and each event by what it says."""

    number: int
    customer: str

    def event_tags(self) -> tuple[str, ...]:
        return (f"customer-{self.customer}", "money")


class Colour(Enum):
    RED = "red"


class Place(BaseModel):
    street: str
    number: int | None = None


class Described(Event, name="conformance.described", version=3):
    """One field of every sort that JSON has no word for."""

    amount: Decimal
    at: datetime
    id: UUID
    colour: Colour
    place: Place
    pair: tuple[int, str]
    data: bytes
    share: float


class Unwritable(Event, name="conformance.unwritable"):
    value: Any


def happened(*numbers: int) -> list[Happened]:
    return [Happened(number=number) for number in numbers]


def tagged(number: int, *tags: str) -> NewEvent:
    return NewEvent(Happened(number=number), metadata=Metadata(tags=tags))


def identified(number: int, event_id: UUID) -> NewEvent:
    return NewEvent(Happened(number=number), event_id=event_id)


def write(
    stream_id: str,
    *payloads: bytes,
    expected: int = Expected.ANY,
    epoch: int | None = None,
    ids: Iterable[bytes] = (),
    commands: Sequence[CommandOutcome] = (),
) -> StreamWrite:
    """A write of one event per payload, as the backend gets it; with the ids given, or new ones."""
    events: list[EncodedEvent] = []
    given = iter(ids)
    for payload in payloads:
        event_id = next(given, None) or new_event_id()
        batch_id = events[0].event_id if events else event_id
        events.append(encoded_event(event_id, Happened.__event_type__, 1, payload, None, batch_id))
    return StreamWrite(stream_id, expected, events, epoch, commands)


def outcome(
    command_id: str = "c", *, payload: bytes = b'"done"', is_rejection: bool = False, issued_at: int = 0
) -> CommandOutcome:
    """What one more execution of a command came to."""
    return CommandOutcome(command_id, bytes(range(16)), new_event_id(), is_rejection, payload, issued_at)


async def collect(items: AsyncIterable[_T]) -> list[_T]:
    return [item async for item in items]


async def versions(records: AsyncIterable[RecordedEvent]) -> list[int]:
    return [recorded.version async for recorded in records]


async def numbers(records: AsyncIterable[RecordedEvent]) -> list[int]:
    """The `number` of each `Happened`."""
    return [recorded.json()["number"] async for recorded in records]


@asynccontextmanager
async def closing(items: AsyncIterator[_T]) -> AsyncGenerator[AsyncIterator[_T], None]:
    """An endless subscription, closed at the end of the block and not by the garbage collector."""
    try:
        yield items
    finally:
        await cast("Any", items).aclose()

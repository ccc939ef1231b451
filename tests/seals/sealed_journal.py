"""A sealed journal to be tampered with: every field in use, holes, a sealed truncation, and an unsealed tail."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from backends.conformance.events import write
from backends.conformance.fixtures import backend_of
from eventstore import EventStore, JournalCorrupt, Metadata
from eventstore.backend import ReplicaFields, StreamWrite
from eventstore.codec import checksum_of, encode_metadata
from eventstore.events import RecordedEvent
from eventstore.evidence.sealing import Sealer
from eventstore.evidence.seals import Seal
from eventstore.evidence.signing import SigningKey, generate, private_key

STREAMS = ("Account-a", "Account-b", "Order-1", "Order-é'2", "x")
EVERY = 12


class Sealed(NamedTuple):
    """A journal and what was sealed of it."""

    url: str
    key: SigningKey
    public: str
    anchor: Seal
    last: int


def new_key(folder: Path, name: str = "seal.key") -> SigningKey:
    generate(folder / name)
    return private_key(folder / name)


def full_write(stream_id: str, number: int) -> StreamWrite:
    """One to three events of one batch, with metadata, an epoch and a replica's fields now and then."""
    payloads = [b'{"number":%d}' % (10 * number + index) for index in range(1 + number % 3)]
    made = write(stream_id, *payloads)
    events = []
    for index, event in enumerate(made.events):
        if (number + index) % 2:
            notes = encode_metadata(Metadata(user=f"user {number}", tags=("a", "é"), values={"share": 0.1}))
            checksum = checksum_of(event.type, event.schema_version, event.payload, notes)
            event = event._replace(metadata=notes, checksum=checksum)
        if number % 4 == 0:
            clock = b'{"clock":{"eu":%d},"time":%d}' % (number + 1, number + 1)
            event = event._replace(replica=ReplicaFields("eu", number + 1, clock, concurrent=number % 8 == 0))
        events.append(event)
    return made._replace(events=events, epoch=1 if number % 5 == 0 else None)


async def fill(store: EventStore, *, first: int = 0, count: int = 25) -> None:
    backend = backend_of(store)
    for number in range(first, first + count):
        await backend.append([[full_write(STREAMS[number % len(STREAMS)], number)]])


async def seal_all(sealer: Sealer) -> Seal:
    while await sealer.seal() is not None:
        pass
    newest = await sealer.newest()
    assert newest is not None
    return newest


async def build(url: str, folder: Path) -> Sealed:
    """About 50 events in seals of 12; some positions are holes from before, some events were truncated since."""
    key = new_key(folder)
    async with EventStore.open(url) as store:
        await fill(store, count=10)
        await store.truncate("Account-a", 1, reason="before any seal")
        sealer = Sealer(store, key, every=EVERY)
        await seal_all(sealer)
        await fill(store, first=10)
        await seal_all(sealer)
        await store.truncate("Account-b", 3, reason="sealed truncation")
        await store.truncate("x", 2, reason="another one")
        anchor = await seal_all(sealer)
        await fill(store, first=35, count=3)
    return Sealed(url, key, key.public, anchor, anchor.statement.last)


async def everything(store: EventStore) -> dict[int, RecordedEvent | None]:
    """Every event by its position; None for one that cannot be read."""
    found: dict[int, RecordedEvent | None] = {}

    def damaged(error: JournalCorrupt) -> None:
        assert error.position is not None, error
        found[error.position] = None

    async for recorded in store.read_all(on_damage=damaged):
        found[recorded.position] = recorded
    return found

"""Inclusion: a proof that one event was sealed, which is checked without the store."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from eventstore.backend import StoredSeal
from eventstore.codec import decode_metadata
from eventstore.errors import ProofInvalid
from eventstore.events import RecordedEvent
from eventstore.evidence.leaves import leaf_of, unpack_leaves
from eventstore.evidence.merkle import MerkleTree, inclusion_path, root_of_path
from eventstore.evidence.seals import Seal, export, imported, parse_stored
from eventstore.store import EventStore

PROOF = "eventstore proof 1"
"""The form of a proof."""


class Included(NamedTuple):
    """What a proof shows: this event was in the log when this seal was made."""

    recorded: RecordedEvent
    seal: Seal


async def prove(store: EventStore, position: int) -> bytes:
    """A proof about the event at a position, as JSON: the event, the seal that covers it, and the hashes between.

    Raises `ProofInvalid` where no event stands there, none is sealed, or another one was sealed.
    """
    recorded = await _event(store, position)
    stored = await _covering(store, position)
    try:
        seal = parse_stored(stored)
        leaves = unpack_leaves(stored.leaves)
        hashes = [leaf.hash for leaf in leaves]
        found = leaf_of(recorded)
    except ValueError as error:
        raise ProofInvalid(f"seal {stored.number}, which covers position {position}, is damaged: {error}") from error
    if MerkleTree(hashes).root().hex() != seal.statement.root:
        raise ProofInvalid(f"the list of leaves of seal {stored.number} was changed: nothing can be proven by it")
    if found not in leaves:
        raise ProofInvalid(
            f"the event at position {position} is not the one that seal {stored.number} covers: run eventstore audit "
            "verify"
        )
    index = leaves.index(found)
    path = [each.hex() for each in inclusion_path(hashes, index)]
    return export(seal, PROOF, event=_described(recorded), index=index, path=path)


def check(proof: bytes, public: str) -> Included:
    """What a proof shows, given the public key that signed the seal. Raises `ProofInvalid`, and `ExtraMissing`."""
    seal, record = imported(proof, PROOF)
    if seal.statement.key != public:
        raise ProofInvalid(
            f"its seal, number {seal.statement.number}, is signed with key {seal.statement.key}, not with {public}"
        )
    try:
        recorded = _recorded(record["event"])
        path = [bytes.fromhex(each) for each in record["path"]]
        leaf = leaf_of(recorded)
        root = root_of_path(leaf.hash, record["index"], seal.statement.count, path)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ProofInvalid(f"it cannot be read as a proof: {error}") from error
    if root.hex() != seal.statement.root:
        raise ProofInvalid(
            f"the event is not one that seal {seal.statement.number} covers: it, or the proof, was changed"
        )
    return Included(recorded, seal)


async def _event(store: EventStore, position: int) -> RecordedEvent:
    page = await store.read_page(after=position - 1, limit=1)
    if not page.events or page.events[0].position != position:
        raise ProofInvalid(f"there is no event at position {position}")
    return page.events[0]


async def _covering(store: EventStore, position: int) -> StoredSeal:
    """The seal that covers a position, found in as many steps as the number of seals has bits."""
    newest = await store.newest_seal()
    low, high = 1, 0 if newest is None else newest.number
    while low <= high:
        middle = (low + high) // 2
        found = await store.seal_after(middle - 1)
        if found is None:
            break
        try:
            statement = parse_stored(found).statement
        except ValueError as error:
            raise ProofInvalid(f"seal {found.number} cannot be read: {error}") from error
        if statement.last < position:
            low = found.number + 1
        elif statement.first > position:
            high = middle - 1
        else:
            return found
    raise ProofInvalid(f"position {position} is not sealed yet: run eventstore audit seal first")


def _described(recorded: RecordedEvent) -> dict[str, Any]:
    try:
        texts = {
            "payload": recorded.payload.decode(),
            "metadata": None if recorded.metadata_bytes is None else recorded.metadata_bytes.decode(),
            "clock": None if recorded.clock is None else recorded.clock.decode(),
        }
    except UnicodeDecodeError as error:
        raise ProofInvalid(f"the event at position {recorded.position} holds bytes that are no text") from error
    return {
        "position": recorded.position,
        "tenant": recorded.tenant,
        "stream_id": recorded.stream_id,
        "version": recorded.version,
        "type": recorded.type,
        "schema_version": recorded.schema_version,
        "event_id": str(recorded.event_id),
        "batch_id": str(recorded.batch_id),
        "epoch": recorded.epoch,
        "recorded_at": recorded.recorded_at.isoformat(timespec="microseconds"),
        "checksum": recorded.checksum,
        "origin": recorded.origin,
        "origin_sequence": recorded.origin_sequence,
        "concurrent": recorded.concurrent,
        **texts,
    }


def _recorded(event: Mapping[str, Any]) -> RecordedEvent:
    metadata, clock = event["metadata"], event["clock"]
    return RecordedEvent(
        event["position"],
        event["stream_id"],
        event["version"],
        event["type"],
        event["schema_version"],
        event["payload"].encode(),
        decode_metadata(metadata),
        UUID(event["event_id"]),
        UUID(event["batch_id"]),
        event["epoch"],
        datetime.fromisoformat(event["recorded_at"]),
        event["checksum"],
        event["tenant"],
        event["origin"],
        event["origin_sequence"],
        None if clock is None else clock.encode(),
        event["concurrent"],
        None if metadata is None else metadata.encode(),
    )

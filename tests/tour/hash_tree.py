"""Seals, computed anew from what docs/tamper-evidence.md says of them: hashes of stored bytes, a tree, a signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key


def leaf(event: Mapping[str, Any]) -> bytes:
    """The leaf of an event, given the columns that are stored of it."""
    content = b"".join(
        (
            b"eventstore event 1\0",
            sized(event["type"].encode()),
            number(event["schema_version"]),
            sized(event["payload"].encode()),
            optional(event["metadata"]),
            event["event_id"],
            event["batch_id"] or event["event_id"],
            number(event["epoch"]),
            number(event["recorded_at"]),
            number(event["checksum"]),
            optional(event["origin"]),
            # The log of one store has no replica fields.
            b"\0" * 2,
            b"\1" if event["concurrent"] else b"\0",
        )
    )
    place = (
        number(event["position"]),
        sized(event["tenant"].encode()),
        sized(event["stream_id"].encode()),
        number(event["version"]),
    )
    return sha256(b"\0" + b"".join(place) + sha256(content).digest()).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, 2.1.1, as it stands there."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return sha256(b"\1" + root(leaves[:middle]) + root(leaves[middle:])).digest()


def root_above(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root that a proof leads to, from above: which half is the leaf in?"""
    if count == 1:
        assert not path
        return leaf
    middle = 1
    while middle * 2 < count:
        middle *= 2
    if index < middle:
        return sha256(b"\1" + root_above(leaf, index, middle, path[:-1]) + path[-1]).digest()
    return sha256(b"\1" + path[-1] + root_above(leaf, index - middle, count - middle, path[:-1])).digest()


def check_signature(statement: bytes, signature: bytes, key: str) -> None:
    """Raises an error unless the key has signed it."""
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, b"eventstore seal 1\0" + statement)


def key_in(pem: bytes) -> str:
    """The public key in a file."""
    key = load_pem_public_key(pem)
    assert isinstance(key, Ed25519PublicKey)
    return key.public_bytes_raw().hex()


def number(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def optional(text: str | None) -> bytes:
    return b"\0" if text is None else b"\1" + sized(text.encode())

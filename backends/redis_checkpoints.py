"""Checkpoints on Redis: a hash of them, each under its version and name, and the scripts that change one."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from backends.redis_connection import Argument
from backends.redis_scripts import OPENED, script
from backends.redis_tenant import RedisTenant, split
from eventstore.backend import StoredCheckpoint

# Revision, position, number of events, checksum; then the state. The revision is what a change compares.
_HEAD = Struct(">QQQ16s")
_REVISION = Struct(">Q")

CHECKPOINTS = script(
    OPENED
    + """
local key = base .. ':checkpoints'
local found = {}
for _, field in ipairs(redis.call('HKEYS', key)) do
    found[#found + 1] = field
    found[#found + 1] = redis.call('HGET', key, field)
end
return found
"""
)

# ARGV: 5 field, 6 the revision that it must have, '' for none, 7 the new value, '' to remove it. Reply: 1 if it had.
CHANGE_CHECKPOINT = script(
    OPENED
    + """
local key = base .. ':checkpoints'
local value = redis.call('HGET', key, ARGV[5])
if (value and string.sub(value, 1, 8) or '') ~= ARGV[6] then return 0 end
if ARGV[7] == '' then redis.call('HDEL', key, ARGV[5]) else redis.call('HSET', key, ARGV[5], ARGV[7]) end
return 1
"""
)


def saving(tenant: RedisTenant, checkpoint: StoredCheckpoint) -> list[Argument]:
    """What replaces a checkpoint of this revision."""
    name, version, revision, position, events, checksum, state = checkpoint
    packed = _HEAD.pack(revision + 1, position, events, checksum) + state
    return [_field(tenant, name, version), _REVISION.pack(revision) if revision else b"", packed]


def deleting(tenant: RedisTenant, name: str, version: int, revision: int) -> list[Argument]:
    """What removes one. No checkpoint has revision 0."""
    return [_field(tenant, name, version), _REVISION.pack(revision), b""]


def found_checkpoints(tenant: RedisTenant, reply: Sequence[bytes]) -> list[StoredCheckpoint]:
    """The tenant's own, by the bytes of their names, and by version."""
    found: list[tuple[bytes, int, StoredCheckpoint]] = []
    for stored_field, value in zip(reply[::2], reply[1::2], strict=True):
        if (field := tenant.own_id(stored_field)) is None:
            continue
        number, _, name = field.partition(b":")
        version = int(number)
        found.append((name, version, _stored(name.decode(), version, value)))
    return [stored for *_, stored in sorted(found, key=lambda item: item[:2])]


def found_checkpoint(field: bytes, value: bytes) -> StoredCheckpoint:
    """One of whichever tenant's."""
    _, name = split(field)
    number, _, name = name.partition(":")
    return _stored(name, int(number), value)


def _stored(name: str, version: int, value: bytes) -> StoredCheckpoint:
    revision, position, events, checksum = _HEAD.unpack_from(value)
    return StoredCheckpoint(name, version, revision, position, events, checksum, value[_HEAD.size :])


def _field(tenant: RedisTenant, name: str, version: int) -> bytes:
    return tenant.name(f"{version}:{name}")

"""Checkpoints on Redis: a hash of them, each under its version and name, and the scripts that change one."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from backends.redis_connection import Argument
from backends.redis_scripts import OPENED, script
from backends.redis_tenant import RedisTenant, split
from eventstore.backend import CheckpointKey, StoredCheckpoint

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

# ARGV, for each: field, the revision that it must have, '' for none, the new value, '' to remove it. The reply: 1 if
# all had theirs.
CHANGE_CHECKPOINTS = script(
    OPENED
    + """
local key = base .. ':checkpoints'
for i = 5, #ARGV, 3 do
    local value = redis.call('HGET', key, ARGV[i])
    if (value and string.sub(value, 1, 8) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 5, #ARGV, 3 do
    if ARGV[i + 2] == '' then redis.call('HDEL', key, ARGV[i]) else redis.call('HSET', key, ARGV[i], ARGV[i + 2]) end
end
return 1
"""
)


def checkpoint_changes(
    tenant: RedisTenant, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey]
) -> list[Argument]:
    """What replaces checkpoints of these revisions, and removes others."""
    changes: list[Argument] = []
    for name, version, revision, position, events, checksum, state in saving:
        packed = _HEAD.pack(revision + 1, position, events, checksum) + state
        changes += [_field(tenant, name, version), _REVISION.pack(revision) if revision else b"", packed]
    for name, version, revision in removing:
        # No checkpoint has revision 0.
        changes += [_field(tenant, name, version), _REVISION.pack(revision), b""]
    return changes


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

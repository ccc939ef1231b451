"""Seals on Redis: a sorted set of them by number; and the record of truncations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import accumulate, pairwise
from math import ceil
from struct import Struct, error
from typing import Any

import orjson

from backends.redis_scripts import OPENED, script
from backends.redis_tenant import split
from backends.times import EPOCH_START
from eventstore.backend import Removal, StoredSeal
from eventstore.errors import JournalCorrupt

# The number, so that no two seals are one member of the set; the bytes of statement, signature and leaves, which
# follow, and then the removals.
_HEAD = Struct(">QIII")

# What was put under a number that no seal can have, infinite or not above 0, is none, and in nobody's way.

# ARGV: 5 number, 6 seal. The reply: 1 if it was the next one.
ADD_SEAL = script(
    OPENED
    + """
local key = base .. ':seals'
local newest = redis.call('ZRANGE', key, '(inf', '(0', 'BYSCORE', 'REV', 'LIMIT', '0', '1', 'WITHSCORES')
if tonumber(newest[2] or '0') + 1 ~= tonumber(ARGV[5]) then return 0 end
return redis.call('ZADD', key, ARGV[5], ARGV[6])
"""
)

# ARGV: 5 after, 6 limit, 7 '1' for backwards. The reply: seals, each before its number; where several stand under one
# number, which nobody has made here, nothing before it: whoever reads on behind that number would miss the others.
SEALS = script(
    OPENED
    + """
local key, after, found = base .. ':seals', '(' .. ARGV[5]
if ARGV[7] == '1' then
    found = redis.call('ZRANGE', key, '(inf', after, 'BYSCORE', 'REV', 'LIMIT', '0', ARGV[6], 'WITHSCORES')
else
    found = redis.call('ZRANGE', key, after, '(inf', 'BYSCORE', 'LIMIT', '0', ARGV[6], 'WITHSCORES')
end
for i = 2, #found, 2 do
    local another = redis.call('ZRANGE', key, found[i], found[i], 'BYSCORE', 'LIMIT', '1', '1')
    if #another > 0 then found[i - 1] = '' end
end
return found
"""
)

# ARGV: 5 after, 6 limit.
REMOVALS = script(
    OPENED
    + """
return redis.call('LRANGE', base .. ':removals', ARGV[5], text(tonumber(ARGV[5]) + tonumber(ARGV[6]) - 1))
"""
)


def packed_seal(seal: StoredSeal) -> bytes:
    """A seal as the set holds it."""
    number, *parts = seal
    return _HEAD.pack(number, *map(len, parts[:-1])) + b"".join(parts)


def found_seals(reply: Sequence[bytes]) -> list[StoredSeal]:
    """What `SEALS` replied. A broken score counts as the next whole number: behind that the reader goes on, and with a
    lower one it would find the same seal for ever."""
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return list({score: _seal(packed, ceil(float(score))) for packed, score in pairs}.values())


def _seal(packed: bytes, number: int) -> StoredSeal:
    try:
        _, *sizes = _HEAD.unpack_from(packed)
    except error:
        return StoredSeal(number, b"", b"", b"", b"")
    ends = list(accumulate(sizes, initial=_HEAD.size))
    statement, signature, leaves = (packed[start:end] for start, end in pairwise(ends))
    return StoredSeal(number, statement, signature, leaves, packed[ends[-1] :])


def found_removals(after: int, reply: Sequence[bytes]) -> list[Removal]:
    """What `REMOVALS` replied. The list has no numbers but the places in it."""
    return [_removal(after + index + 1, entry) for index, entry in enumerate(reply)]


def _removal(number: int, entry: bytes) -> Removal:
    try:
        found: Any = orjson.loads(entry)
        seconds, _, microseconds = found["recorded_at"].partition(".")
        at = EPOCH_START + timedelta(seconds=int(seconds), microseconds=int(microseconds))
        tenant, stream_id = split(found["stream"].encode())
        return Removal(number, stream_id, found["through"], found["removed"], found["reason"], at, tenant)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as damage:
        raise JournalCorrupt(f"the record of truncation {number} cannot be read: {damage}") from damage

"""The journal's scripts: constant texts, to which values come through KEYS and ARGV alone.

A script is not rolled back, so each makes all of its checks before its first write.

Keys, for the journal `{p}` (`docs/redis.md` explains them):

    {p}                   hash     identity, revision, position, streams, clock, bytes, snapshots, commands,
                                   copied, fence
    {p}:heads             hash     stream id -> number, version, truncated, epoch, newest snapshot, forgotten
    {p}:numbers           hash     number -> stream id
    {p}:names             zset     the ids of streams that have events or snapshots, in byte order
    {p}:events:<number>   list     a stream's events behind the truncated ones, as `redis_records` packs them
    {p}:log:<chunk>       string   for each position: number, version, size of the record; zeros for a hole
    {p}:ids               hash     event id -> position
    {p}:snapshots:<number>  hash   version -> snapshot
    {p}:commands          hash     stream's number, colon, command id -> outcome, as `redis_commands` packs it
    {p}:command-order:<number>  zset  the ids of a stream's commands, by the order in which they were stored
    {p}:owners            hash     owner id -> lease
    {p}:holders           hash     stream id -> owner id, for streams that were claimed and not released
    {p}:held              zset     the ids of these streams, in byte order
    {p}:checkpoints       hash     version, colon, name -> checkpoint, as `redis_checkpoints` packs it
    {p}:removals          list     what was truncated, when and why
    {p}:seals             zset     seals by their numbers, as `redis_seals` packs them
    {p}:news              channel  the position of the newest event, and the identity of its journal

Where a stream, an owner or a projection has a tenant, its id is as `redis_tenant` makes it.
"""

from __future__ import annotations

from hashlib import sha1

from backends.redis_connection import Script


def script(source: str) -> Script:
    """The script of a text, under the name the server gives it."""
    encoded = source.encode()
    # Redis names a script by its SHA-1; nothing is secured by it.
    return Script(sha1(encoded, usedforsecurity=False).hexdigest().encode(), encoded)


# What a user may not do in a script is told in other words than outside of one, by each server in its own.
REFUSAL = """
local function lacks_right(reply)
    if type(reply) ~= 'table' or not reply.err then return false end
    return string.find(reply.err, 'NOPERM') or string.find(reply.err, 'ACL failure in script')
        or string.find(reply.err, "The user executing the script can't")
end
"""

# Lua's unpack puts its values on a stack of 8,000.
_LIMITS = """
local SLICE = 4000
local CHUNK = 4096
local ENTRY = 16
local HEAD = '>I7I7I7I7I7I7'
"""

# Every script starts by asking whether this is still the journal that the store has opened: the same identity, not
# shorter than what the store has seen of it, and with the event it has seen last at the place it has seen it.
OPENED = (
    _LIMITS
    + """
local base = KEYS[1]
local function call_sliced(command, key, values, from, to)
    if to - from < SLICE then return redis.call(command, key, unpack(values, from, to)) end
    local found = {}
    for start = from, to, SLICE do
        local part = redis.call(command, key, unpack(values, start, math.min(start + SLICE - 1, to)))
        for i = 1, #part do found[start - from + i] = part[i] end
    end
    return found
end
local function write_sliced(command, key, values)
    for start = 1, #values, SLICE do
        redis.call(command, key, unpack(values, start, math.min(start + SLICE - 1, #values)))
    end
end
local function log_entries(after, count)
    local parts = {}
    while count > 0 do
        local offset = after % CHUNK
        local some = math.min(count, CHUNK - offset)
        local key = base .. ':log:' .. string.format('%.0f', (after - offset) / CHUNK)
        parts[#parts + 1] = redis.call('GETRANGE', key, offset * ENTRY, (offset + some) * ENTRY - 1)
        after = after + some
        count = count - some
    end
    return table.concat(parts)
end
local function text(number)
    return string.format('%.0f', number)
end
local journal = redis.call('HMGET', base,
    'identity', 'revision', 'position', 'streams', 'clock', 'bytes', 'commands', 'fence')
if journal[1] ~= ARGV[1] then return redis.error_reply('REPLACED') end
if journal[2] ~= ARGV[2] then return redis.error_reply('REVISED ' .. tostring(journal[2])) end
local position = tonumber(journal[3])
local seen = tonumber(ARGV[3])
if seen > 0 then
    if position < seen then
        return redis.error_reply('REWOUND the log ends at ' .. journal[3] .. ', ' .. ARGV[3] .. ' was seen')
    end
    if redis.call('HGET', base .. ':ids', ARGV[4]) ~= ARGV[3] then
        -- A truncated event has no id any more, but its stream remembers that it was truncated.
        local entry = log_entries(seen - 1, 1)
        local truncated = false
        if #entry == ENTRY then
            local number, version = struct.unpack('>I6I6', entry)
            local name = redis.call('HGET', base .. ':numbers', text(number))
            local value = name and redis.call('HGET', base .. ':heads', name)
            if value then
                local _, _, through = struct.unpack(HEAD, value)
                truncated = version <= through
            end
        end
        if not truncated then
            return redis.error_reply('REWOUND another event stands at position ' .. ARGV[3])
        end
    end
end
"""
)

# Used by the scripts that change one stream: ARGV 5 is its id.
ONE_STREAM = """
local value = redis.call('HGET', base .. ':heads', ARGV[5])
local number, version, truncated, epoch, newest, forgotten = 0, 0, 0, 0, 0, 0
if value then number, version, truncated, epoch, newest, forgotten = struct.unpack(HEAD, value) end
local function save_head()
    if number == 0 then
        number = tonumber(journal[4]) + 1
        redis.call('HSET', base .. ':numbers', text(number), ARGV[5])
        redis.call('HSET', base, 'streams', text(number))
    end
    redis.call('HSET', base .. ':heads', ARGV[5],
        struct.pack(HEAD, number, version, truncated, epoch, newest, forgotten))
end
local function versions_falling(key)
    local found = redis.call('HKEYS', key)
    for i = 1, #found do found[i] = tonumber(found[i]) end
    table.sort(found, function(one, other) return one > other end)
    return found
end
"""

# Before all that adds to a journal, but for appends, which answer batch by batch.
REFUSED = """
if journal[8] then return redis.error_reply('FENCED ' .. cjson.decode(journal[8]).reason) end
"""

# The rights that a write needs, asked for without changing anything: each of these fails on what the journal's own key
# holds, but only for those who may use the command at all. Without it a script could end in the middle of its writes.
RIGHTS = script(
    REFUSAL
    + """
local lacking = {}
local snapshots = redis.pcall('HGET', KEYS[1], 'snapshots')
if type(snapshots) ~= 'string' then snapshots = 'x' end
for _, command in ipairs({
    {'RPUSH', KEYS[1], 'x'}, {'APPEND', KEYS[1], 'x'}, {'ZADD', KEYS[1], '0', 'x'}, {'LLEN', KEYS[1]},
    {'LRANGE', KEYS[1], '0', '0'}, {'GETRANGE', KEYS[1], '0', '0'}, {'ZCARD', KEYS[1]},
    {'ZRANGEBYLEX', KEYS[1], '-', '+', 'LIMIT', '0', '0'}, {'ZRANGE', KEYS[1], '0', '0'}, {'ZREM', KEYS[1], 'x'},
    {'HGET', KEYS[1], 'x'}, {'HKEYS', KEYS[1]}, {'HLEN', KEYS[1]}, {'HSTRLEN', KEYS[1], 'x'},
    {'HDEL', KEYS[1], 'x'}, {'HMGET', KEYS[1], 'x'},
    {'HSET', KEYS[1], 'snapshots', snapshots}, {'HINCRBY', KEYS[1], 'snapshots', '0'},
    {'TIME'},
}) do
    local result = redis.pcall(unpack(command))
    if lacks_right(result) then
        lacking[#lacking + 1] = command[1]
    end
end
return lacking
"""
)

# For `eventstore migrate`. ARGV: 1 identity for a new journal, 2 revision. The reply: the revision that was found.
MIGRATE = script("""
local base = KEYS[1]
local revision = redis.call('HGET', base, 'revision')
if revision then return revision end
if redis.call('EXISTS', base) == 1 or redis.call('EXISTS', base .. ':heads', base .. ':ids', base .. ':owners') > 0 then
    return redis.error_reply('FOREIGN')
end
redis.call('HSET', base, 'identity', ARGV[1], 'revision', ARGV[2],
    'position', '0', 'streams', '0', 'clock', '0', 'bytes', '0', 'snapshots', '0',
    'commands', '0')
return false
""")

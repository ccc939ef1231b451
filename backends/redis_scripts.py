"""The journal's scripts: constant texts, to which values come through KEYS and ARGV alone.

A script is not rolled back, so each makes all of its checks before its first write.

Keys, for the journal `{p}` (`docs/redis.md` explains them):

    {p}                   hash     identity, revision, position, streams, clock, bytes, snapshots
    {p}:heads             hash     stream id -> number, version, truncated, epoch, newest snapshot
    {p}:numbers           hash     number -> stream id
    {p}:names             zset     the ids of streams that have events or snapshots, in byte order
    {p}:events:<number>   list     a stream's events behind the truncated ones, as `redis_records` packs them
    {p}:log:<chunk>       string   for each position: number, version, size of the record
    {p}:ids               hash     event id -> position
    {p}:snapshots:<number>  hash   version -> snapshot
    {p}:removals          list     what was truncated, when and why
    {p}:news              channel  the position of the newest event
"""

from __future__ import annotations

from hashlib import sha1

from backends.redis_connection import Script

# What a user may not do in a script is told in other words than outside of one, by each server in its own.
_REFUSAL = """
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
local HEAD = '>I7I7I7I7I7'
"""

# Every script starts by asking whether this is still the journal that the store has opened: the same identity, not
# shorter than what the store has seen of it, and with the event it has seen last at the place it has seen it.
_OPENED = (
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
local journal = redis.call('HMGET', base, 'identity', 'revision', 'position', 'streams', 'clock', 'bytes')
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

# ARGV: 5 '1' if no event id is there twice, 6 plan, 7 number of streams, then their ids, then the records without
# position and time.
# The plan is, for each write: stream, expected version, epoch, number of events, 1 if it ends its batch.
# The reply is, for each batch: 0 or 1 (stored now, or before), position, a version for each write;
#     2, write, version, for a conflict; 3, write, epoch, for a fenced writer; 4, write, event, for a repeated id.
_APPEND = """
local call, pack, unpacked, sub = redis.call, struct.pack, struct.unpack, string.sub
local plan, count = ARGV[6], tonumber(ARGV[7])
local first = 7 + count
local total = #ARGV - first
local head, number, version = {}, {}, {}
if count > 0 then
    head = call_sliced('HMGET', base .. ':heads', ARGV, 8, first)
    for i = 1, count do
        if head[i] then
            number[i], version[i] = unpacked('>I7I7', head[i])
        else
            number[i], version[i] = 0, 0
        end
    end
end
local ids = {}
for i = 1, total do ids[i] = sub(ARGV[first + i], 1, 16) end
local stored = {}
if total > 0 then stored = call_sliced('HMGET', base .. ':ids', ids, 1, total) end
local has_repeats = ARGV[5] ~= '1'
for i = 1, total do
    if stored[i] then has_repeats = true end
end

local time = call('TIME')
local now = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), tonumber(journal[5]))
local start, streams, bytes = position, tonumber(journal[4]), tonumber(journal[6])
local rows, log, places, reply, created = {}, {}, {}, {}, {}
-- Only where ids are repeated: the positions of those that are stored by this group.
local placed = {}
local stamp = pack('>I8', now)
-- The next event, and how many numbers the reply has.
local event, replied = 1, 0

local function store(stream, events)
    local own, current, row = number[stream], version[stream], rows[stream]
    if own == 0 then
        streams = streams + 1
        own = streams
        number[stream] = own
        created[#created + 1] = own .. ''
        created[#created + 1] = ARGV[7 + stream]
    end
    local here = position - start
    for i = 1, events do
        position = position + 1
        current = current + 1
        local record = pack('>I8', position) .. stamp .. ARGV[first + event]
        local size, id = #record, ids[event]
        if not row then
            row = record
        elseif type(row) == 'string' then
            row = {row, record}
        else
            row[#row + 1] = record
        end
        here = here + 1
        log[here] = pack('>I6I6I4', own, current, size)
        places[2 * here - 1] = id
        -- Lua writes whole numbers out in full up to 10^14, and so faster than string.format does.
        places[2 * here] = position .. ''
        bytes = bytes + size
        if has_repeats then placed[id] = position end
        event = event + 1
    end
    rows[stream], version[stream] = row, current
end

-- Why a write is refused, as the reply has it, or nil.
local function refusal(index, stream, expected, owner)
    local current = version[stream]
    if owner >= 0 and head[stream] then
        local epoch = unpacked('>I7', head[stream], 22)
        if owner < epoch then return {3, index, epoch} end
    end
    if expected ~= current and expected ~= -1 and not (expected == -2 and current > 0) then
        return {2, index, current}
    end
end

-- Where an event of this group stands already: stream, version, position.
local function place_of(index)
    local at = placed[ids[index]] or tonumber(stored[index])
    local entry
    if at > start then entry = log[at - start] else entry = log_entries(at - 1, 1) end
    local of, its_version = unpacked('>I6I6', entry)
    return of, its_version, at
end

-- The reply for a batch that is stored as it is, or nil.
local function original(batch, index)
    local last, found = 0, {1, 0}
    for _, write in ipairs(batch) do
        local previous = version[write[1]]
        for i = 1, write[4] do
            local of, its_version, at = place_of(index)
            if of ~= number[write[1]] or at <= last or (i > 1 and its_version ~= previous + 1) then return nil end
            previous, last = its_version, at
            index = index + 1
        end
        found[#found + 1] = previous
    end
    found[2] = last
    return found
end

-- The reply for a batch of which an event is there already, or nil.
local function repetition(batch)
    local mine, is_whole, index, write_of, found = {}, true, event, nil, nil
    for i, write in ipairs(batch) do
        for _ = 1, write[4] do
            local id = ids[index]
            local is_stored = stored[index] or placed[id]
            if not write_of and (is_stored or mine[id]) then write_of, found = i - 1, index - event end
            is_whole = is_whole and is_stored
            mine[id] = true
            index = index + 1
        end
    end
    if write_of then return is_whole and original(batch, event) or {4, write_of, found} end
end

local function decide(batch)
    local answer = has_repeats and repetition(batch)
    local checked = 0
    while not answer and checked < #batch do
        local stream, expected, owner, events = unpack(batch[checked + 1])
        answer = refusal(checked, stream, expected, owner)
        if not answer then
            -- What follows in the batch sees the stream as this write leaves it.
            version[stream] = version[stream] + events
            checked = checked + 1
        end
    end
    for i = 1, checked do version[batch[i][1]] = version[batch[i][1]] - batch[i][4] end
    if answer then
        for _, write in ipairs(batch) do event = event + write[4] end
        for i = 1, #answer do reply[replied + i] = answer[i] end
        replied = replied + #answer
        return
    end
    local before, summary = position, replied + 2
    reply[summary - 1] = 0
    for i, write in ipairs(batch) do
        store(write[1], write[4])
        reply[summary + i] = version[write[1]]
    end
    reply[summary] = position > before and position or 0
    replied = summary + #batch
end

local offset, batch = 1, {}
while offset <= #plan do
    local stream, expected, owner, events, ends
    stream, expected, owner, events, ends, offset = unpacked('>I4i8i8I4B', plan, offset)
    -- Most batches are one write that is as its writer expects.
    if ends == 1 and #batch == 0 and events > 0 and owner < 0 and not has_repeats
        and (expected == version[stream] or expected == -1) then
        store(stream, events)
        reply[replied + 1], reply[replied + 2], reply[replied + 3] = 0, position, version[stream]
        replied = replied + 3
    else
        batch[#batch + 1] = {stream, expected, owner, events}
        if ends == 1 then
            decide(batch)
            batch = {}
        end
    end
end
if position == start then return reply end

-- Nothing above has written, nothing below is refused. A stream's row is its one record, or a table of several.
local heads, names = {}, {}
local none, zero = string.rep('\\0', 35), string.rep('\\0', 7)
local list = base .. ':events:'
for stream = 1, count do
    local row = rows[stream]
    if row then
        local own, before = number[stream], head[stream] or none
        if type(row) == 'string' then
            call('RPUSH', list .. own, row)
        else
            write_sliced('RPUSH', list .. own, row)
        end
        heads[#heads + 1] = ARGV[7 + stream]
        heads[#heads + 1] = pack('>I7I7', own, version[stream]) .. sub(before, 15)
        if sub(before, 8, 14) == zero then
            names[#names + 1] = '0'
            names[#names + 1] = ARGV[7 + stream]
        end
    end
end
local written = 0
while written < #log do
    local at = start + written
    local some = math.min(#log - written, CHUNK - at % CHUNK)
    call('APPEND', base .. ':log:' .. (at - at % CHUNK) / CHUNK, table.concat(log, '', written + 1, written + some))
    written = written + some
end
write_sliced('HSET', base .. ':ids', places)
write_sliced('HSET', base .. ':heads', heads)
write_sliced('ZADD', base .. ':names', names)
write_sliced('HSET', base .. ':numbers', created)
call('HSET', base, 'position', text(position), 'streams', text(streams), 'clock', text(now), 'bytes', text(bytes))
-- Only a hint to readers: a user who may not publish stores all the same.
redis.pcall('PUBLISH', base .. ':news', text(position))
return reply
"""

# Records from a list: at most `count`, and no more than about `room` bytes, but at least one.
_FETCH = """
local room = 16777216
local function fetch(key, from, count)
    local found, step = {}, 16
    while count > 0 and (room > 0 or #found == 0) do
        local some = math.min(step, count)
        local part = redis.call('LRANGE', key, from, from + some - 1)
        for i = 1, #part do
            room = room - #part[i]
            found[#found + 1] = part[i]
        end
        if #part < some then break end
        from, count = from + some, count - some
        -- A step of this size has just been seen to fit.
        step = math.max(1, math.min(1000, math.floor(room * some / math.max(1, 16777216 - room))))
    end
    return found
end
"""

# ARGV: 5 number of loads, then their stream ids, then for each: after, 1 to use a snapshot, limit.
# The reply is, for as many of the loads as one reply may hold: version, truncated, snapshot, events.
_LOAD = (
    _FETCH
    + """
local count = tonumber(ARGV[5])
local heads = call_sliced('HMGET', base .. ':heads', ARGV, 6, 5 + count)
local reply, budget = {}, 10000
for i = 1, count do
    if budget <= 0 or room <= 0 then break end
    local at = 5 + count + 3 * i
    local after, uses_snapshot, limit = tonumber(ARGV[at - 2]), ARGV[at - 1], tonumber(ARGV[at])
    if heads[i] then
        local number, version, truncated, _, newest = struct.unpack(HEAD, heads[i])
        local snapshot = false
        if uses_snapshot == '1' and newest > after then
            snapshot = redis.call('HGET', base .. ':snapshots:' .. text(number), text(newest))
            after = newest
            if snapshot then room = room - #snapshot end
        end
        local key = base .. ':events:' .. text(number)
        if redis.call('LLEN', key) ~= version - truncated then
            reply[i] = {-1, redis.call('LLEN', key), false, {version, truncated}, after}
        else
            local from = math.max(after - truncated, 0)
            local events = fetch(key, from, math.min(limit, version - truncated - from))
            budget = budget - #events
            reply[i] = {version, truncated, snapshot, events, after}
        end
    else
        reply[i] = {0, 0, false, {}, after}
    end
end
return reply
"""
)

# ARGV: 5 stream id, 6 after, 7 through, 8 limit, 9 '1' for backwards. The reply: version, truncated, the version of
# the first record, records in rising order.
_READ_STREAM = (
    _FETCH
    + """
local value = redis.call('HGET', base .. ':heads', ARGV[5])
if not value then return {0, 0, 0, {}} end
local number, version, truncated = struct.unpack(HEAD, value)
local key = base .. ':events:' .. text(number)
local length = redis.call('LLEN', key)
if length ~= version - truncated then return {-1, length, version, truncated} end
local low = math.max(tonumber(ARGV[6]), truncated) + 1
local high = math.min(tonumber(ARGV[7]), version)
local wanted = math.min(high - low + 1, tonumber(ARGV[8]))
if wanted <= 0 then return {version, truncated, 0, {}} end
if ARGV[9] == '1' then
    -- From the upper end, as many as fit: their number is not known before they are read.
    local found, size, from = {}, 0, high + 1
    while wanted > 0 and size < room do
        local some = math.min(wanted, 25)
        local part = redis.call('LRANGE', key, from - some - truncated - 1, from - truncated - 2)
        for i = #part, 1, -1 do
            size = size + #part[i]
            found[#found + 1] = part[i]
        end
        from, wanted = from - some, wanted - some
    end
    return {version, truncated, high, found}
end
return {version, truncated, low, fetch(key, low - truncated - 1, wanted)}
"""
)

# ARGV: 5 after, 6 through, 7 limit, 8 how many entries to look at, 9 '1' for records, 10 number of kinds, the kinds,
# then the stream ids. The reply: end of the log, the position looked through to, the positions that matched; with
# records also their streams' ids, and for each event: the index of its stream, version, record.
_READ_LOG = """
local ROOM = 16777216
local last = math.min(position, tonumber(ARGV[6]))
local at, limit, window = tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[8])
local with_records, kinds_count = ARGV[9] == '1', tonumber(ARGV[10])
local kinds, wanted = nil, nil
if kinds_count > 0 then
    kinds = {}
    for i = 11, 10 + kinds_count do kinds[ARGV[i]] = true end
end
if #ARGV > 10 + kinds_count then
    wanted = {}
    for i = 11 + kinds_count, #ARGV do wanted[ARGV[i]] = true end
end
local count = math.max(0, math.min(window, last - at))
local entries = ''
if count > 0 then entries = log_entries(at, count) end
if #entries ~= count * ENTRY then
    return redis.error_reply('DAMAGED the log has no entry for some positions after ' .. text(at))
end
local numbers, versions, sizes, distinct, index_of = {}, {}, {}, {}, {}
for i = 1, count do
    numbers[i], versions[i], sizes[i] = struct.unpack('>I6I6I4', entries, (i - 1) * ENTRY + 1)
    if not index_of[numbers[i]] then
        distinct[#distinct + 1] = text(numbers[i])
        index_of[numbers[i]] = #distinct
    end
end
local names, truncated, passes = {}, {}, {}
if #distinct > 0 then
    names = call_sliced('HMGET', base .. ':numbers', distinct, 1, #distinct)
    for i = 1, #distinct do
        if not names[i] then return redis.error_reply('DAMAGED stream number ' .. distinct[i] .. ' has no id') end
    end
    local heads = call_sliced('HMGET', base .. ':heads', names, 1, #names)
    for i = 1, #distinct do
        if not heads[i] then return redis.error_reply('DAMAGED stream number ' .. distinct[i] .. ' has no head') end
        local _, _, through = struct.unpack(HEAD, heads[i])
        truncated[i] = through
        passes[i] = (not kinds or kinds[string.match(names[i], '^[^-]*')]) and (not wanted or wanted[names[i]])
    end
end
local picked, first, amount, size = {}, {}, {}, 0
local looked = at
for i = 1, count do
    if #picked >= limit or size >= ROOM then break end
    local stream = index_of[numbers[i]]
    if passes[stream] and versions[i] > truncated[stream] then
        picked[#picked + 1] = i
        size = size + sizes[i]
        first[stream] = first[stream] or versions[i]
        amount[stream] = versions[i] - first[stream] + 1
    end
    looked = at + i
end
if not with_records then
    local positions = {}
    for i = 1, #picked do positions[i] = at + picked[i] end
    return {position, looked, positions}
end
local records = {}
for stream, of_stream in pairs(amount) do
    local from = first[stream] - truncated[stream] - 1
    records[stream] =
        redis.call('LRANGE', base .. ':events:' .. distinct[stream], from, from + of_stream - 1)
end
local positions, events = {}, {}
for i = 1, #picked do
    local entry = picked[i]
    local stream = index_of[numbers[entry]]
    local record = records[stream][versions[entry] - first[stream] + 1]
    if not record then
        return redis.error_reply('DAMAGED the event at position ' .. text(at + entry) .. ' is missing')
    end
    positions[i] = at + entry
    events[3 * i - 2] = stream - 1
    events[3 * i - 1] = versions[entry]
    events[3 * i] = record
end
return {position, looked, positions, names, events}
"""

# ARGV: 5 limit, then pairs of bounds as ZRANGEBYLEX has them. The reply: id, version, truncated of each stream.
# Lua must not compare ids: it does so by the server's locale.
_STREAMS = """
local names = {}
for i = 6, #ARGV, 2 do
    local limit = tonumber(ARGV[5]) - #names
    if limit > 0 then
        local some = redis.call('ZRANGEBYLEX', base .. ':names', ARGV[i], ARGV[i + 1], 'LIMIT', 0, limit)
        for k = 1, #some do names[#names + 1] = some[k] end
    end
end
local reply = {}
if #names == 0 then return reply end
local heads = call_sliced('HMGET', base .. ':heads', names, 1, #names)
for i = 1, #names do
    if not heads[i] then return redis.error_reply('DAMAGED a stream is listed that has no head') end
    local _, version, truncated = struct.unpack(HEAD, heads[i])
    reply[3 * i - 2], reply[3 * i - 1], reply[3 * i] = names[i], version, truncated
end
return reply
"""

# Used by the scripts that change one stream: ARGV 5 is its id.
_HEAD = """
local value = redis.call('HGET', base .. ':heads', ARGV[5])
local number, version, truncated, epoch, newest = 0, 0, 0, 0, 0
if value then number, version, truncated, epoch, newest = struct.unpack(HEAD, value) end
local function save_head()
    if number == 0 then
        number = tonumber(journal[4]) + 1
        redis.call('HSET', base .. ':numbers', text(number), ARGV[5])
        redis.call('HSET', base, 'streams', text(number))
    end
    redis.call('HSET', base .. ':heads', ARGV[5], struct.pack(HEAD, number, version, truncated, epoch, newest))
end
local function versions_falling(key)
    local found = redis.call('HKEYS', key)
    for i = 1, #found do found[i] = tonumber(found[i]) end
    table.sort(found, function(one, other) return one > other end)
    return found
end
"""

_CLAIM = (
    _HEAD
    + """
epoch = epoch + 1
save_head()
return epoch
"""
)

# ARGV: 6 through, 7 how many events at most, 8 reason. The reply: how many were removed, 1 if more are to be.
_TRUNCATE = (
    _REFUSAL
    + _HEAD
    + """
local count = math.min(tonumber(ARGV[6]), version) - truncated
if count <= 0 then return {0, 0} end
-- Whoever may not use it is refused here, and not half-way through. It cannot change a hash.
local right = redis.pcall('LTRIM', base, 0, -1)
if lacks_right(right) then return redis.error_reply('NOPERM ' .. right.err) end
local more = 0
if count > tonumber(ARGV[7]) then
    count = tonumber(ARGV[7])
    more = 1
end
local key = base .. ':events:' .. text(number)
local records = redis.call('LRANGE', key, 0, count - 1)
if #records ~= count then return redis.error_reply('DAMAGED events of the stream are missing') end
local ids, bytes = {}, tonumber(journal[6])
for i = 1, count do
    ids[i] = string.sub(records[i], 17, 32)
    bytes = bytes - #records[i]
end
local time = redis.call('TIME')
truncated = truncated + count
redis.call('RPUSH', base .. ':removals', cjson.encode({
    stream = ARGV[5], through = truncated, removed = count, reason = ARGV[8], recorded_at = time[1] .. '.' .. time[2]
}))
save_head()
redis.call('LTRIM', key, count, -1)
write_sliced('HDEL', base .. ':ids', ids)
redis.call('HSET', base, 'bytes', text(bytes))
return {count, more}
"""
)

# ARGV: 6 version, 7 snapshot, 8 how many to keep.
_SAVE_SNAPSHOT = (
    _HEAD
    + """
if number == 0 then save_head() end
local key = base .. ':snapshots:' .. text(number)
local bytes = tonumber(journal[6]) + #ARGV[7] - redis.call('HSTRLEN', key, ARGV[6])
local added = redis.call('HSET', key, ARGV[6], ARGV[7])
local versions = versions_falling(key)
for i = tonumber(ARGV[8]) + 1, #versions do
    bytes = bytes - redis.call('HSTRLEN', key, text(versions[i]))
    redis.call('HDEL', key, text(versions[i]))
    added = added - 1
end
newest = versions[1]
if tonumber(ARGV[8]) < 1 then newest = 0 end
save_head()
if newest > 0 then redis.call('ZADD', base .. ':names', '0', ARGV[5]) end
redis.call('HSET', base, 'bytes', text(bytes))
redis.call('HINCRBY', base, 'snapshots', text(added))
return newest
"""
)

# ARGV: 6 through. The reply: how many were removed.
_DELETE_SNAPSHOTS = (
    _HEAD
    + """
if newest == 0 then return 0 end
local key = base .. ':snapshots:' .. text(number)
local through, bytes, removed = tonumber(ARGV[6]), tonumber(journal[6]), 0
newest = 0
for _, each in ipairs(versions_falling(key)) do
    if each <= through then
        bytes = bytes - redis.call('HSTRLEN', key, text(each))
        redis.call('HDEL', key, text(each))
        removed = removed + 1
    elseif newest == 0 then
        newest = each
    end
end
save_head()
if newest == 0 and version == 0 then redis.call('ZREM', base .. ':names', ARGV[5]) end
redis.call('HSET', base, 'bytes', text(bytes))
-- Not the negative of it: Lua's negative zero is no number to Redis.
redis.call('HINCRBY', base, 'snapshots', text(0 - removed))
return removed
"""
)

# ARGV: 6 through, 7 limit. The reply: snapshots, newest first.
_READ_SNAPSHOTS = (
    _HEAD
    + """
if newest == 0 then return {} end
local key = base .. ':snapshots:' .. text(number)
local reply = {}
for _, each in ipairs(versions_falling(key)) do
    if #reply >= tonumber(ARGV[7]) then break end
    if each <= tonumber(ARGV[6]) then reply[#reply + 1] = redis.call('HGET', key, text(each)) end
end
return reply
"""
)

_STATISTICS = """
return {
    redis.call('ZCARD', base .. ':names'),
    redis.call('HLEN', base .. ':ids'),
    tonumber(redis.call('HGET', base, 'snapshots')),
    position,
    tonumber(journal[6]),
}
"""

# The rights that a write needs, asked for without changing anything: each of these fails on what the journal's own key
# holds, but only for those who may use the command at all. Without it a script could end in the middle of its writes.
_RIGHTS = (
    _REFUSAL
    + """
local lacking = {}
local snapshots = redis.pcall('HGET', KEYS[1], 'snapshots')
if type(snapshots) ~= 'string' then snapshots = 'x' end
for _, command in ipairs({
    {'RPUSH', KEYS[1], 'x'}, {'APPEND', KEYS[1], 'x'}, {'ZADD', KEYS[1], '0', 'x'}, {'LLEN', KEYS[1]},
    {'LRANGE', KEYS[1], '0', '0'}, {'GETRANGE', KEYS[1], '0', '0'}, {'ZCARD', KEYS[1]},
    {'ZRANGEBYLEX', KEYS[1], '-', '+', 'LIMIT', '0', '0'}, {'ZREM', KEYS[1], 'x'},
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
_MIGRATE = """
local base = KEYS[1]
local revision = redis.call('HGET', base, 'revision')
if revision then return revision end
if redis.call('EXISTS', base) == 1 or redis.call('EXISTS', base .. ':heads', base .. ':ids') > 0 then
    return redis.error_reply('FOREIGN')
end
redis.call('HSET', base, 'identity', ARGV[1], 'revision', ARGV[2],
    'position', '0', 'streams', '0', 'clock', '0', 'bytes', '0', 'snapshots', '0')
return false
"""


def _script(source: str) -> Script:
    encoded = source.encode()
    # Redis names a script by its SHA-1; nothing is secured by it.
    return Script(sha1(encoded, usedforsecurity=False).hexdigest().encode(), encoded)


APPEND = _script(_OPENED + _APPEND)
CLAIM = _script(_OPENED + _CLAIM)
DELETE_SNAPSHOTS = _script(_OPENED + _DELETE_SNAPSHOTS)
LOAD = _script(_OPENED + _LOAD)
MIGRATE = _script(_MIGRATE)
READ_LOG = _script(_OPENED + _READ_LOG)
READ_SNAPSHOTS = _script(_OPENED + _READ_SNAPSHOTS)
READ_STREAM = _script(_OPENED + _READ_STREAM)
RIGHTS = _script(_RIGHTS)
SAVE_SNAPSHOT = _script(_OPENED + _SAVE_SNAPSHOT)
STATISTICS = _script(_OPENED + _STATISTICS)
STREAMS = _script(_OPENED + _STREAMS)
TRUNCATE = _script(_OPENED + _TRUNCATE)

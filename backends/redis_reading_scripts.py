"""The scripts that read: each gives a page, as one moment of the journal has it."""

from __future__ import annotations

from backends.redis_scripts import ONE_STREAM, OPENED, script

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

# Whose a stream is, and its id, as `redis_tenant` puts them into its name. %z is NUL.
_TENANT = """
local function tenant_and_id(name)
    if string.byte(name, 1) ~= 0 then return '', name end
    return string.match(name, '^%z([^%z]*)%z(.*)$')
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

# ARGV: 5 after, 6 how many positions to look at. The reply: the position looked through to, the end of the log, then
# for each stream its id and the version of its newest event there.
_MOVED = """
local after = tonumber(ARGV[5])
local count = math.max(0, math.min(tonumber(ARGV[6]), position - after))
local entries = ''
if count > 0 then entries = log_entries(after, count) end
if #entries ~= count * ENTRY then
    return redis.error_reply('DAMAGED the log has no entry for some positions after ' .. text(after))
end
local versions, numbers = {}, {}
for i = 0, count - 1 do
    local number, version = struct.unpack('>I6I6', entries, i * ENTRY + 1)
    -- A hole, in the copy of a journal that had one there, has no number.
    if number > 0 then
        if not versions[number] then numbers[#numbers + 1] = text(number) end
        versions[number] = version
    end
end
local reply = {math.max(after, after + count), position}
if #numbers == 0 then return reply end
local names = call_sliced('HMGET', base .. ':numbers', numbers, 1, #numbers)
for i = 1, #numbers do
    if not names[i] then return redis.error_reply('DAMAGED stream number ' .. numbers[i] .. ' has no id') end
    reply[#reply + 1] = names[i]
    reply[#reply + 1] = versions[tonumber(numbers[i])]
end
return reply
"""

# ARGV: 5 after, 6 through, 7 limit, 8 how many entries to look at, 9 number of kinds, the kinds, number of tenants or
# -1 for all, the tenants, then the stream ids.
# The reply: end of the log, the position looked through to, the positions that matched, the ids of their streams,
# for each event: the index of its stream, version, record; and up to which versions the streams are truncated.
_READ_LOG = (
    _TENANT
    + """
local ROOM = 16777216
local last = math.min(position, tonumber(ARGV[6]))
local at, limit, window = tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[8])
local kinds_count = tonumber(ARGV[9])
local tenants_count = tonumber(ARGV[10 + kinds_count])
local first_id = 11 + kinds_count + math.max(tenants_count, 0)
local function set_of(from, to)
    local set = {}
    for i = from, to do set[ARGV[i]] = true end
    return set
end
local kinds, tenants, wanted = nil, nil, nil
if kinds_count > 0 then kinds = set_of(10, 9 + kinds_count) end
if tenants_count >= 0 then tenants = set_of(11 + kinds_count, first_id - 1) end
if #ARGV >= first_id then wanted = set_of(first_id, #ARGV) end
local function passes_filter(name)
    local tenant, id = tenant_and_id(name)
    return (not kinds or kinds[string.match(id, '^[^-]*')]) and (not tenants or tenants[tenant])
        and (not wanted or wanted[id])
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
    if numbers[i] > 0 and not index_of[numbers[i]] then
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
        passes[i] = passes_filter(names[i])
    end
end
local picked, first, amount, size = {}, {}, {}, 0
local looked = at
for i = 1, count do
    if #picked >= limit or size >= ROOM then break end
    local stream = index_of[numbers[i]]
    if stream and passes[stream] and versions[i] > truncated[stream] then
        picked[#picked + 1] = i
        size = size + sizes[i]
        first[stream] = first[stream] or versions[i]
        amount[stream] = versions[i] - first[stream] + 1
    end
    looked = at + i
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
return {position, looked, positions, names, events, truncated}
"""
)

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

# ARGV: 5 limit, 6 the bound that the names of streams are above. The reply: the tenants that have streams. One step for
# each tenant, however many streams it has.
_TENANTS = (
    _TENANT
    + """
local reply, bound = {}, ARGV[6]
while #reply < tonumber(ARGV[5]) do
    local name = redis.call('ZRANGEBYLEX', base .. ':names', bound, '(\\1', 'LIMIT', 0, 1)[1]
    if not name then break end
    local tenant = tenant_and_id(name)
    reply[#reply + 1] = tenant
    bound = '(\\0' .. tenant .. '\\1'
end
return reply
"""
)

# ARGV: 6 through, 7 limit. The reply: snapshots, newest first.
_READ_SNAPSHOTS = (
    ONE_STREAM
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

LOAD = script(OPENED + _LOAD)
MOVED = script(OPENED + _MOVED)
READ_LOG = script(OPENED + _READ_LOG)
READ_SNAPSHOTS = script(OPENED + _READ_SNAPSHOTS)
READ_STREAM = script(OPENED + _READ_STREAM)
STATISTICS = script(OPENED + _STATISTICS)
STREAMS = script(OPENED + _STREAMS)
TENANTS = script(OPENED + _TENANTS)

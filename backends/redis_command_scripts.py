"""The scripts about remembered commands, and what those that append and truncate have of them."""

from __future__ import annotations

from backends.redis_scripts import ONE_STREAM, OPENED, REFUSED, script

# The order is by a counter of the whole journal: versions and times tell apart neither the rejections of one version
# nor what one group stores.
_ORDER = """
local function order_key(number) return base .. ':command-order:' .. text(number) end
"""

# For the script that appends. A given outcome starts with fingerprint, outcome id and time of issue; in front of it
# are stored the version and the time.
REMEMBERING = (
    _ORDER
    + """
local has_commands = count_of_commands > 0
local remembered_before = tonumber(journal[7])
local sequence = remembered_before
local outcomes = {}
if has_commands then
    local fields = {}
    for i = 1, count_of_commands do
        local at = first_command + 3 * (i - 1)
        fields[i] = number[tonumber(ARGV[at])] .. ':' .. ARGV[at + 1]
    end
    outcomes = call_sliced('HMGET', base .. ':commands', fields, 1, count_of_commands)
end
-- What this group stores: outcomes by stream and id, the same as fields and values, and by stream scores and ids.
local told, told_fields, told_order = {}, {}, {}

-- A command of a write: stream and id, what was given of it, and the outcome that is stored already.
local function command_of(write, index)
    local place = write[6] + index
    local at = first_command + 3 * (place - 1)
    local key = ARGV[at] .. ':' .. ARGV[at + 1]
    return key, ARGV[at + 2], outcomes[place] or told[key], ARGV[at + 1]
end

-- Why a write's commands cannot be remembered, as the reply has it, or nil. `mine` has those of the writes before it
-- in its batch.
local function refused_command(index, write, mine)
    local forgotten = head[write[1]] and unpacked('>I7', head[write[1]], 36) or 0
    for i = 1, write[5] do
        local key, given, found = command_of(write, i)
        if found or mine[key] then return {5, index, i - 1} end
        mine[key] = true
        local issued_at = unpacked('>I8', given, 33)
        if issued_at > 0 and issued_at <= forgotten then return {6, index, i - 1} end
    end
end

-- The reply for a batch without events that is stored as it is, or nil.
local function repeated_commands(batch)
    local reply_of_batch, is_repeated = {1, 0}, false
    for i, write in ipairs(batch) do
        if write[4] > 0 then return nil end
        local current = version[write[1]]
        for k = 1, write[5] do
            local _, given, found = command_of(write, k)
            if not found or sub(found, 32, 47) ~= sub(given, 17, 32) then return nil end
            current, is_repeated = unpacked('>I7', found), true
        end
        reply_of_batch[i + 2] = current
    end
    return is_repeated and reply_of_batch
end

local function remember(write)
    local stream = write[1]
    if number[stream] == 0 then number_anew(stream) end
    local order = told_order[stream] or {}
    told_order[stream] = order
    local place = pack('>I7', version[stream]) .. stamp
    for i = 1, write[5] do
        local key, given, _, id = command_of(write, i)
        local record = place .. given
        sequence = sequence + 1
        told[key] = record
        told_fields[#told_fields + 1] = number[stream] .. ':' .. id
        told_fields[#told_fields + 1] = record
        order[#order + 1] = sequence .. ''
        order[#order + 1] = id
        bytes = bytes + #id + #record
    end
end
"""
)

# For the scripts that change one stream. Versions and times rise in the order of storing, so what is to be forgotten
# stands at the front of it. `room` keeps large outcomes from being in memory all at once.
FORGETTING = (
    _ORDER
    + """
local function command_fields(ids)
    local fields = {}
    for i = 1, #ids do fields[i] = text(number) .. ':' .. ids[i] end
    return fields
end
-- Which of the oldest outcomes are doomed, at most `limit` of them: their ids, their bytes, the greatest time at which
-- one was issued, and whether there may be more.
local function oldest_commands(limit, is_doomed)
    local ids, bytes, issued, room, step, largest = {}, 0, 0, 16777216, 8, 1
    while #ids < limit and room > 0 do
        local some = redis.call('ZRANGE', order_key(number), #ids, math.min(#ids + step, limit) - 1)
        if #some == 0 then return ids, bytes, issued, false end
        local stored = redis.call('HMGET', base .. ':commands', unpack(command_fields(some)))
        for i = 1, #some do
            if not stored[i] then return redis.error_reply('DAMAGED the outcome of a command is missing') end
            local at, time = struct.unpack('>I7I8', stored[i])
            if not is_doomed(at, time) then return ids, bytes, issued, false end
            -- An id that carries a later time than it was stored at would keep every new command out.
            issued = math.max(issued, math.min(struct.unpack('>I8', stored[i], 48), math.floor(time / 1000)))
            ids[#ids + 1] = some[i]
            bytes = bytes + #some[i] + #stored[i]
            room, largest = room - #stored[i], math.max(largest, #stored[i])
        end
        step = math.max(1, math.min(100, math.floor(room / largest)))
    end
    return ids, bytes, issued, true
end
local function remove_commands(ids)
    write_sliced('HDEL', base .. ':commands', command_fields(ids))
    write_sliced('ZREM', order_key(number), ids)
end
"""
)

# ARGV: 5 number of lookups, then their stream ids, then for each: command id, how many ids at most are wanted.
# The reply is, for as many of the lookups as one reply may hold: outcome, ids, 1 if these are all, forgotten.
_FIND_COMMANDS = (
    _ORDER
    + """
local count = tonumber(ARGV[5])
local heads = call_sliced('HMGET', base .. ':heads', ARGV, 6, 5 + count)
local reply, budget, room = {}, 10000, 16777216
for i = 1, count do
    if budget <= 0 or room <= 0 then break end
    local id, recent = ARGV[4 + count + 2 * i], tonumber(ARGV[5 + count + 2 * i])
    local outcome, ids, is_whole, forgotten = false, {}, recent > 0, 0
    if heads[i] then
        local number, _, _, _, _, before = struct.unpack(HEAD, heads[i])
        forgotten = before
        outcome = redis.call('HGET', base .. ':commands', text(number) .. ':' .. id)
        if outcome then room = room - #outcome end
        if recent > 0 then
            is_whole = redis.call('ZCARD', order_key(number)) <= recent
            if is_whole then ids = redis.call('ZRANGE', order_key(number), 0, -1) end
            budget = budget - #ids
        end
    end
    reply[i] = {outcome, ids, is_whole and 1 or 0, forgotten}
end
return reply
"""
)

# ARGV: 6 how many of the newest to keep, 7 microseconds before which the others were stored, or '' for any time,
# 8 how many at most. The reply: how many were forgotten, 1 if more are to be.
_FORGET_COMMANDS = (
    ONE_STREAM
    + FORGETTING
    + """
if number == 0 then return {0, 0} end
local superfluous = redis.call('ZCARD', order_key(number)) - tonumber(ARGV[6])
if superfluous <= 0 then return {0, 0} end
local limit, before = math.min(superfluous, tonumber(ARGV[8])), tonumber(ARGV[7])
local ids, size, issued, is_cut = oldest_commands(limit, function(_, time) return not before or time < before end)
if ids.err then return ids end
if #ids == 0 then return {0, 0} end
forgotten = math.max(forgotten, issued)
save_head()
remove_commands(ids)
redis.call('HSET', base, 'bytes', text(tonumber(journal[6]) - size))
return {#ids, is_cut and #ids < superfluous and 1 or 0}
"""
)

FIND_COMMANDS = script(OPENED + _FIND_COMMANDS)
FORGET_COMMANDS = script(OPENED + REFUSED + _FORGET_COMMANDS)

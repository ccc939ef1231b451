"""The script that appends a group of batches: all checks, then all writes."""

from __future__ import annotations

from backends.redis_command_scripts import REMEMBERING
from backends.redis_scripts import OPENED, script

# ARGV: 5 '1' if no event id is there twice, 6 plan, 7 number of streams, 8 number of commands, then the streams' ids,
# for each command its stream, id and outcome without version and time, then the records without position and time.
# The plan is, for each write: stream, expected version, epoch, number of events, number of commands, 1 if it ends its
# batch.
# The reply is, for each batch: 0 or 1 (stored now, or before), position, a version for each write;
#     2, write, version, for a conflict; 3, write, epoch, for a fenced writer; 4, write, event, for a repeated id;
#     5, write, command, for one that is remembered already; 6, write, command, for one that may have been forgotten;
#     7, 0, 0, for a journal that is fenced, behind all outcomes then: why.
_GIVEN = """
local call, pack, unpacked, sub = redis.call, struct.pack, struct.unpack, string.sub
local plan, count = ARGV[6], tonumber(ARGV[7])
local first_command = 9 + count
local count_of_commands = tonumber(ARGV[8])
local first = first_command - 1 + 3 * count_of_commands
local total = #ARGV - first
local head, number, version = {}, {}, {}
if count > 0 then
    head = call_sliced('HMGET', base .. ':heads', ARGV, 9, 8 + count)
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

local function number_anew(stream)
    streams = streams + 1
    number[stream] = streams
    created[#created + 1] = streams .. ''
    created[#created + 1] = ARGV[8 + stream]
end
"""

_APPEND = """
local function store(stream, events)
    if number[stream] == 0 then number_anew(stream) end
    local own, current, row = number[stream], version[stream], rows[stream]
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
local function refusal(index, write, mine)
    local stream, expected, owner = write[1], write[2], write[3]
    local current = version[stream]
    if owner >= 0 and head[stream] then
        local epoch = unpacked('>I7', head[stream], 22)
        if owner < epoch then return {3, index, epoch} end
    end
    if write[5] > 0 then
        local refused = refused_command(index, write, mine)
        if refused then return refused end
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
    local answer = has_repeats and repetition(batch) or has_commands and repeated_commands(batch)
    if journal[8] and (not answer or answer[1] ~= 1) then answer = {7, 0, 0} end
    local checked, mine = 0, {}
    while not answer and checked < #batch do
        local write = batch[checked + 1]
        answer = refusal(checked, write, mine)
        if not answer then
            -- What follows in the batch sees the stream as this write leaves it.
            version[write[1]] = version[write[1]] + write[4]
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
        if write[4] > 0 then store(write[1], write[4]) end
        if write[5] > 0 then remember(write) end
        reply[summary + i] = version[write[1]]
    end
    reply[summary] = position > before and position or 0
    replied = summary + #batch
end

local offset, batch, command = 1, {}, 0
while offset <= #plan do
    local stream, expected, owner, events, commands, ends
    stream, expected, owner, events, commands, ends, offset = unpacked('>I4i8i8I4I4B', plan, offset)
    -- Most batches are one write that is as its writer expects.
    if ends == 1 and #batch == 0 and events > 0 and commands == 0 and owner < 0 and not has_repeats
        and not journal[8] and (expected == version[stream] or expected == -1) then
        store(stream, events)
        reply[replied + 1], reply[replied + 2], reply[replied + 3] = 0, position, version[stream]
        replied = replied + 3
    else
        batch[#batch + 1] = {stream, expected, owner, events, commands, command}
        command = command + commands
        if ends == 1 then
            decide(batch)
            batch = {}
        end
    end
end
if position == start and sequence == remembered_before then
    if journal[8] then reply[replied + 1] = cjson.decode(journal[8]).reason end
    return reply
end

-- Nothing above has written, nothing below is refused. A stream's row is its one record, or a table of several.
local heads, names = {}, {}
local none, zero = string.rep('\\0', 42), string.rep('\\0', 7)
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
        heads[#heads + 1] = ARGV[8 + stream]
        heads[#heads + 1] = pack('>I7I7', own, version[stream]) .. sub(before, 15)
        if sub(before, 8, 14) == zero then
            names[#names + 1] = '0'
            names[#names + 1] = ARGV[8 + stream]
        end
    end
end
for stream, order in pairs(told_order) do
    write_sliced('ZADD', order_key(number[stream]), order)
    -- One that remembers commands has a head, and no name before it has events or snapshots.
    if not head[stream] and not rows[stream] then
        heads[#heads + 1] = ARGV[8 + stream]
        heads[#heads + 1] = pack('>I7', number[stream]) .. sub(none, 8)
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
if sequence > remembered_before then
    write_sliced('HSET', base .. ':commands', told_fields)
    call('HSET', base, 'commands', text(sequence))
end
-- Only a hint to readers: a user who may not publish stores all the same. A channel is one for all databases of a
-- server, so it is said whose news it is.
if position > start then redis.pcall('PUBLISH', base .. ':news', text(position) .. ' ' .. journal[1]) end
return reply
"""

APPEND = script(OPENED + _GIVEN + REMEMBERING + _APPEND)

"""The scripts of copies, which read and store records as they are, and of the fence that keeps writers out."""

from __future__ import annotations

from backends.redis_scripts import ONE_STREAM, OPENED, REFUSED, script

# ARGV: 5 '1', 6 after, 7 limit: streams by number; or 5 '2', then stream ids. The reply is, for each: number, id,
# version, truncated, epoch, forgotten, number of commands, the oldest and the newest of them, then the head of each
# snapshot (version and time).
_STREAMS = """
local function order_key(number) return base .. ':command-order:' .. text(number) end
local names = {}
if ARGV[5] == '1' then
    local numbers = {}
    local last = math.min(tonumber(journal[4]), tonumber(ARGV[6]) + tonumber(ARGV[7]))
    for number = tonumber(ARGV[6]) + 1, last do numbers[#numbers + 1] = text(number) end
    if #numbers > 0 then names = call_sliced('HMGET', base .. ':numbers', numbers, 1, #numbers) end
else
    for i = 6, #ARGV do names[#names + 1] = ARGV[i] end
end
local reply = {}
if #names == 0 then return reply end
for i = 1, #names do
    if not names[i] then return redis.error_reply('DAMAGED a stream number has no id') end
end
local heads = call_sliced('HMGET', base .. ':heads', names, 1, #names)
for i = 1, #names do
    if heads[i] then
        local number, version, truncated, epoch, newest, forgotten = struct.unpack(HEAD, heads[i])
        local count = redis.call('ZCARD', order_key(number))
        local first, last, snapshots = '', '', {}
        if count > 0 then
            first = redis.call('ZRANGE', order_key(number), 0, 0)[1]
            last = redis.call('ZRANGE', order_key(number), -1, -1)[1]
        end
        if newest > 0 then
            local key = base .. ':snapshots:' .. text(number)
            for _, each in ipairs(redis.call('HKEYS', key)) do
                snapshots[#snapshots + 1] = string.sub(redis.call('HGET', key, each), 1, 16)
            end
        end
        reply[#reply + 1] = {number, names[i], version, truncated, epoch, forgotten, count, first, last, snapshots}
    end
end
return reply
"""

# ARGV: 5 number, 6 id or '', 7 limit. The reply: ids and outcomes, in turn.
_COMMANDS = """
local order = base .. ':command-order:' .. ARGV[5]
local from = 0
if ARGV[6] ~= '' then
    local rank = redis.call('ZRANK', order, ARGV[6])
    if rank then from = rank + 1 end
end
local ids = redis.call('ZRANGE', order, from, from + tonumber(ARGV[7]) - 1)
local reply, room = {}, 16777216
for i = 1, #ids do
    if room <= 0 then break end
    local stored = redis.call('HGET', base .. ':commands', ARGV[5] .. ':' .. ids[i])
    if not stored then return redis.error_reply('DAMAGED the outcome of a command is missing') end
    room = room - #stored
    reply[2 * i - 1], reply[2 * i] = ids[i], stored
end
return reply
"""

# ARGV: 5 number. The reply: the stream's id, then its snapshots.
_SNAPSHOTS = """
local reply = {redis.call('HGET', base .. ':numbers', ARGV[5])}
local key = base .. ':snapshots:' .. ARGV[5]
for _, each in ipairs(redis.call('HKEYS', key)) do reply[#reply + 1] = redis.call('HGET', key, each) end
return reply
"""

# The reply: up to where this is a copy, where the log ends, how many streams there are.
_COPIED = """
return {redis.call('HGET', base, 'copied'), position, tonumber(journal[4])}
"""

# ARGV: 5 after, 6 the position at which the log ends then, 7 number of streams, then their ids, then for each: up to
# which version its events are removed first, or 0; then for each event: its stream, its version, its record, whole.
# The reply: 1, or 0 if the journal is not a copy up to there.
_RESTORE_EVENTS = """
local after, upto, count = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local copied = redis.call('HGET', base, 'copied')
if position ~= after or (copied and copied ~= ARGV[5])
    or (not copied and (after > 0 or tonumber(journal[4]) > 0)) then return 0 end
local ids = {}
for i = 1, count do ids[i] = ARGV[7 + i] end
local found = {}
if count > 0 then found = call_sliced('HMGET', base .. ':heads', ids, 1, count) end
local streams, bytes, clock = tonumber(journal[4]), tonumber(journal[6]), tonumber(journal[5])
local heads, created, rows = {}, {}, {}
for i = 1, count do
    local number, version, truncated, epoch, newest, forgotten = 0, 0, 0, 0, 0, 0
    if found[i] then number, version, truncated, epoch, newest, forgotten = struct.unpack(HEAD, found[i]) end
    if number == 0 then
        streams = streams + 1
        number = streams
        created[#created + 1] = text(number)
        created[#created + 1] = ids[i]
    end
    local through = tonumber(ARGV[7 + count + i])
    heads[i] = {number, version, truncated, epoch, newest, forgotten, through}
    rows[i] = {}
end
local log, places = {}, {}
local written = after
for i = 8 + 2 * count, #ARGV, 3 do
    local stream, version, record = tonumber(ARGV[i]), tonumber(ARGV[i + 1]), ARGV[i + 2]
    local at, time = struct.unpack('>I8I8', record)
    if at > written + 1 then log[#log + 1] = string.rep('\\0', ENTRY * (at - written - 1)) end
    log[#log + 1] = struct.pack('>I6I6I4', heads[stream][1], version, #record)
    written = at
    rows[stream][#rows[stream] + 1] = record
    heads[stream][2] = version
    places[#places + 1] = string.sub(record, 17, 32)
    places[#places + 1] = text(at)
    bytes, clock = bytes + #record, math.max(clock, time)
end
if upto > written then log[#log + 1] = string.rep('\\0', ENTRY * (upto - written)) end

-- Nothing above has written, nothing below is refused.
local new_heads, names = {}, {}
for i = 1, count do
    local head, key = heads[i], base .. ':events:' .. text(heads[i][1])
    if head[7] > head[3] then
        local removed = redis.call('LRANGE', key, 0, -1)
        for k = 1, #removed do
            bytes = bytes - #removed[k]
            removed[k] = string.sub(removed[k], 17, 32)
        end
        redis.call('LTRIM', key, #removed, -1)
        write_sliced('HDEL', base .. ':ids', removed)
        head[3] = head[7]
    end
    write_sliced('RPUSH', key, rows[i])
    new_heads[#new_heads + 1] = ids[i]
    new_heads[#new_heads + 1] = struct.pack(HEAD, head[1], head[2], head[3], head[4], head[5], head[6])
    names[#names + 1] = '0'
    names[#names + 1] = ids[i]
end
local entries, from = table.concat(log), 0
while after + from < upto do
    local at = after + from
    local some = math.min(upto - at, CHUNK - at % CHUNK)
    redis.call('APPEND', base .. ':log:' .. text((at - at % CHUNK) / CHUNK),
        string.sub(entries, from * ENTRY + 1, (from + some) * ENTRY))
    from = from + some
end
write_sliced('HSET', base .. ':ids', places)
write_sliced('HSET', base .. ':heads', new_heads)
write_sliced('ZADD', base .. ':names', names)
write_sliced('HSET', base .. ':numbers', created)
redis.call('HSET', base, 'position', text(upto), 'streams', text(streams), 'clock', text(clock), 'bytes', text(bytes),
    'copied', text(upto))
redis.pcall('PUBLISH', base .. ':news', text(upto) .. ' ' .. journal[1])
return 1
"""

# ARGV: 6 truncated, 7 epoch, 8 forgotten, 9 '1' to remove what is remembered first, 10 number of commands, then id and
# outcome of each; then '' to leave the snapshots, or their number, then version and snapshot of each.
_RESTORE_STREAM = (
    ONE_STREAM
    + """
local function order_key(number) return base .. ':command-order:' .. text(number) end
local bytes = tonumber(journal[6])
epoch, forgotten = tonumber(ARGV[7]), tonumber(ARGV[8])
if number == 0 then save_head() end
local through = tonumber(ARGV[6])
if through > truncated then
    local key = base .. ':events:' .. text(number)
    local count = math.min(through, version) - truncated
    if count > 0 then
        local removed = redis.call('LRANGE', key, 0, count - 1)
        for k = 1, #removed do
            bytes = bytes - #removed[k]
            removed[k] = string.sub(removed[k], 17, 32)
        end
        redis.call('LTRIM', key, count, -1)
        write_sliced('HDEL', base .. ':ids', removed)
    end
    truncated, version = through, math.max(version, through)
end
if ARGV[9] == '1' then
    local ids = redis.call('ZRANGE', order_key(number), 0, -1)
    local fields = {}
    for i = 1, #ids do
        fields[i] = text(number) .. ':' .. ids[i]
        bytes = bytes - #ids[i] - redis.call('HSTRLEN', base .. ':commands', fields[i])
    end
    write_sliced('HDEL', base .. ':commands', fields)
    write_sliced('ZREM', order_key(number), ids)
end
local sequence, commands = tonumber(journal[7]), tonumber(ARGV[10])
local fields, order = {}, {}
for i = 1, commands do
    local id, outcome = ARGV[9 + 2 * i], ARGV[10 + 2 * i]
    sequence = sequence + 1
    fields[#fields + 1] = text(number) .. ':' .. id
    fields[#fields + 1] = outcome
    order[#order + 1] = text(sequence)
    order[#order + 1] = id
    bytes = bytes + #id + #outcome
end
write_sliced('HSET', base .. ':commands', fields)
write_sliced('ZADD', order_key(number), order)
local at = 11 + 2 * commands
if ARGV[at] ~= '' then
    local key = base .. ':snapshots:' .. text(number)
    local gone = redis.call('HKEYS', key)
    for i = 1, #gone do bytes = bytes - redis.call('HSTRLEN', key, gone[i]) end
    write_sliced('HDEL', key, gone)
    newest = 0
    for i = at + 1, #ARGV, 2 do
        redis.call('HSET', key, ARGV[i], ARGV[i + 1])
        bytes, newest = bytes + #ARGV[i + 1], math.max(newest, tonumber(ARGV[i]))
    end
    redis.call('HINCRBY', base, 'snapshots', text(tonumber(ARGV[at]) - #gone))
end
save_head()
if version > 0 or newest > 0 then redis.call('ZADD', base .. ':names', '0', ARGV[5]) end
redis.call('HSET', base, 'bytes', text(bytes), 'commands', text(sequence))
return 1
"""
)

# ARGV: 5 the fence. The reply: the one that is there then.
_FENCE = """
if not journal[8] then redis.call('HSET', base, 'fence', ARGV[5]) end
return journal[8] or ARGV[5]
"""

ARCHIVED_STREAMS = script(OPENED + _STREAMS)
ARCHIVED_COMMANDS = script(OPENED + _COMMANDS)
ARCHIVED_SNAPSHOTS = script(OPENED + _SNAPSHOTS)
COPIED = script(OPENED + _COPIED)
RESTORE_EVENTS = script(OPENED + REFUSED + _RESTORE_EVENTS)
RESTORE_STREAM = script(OPENED + REFUSED + _RESTORE_STREAM)
FENCE = script(OPENED + _FENCE)
FENCED = script(OPENED + "\nreturn journal[8]\n")

"""The scripts that change one stream otherwise than by appending: truncation, snapshots."""

from __future__ import annotations

from backends.redis_command_scripts import FORGETTING
from backends.redis_scripts import ONE_STREAM, OPENED, REFUSAL, REFUSED, script

# Of which schema the stream's snapshot of a version is: false where there is none, or it is damaged. It is in the
# snapshot, which comes as a whole, and may have megabytes: read no more of them than is needed.
_SCHEMA_OF = """
local snapshots, schemas = base .. ':snapshots:' .. text(number), {}
local function schema_in(packed)
    if not packed or #packed < 30 then return false end
    return string.sub(packed, 31, 30 + struct.unpack('>H', packed, 25))
end
local function schema_of(each)
    if schemas[each] == nil then schemas[each] = schema_in(redis.call('HGET', snapshots, text(each))) end
    return schemas[each]
end
"""

# ARGV: 6 through, 7 how many events at most, 8 reason, 9 epoch or -1, 10 what stands before the tenant's names, 11 the
# tenant, 12 the stream's kind, 13 '' or '=' and the schema of which a snapshot must be there, then the checkpoints that
# do not want this stream's events, whatever they say of kinds and tenants. The reply: how many were removed, 1 if more
# are to be; or -1, epoch, for a fenced writer; or -2, the last position that would go, and the name and the value of a
# checkpoint that stands before it, and may want the event, or has one of the stream's among its dead letters; or -3,
# the last version that would go, without a snapshot.
_TRUNCATE = (
    REFUSAL
    + ONE_STREAM
    + FORGETTING
    + _SCHEMA_OF
    + """
if tonumber(ARGV[9]) >= 0 and tonumber(ARGV[9]) < epoch then return {-1, epoch} end
local count = math.min(tonumber(ARGV[6]), version) - truncated
if count <= 0 then return {0, 0} end
-- Whoever may not use it is refused here, and not half-way through. It cannot change a hash.
local right = redis.pcall('LTRIM', base, 0, -1)
if lacks_right(right) then return redis.error_reply('NOPERM ' .. right.err) end
-- Here and not before: a projection that begins in between would lose events.
local last = redis.call('LRANGE', base .. ':events:' .. text(number), count - 1, count - 1)[1]
if not last then return redis.error_reply('DAMAGED events of the stream are missing') end
last = struct.unpack('>I7', last, 2)
local indifferent = {}
for i = 14, #ARGV do indifferent[ARGV[i]] = true end
local function may_have(all, one)
    if type(all) ~= 'table' or #all == 0 then return true end
    for i = 1, #all do
        if all[i] == one then return true end
    end
    return false
end
local stream_id = string.sub(ARGV[5], #ARGV[10] + 1)
-- Position, stream, and at the end its tenant. What cannot be read is the caller's to complain of.
local function has_letter(letters)
    if type(letters) ~= 'table' then return true end
    for i = 1, #letters do
        local letter = letters[i]
        if type(letter) ~= 'table' or type(letter[1]) ~= 'number' then return true end
        if letter[1] <= last and letter[2] == stream_id and (letter[8] or '') == ARGV[11] then return true end
    end
    return false
end
for _, field in ipairs(redis.call('HKEYS', base .. ':checkpoints')) do
    local is_shared = string.sub(field, 1, 1) ~= string.char(0)
    local is_own = ARGV[10] ~= '' and string.sub(field, 1, #ARGV[10]) == ARGV[10]
    if (is_shared or is_own) and not indifferent[field] then
        local found = redis.call('HGET', base .. ':checkpoints', field)
        local is_read, state = pcall(cjson.decode, string.sub(found, 41))
        if not is_read or type(state) ~= 'table' or has_letter(state.letters)
            or struct.unpack('>I7', found, 10) < last and may_have(state.kinds, ARGV[12])
            and may_have(state.tenants, ARGV[11]) then
            return {-2, last, field, found}
        end
    end
end
local stands = ARGV[13] == ''
for _, each in ipairs(versions_falling(snapshots)) do
    if stands or each < truncated + count then break end
    stands = schema_of(each) == string.sub(ARGV[13], 2)
end
if not stands then return {-3, truncated + count} end
local more = 0
if count > tonumber(ARGV[7]) then
    count = tonumber(ARGV[7])
    more = 1
end
local key = base .. ':events:' .. text(number)
local records = redis.call('LRANGE', key, 0, count - 1)
if #records ~= count then return redis.error_reply('DAMAGED events of the stream are missing') end
-- Outcomes go no later than the events they came with. Where there are many, they go first, by themselves.
local commands, size, issued, is_cut =
    oldest_commands(tonumber(ARGV[7]), function(at) return at <= truncated + count end)
if commands.err then return commands end
forgotten = math.max(forgotten, issued)
local ids, bytes = {}, tonumber(journal[6]) - size
if is_cut then
    save_head()
    remove_commands(commands)
    redis.call('HSET', base, 'bytes', text(bytes))
    return {0, 1}
end
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
remove_commands(commands)
write_sliced('HDEL', base .. ':ids', ids)
redis.call('HSET', base, 'bytes', text(bytes))
return {count, more}
"""
)

# ARGV: 6 version, 7 snapshot, 8 how many to keep, 9 epoch or 0. The reply: 0, or the epoch that fences the writer;
# and 1 if the snapshot is there now.
_SAVE_SNAPSHOT = (
    ONE_STREAM
    + """
if tonumber(ARGV[9]) > 0 and tonumber(ARGV[9]) < epoch then return {epoch, 0} end
if number == 0 then save_head() end
"""
    + _SCHEMA_OF
    + """
-- Where events were removed, other code has nothing but its newest snapshot from there on: that stays.
local function stands(each) return truncated > 0 and each >= truncated end
local bytes, added, own, is_there = tonumber(journal[6]), 0, tonumber(ARGV[6]), 0
local there = redis.call('HSTRLEN', snapshots, ARGV[6])
if there == 0 or not stands(own) or not schema_of(own) or schema_of(own) == schema_in(ARGV[7]) then
    bytes = bytes + #ARGV[7] - there
    added = redis.call('HSET', snapshots, ARGV[6], ARGV[7])
    schemas[own] = schema_in(ARGV[7])
    is_there = 1
end
local versions = versions_falling(snapshots)
local function is_newest_of_schema(at)
    local schema = schema_of(versions[at])
    if not schema then return false end
    -- Those that were read first: nearly always one of them is of this schema, and the others need not be.
    for i = 1, at - 1 do
        if schemas[versions[i]] == schema then return false end
    end
    for i = 1, at - 1 do
        if schema_of(versions[i]) == schema then return false end
    end
    return true
end
newest = 0
for i = 1, #versions do
    if i > tonumber(ARGV[8]) and not (stands(versions[i]) and is_newest_of_schema(i)) then
        bytes = bytes - redis.call('HSTRLEN', snapshots, text(versions[i]))
        redis.call('HDEL', snapshots, text(versions[i]))
        added = added - 1
        if versions[i] == own then is_there = 0 end
    elseif newest == 0 then
        newest = versions[i]
    end
end
save_head()
if newest > 0 then redis.call('ZADD', base .. ':names', '0', ARGV[5]) end
redis.call('HSET', base, 'bytes', text(bytes))
redis.call('HINCRBY', base, 'snapshots', text(added))
return {0, is_there}
"""
)

# ARGV: 6 through. The reply: how many were removed.
_DELETE_SNAPSHOTS = (
    ONE_STREAM
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

DELETE_SNAPSHOTS = script(OPENED + REFUSED + _DELETE_SNAPSHOTS)
SAVE_SNAPSHOT = script(OPENED + REFUSED + _SAVE_SNAPSHOT)
TRUNCATE = script(OPENED + REFUSED + _TRUNCATE)

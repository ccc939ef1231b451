"""The scripts about ownership: leases of processes, and which of them has claimed which streams.

A lease only says who may claim. What keeps an earlier owner from writing are the epochs in the heads of streams.
"""

from __future__ import annotations

from backends.redis_scripts import OPENED, REFUSED, script

# Leases run by the server's own clock. It may be set: whoever claims has `lapsed` against that.
_LEASES = """
local LEASE = '>I7I7I8I8I4'
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local function lease_of(owner)
    local value = redis.call('HGET', base .. ':owners', owner)
    if not value then return nil end
    local renewals, duration, ends_at, started_at, length, at = struct.unpack(LEASE, value)
    return {
        renewals = renewals, duration = duration, ends_at = ends_at, started_at = started_at,
        name = string.sub(value, at, at + length - 1), report = string.sub(value, at + length)
    }
end
"""

# ARGV: 5 owner, 6 name, 7 microseconds that the lease runs, 8 report.
_RENEW = (
    _LEASES
    + """
local before = lease_of(ARGV[5])
local renewals, started_at = 0, now
if before then
    renewals, started_at = before.renewals, before.started_at
else
    -- Of processes that ended without a word, those are kept a day for people to see.
    for _, owner in ipairs(redis.call('HKEYS', base .. ':owners')) do
        if lease_of(owner).ends_at + 86400000000 < now then redis.call('HDEL', base .. ':owners', owner) end
    end
end
local duration = tonumber(ARGV[7])
local head = struct.pack(LEASE, renewals + 1, duration, now + duration, started_at, #ARGV[6])
redis.call('HSET', base .. ':owners', ARGV[5], head .. ARGV[6] .. ARGV[8])
return renewals + 1
"""
)

# ARGV: 5 owner.
_END = """
return redis.call('HDEL', base .. ':owners', ARGV[5])
"""

# ARGV: 5 number of claims, then their stream ids, then for each: owner or '', number of renewals after which the
# other's lease has run out, or -1.
# The reply is, for each: the epoch, or owner, name, renewals, duration and what remains of it in microseconds.
_CLAIM = (
    _LEASES
    + """
local count = tonumber(ARGV[5])
local leases = {}
local function running_lease(owner)
    if leases[owner] == nil then
        local found = lease_of(owner)
        leases[owner] = found and found.ends_at > now and found or false
    end
    return leases[owner]
end
for i = 1, count do
    local owner = ARGV[4 + count + 2 * i]
    if owner ~= '' and not running_lease(owner) then return redis.error_reply('LEASELOST') end
end
local found = call_sliced('HMGET', base .. ':heads', ARGV, 6, 5 + count)
local found_holders = call_sliced('HMGET', base .. ':holders', ARGV, 6, 5 + count)
local heads, holders, changed, reply = {}, {}, {}, {}
for i = 1, count do
    local id = ARGV[5 + i]
    heads[id], holders[id] = heads[id] or found[i], holders[id] or found_holders[i]
end
local streams = tonumber(journal[4])
local created = {}
for i = 1, count do
    local id, owner, lapsed = ARGV[5 + i], ARGV[4 + count + 2 * i], tonumber(ARGV[5 + count + 2 * i])
    local holder = holders[id]
    local held = owner ~= '' and holder and holder ~= owner and running_lease(holder)
    if held and held.renewals ~= lapsed then
        reply[i] = {holder, held.name, held.renewals, held.duration, held.ends_at - now}
    else
        local number, version, truncated, epoch, newest, forgotten = 0, 0, 0, 0, 0, 0
        if heads[id] then number, version, truncated, epoch, newest, forgotten = struct.unpack(HEAD, heads[id]) end
        if number == 0 then
            streams = streams + 1
            number = streams
            created[#created + 1] = text(number)
            created[#created + 1] = id
        end
        heads[id] = struct.pack(HEAD, number, version, truncated, epoch + 1, newest, forgotten)
        holders[id] = owner ~= '' and owner
        changed[id] = true
        reply[i] = epoch + 1
    end
end

local new_heads, new_holders, held, free = {}, {}, {}, {}
for id in pairs(changed) do
    new_heads[#new_heads + 1] = id
    new_heads[#new_heads + 1] = heads[id]
    if holders[id] then
        new_holders[#new_holders + 1] = id
        new_holders[#new_holders + 1] = holders[id]
        held[#held + 1] = '0'
        held[#held + 1] = id
    else
        free[#free + 1] = id
    end
end
write_sliced('HSET', base .. ':heads', new_heads)
write_sliced('HSET', base .. ':numbers', created)
if #created > 0 then redis.call('HSET', base, 'streams', text(streams)) end
write_sliced('HSET', base .. ':holders', new_holders)
write_sliced('ZADD', base .. ':held', held)
write_sliced('HDEL', base .. ':holders', free)
write_sliced('ZREM', base .. ':held', free)
return reply
"""
)

# ARGV: 5 owner, 6 number of streams, then their ids, then their epochs.
_RELEASE = """
local count = tonumber(ARGV[6])
local heads = call_sliced('HMGET', base .. ':heads', ARGV, 7, 6 + count)
local holders = call_sliced('HMGET', base .. ':holders', ARGV, 7, 6 + count)
local free = {}
for i = 1, count do
    if holders[i] == ARGV[5] and heads[i] then
        local _, _, _, epoch = struct.unpack(HEAD, heads[i])
        if epoch == tonumber(ARGV[6 + count + i]) then free[#free + 1] = ARGV[6 + i] end
    end
end
write_sliced('HDEL', base .. ':holders', free)
write_sliced('ZREM', base .. ':held', free)
return #free
"""

# The reply is, for each: owner, name, renewals, what remains of the lease in microseconds, report.
_OWNERS = (
    _LEASES
    + """
local reply = {}
for i, owner in ipairs(redis.call('HKEYS', base .. ':owners')) do
    local lease = lease_of(owner)
    reply[i] = {owner, lease.name, lease.renewals, lease.ends_at - now, lease.report}
end
return reply
"""
)

# ARGV: 5 limit, 6 and 7 the bounds between which ids are, as ZRANGEBYLEX has them. The reply is, for each: id, epoch,
# owner.
_HOLDINGS = """
local ids = redis.call('ZRANGEBYLEX', base .. ':held', ARGV[6], ARGV[7], 'LIMIT', 0, ARGV[5])
local reply = {}
if #ids == 0 then return reply end
local heads = call_sliced('HMGET', base .. ':heads', ids, 1, #ids)
local holders = call_sliced('HMGET', base .. ':holders', ids, 1, #ids)
for i = 1, #ids do
    if not heads[i] or not holders[i] then return redis.error_reply('DAMAGED a stream is held that has no owner') end
    local _, _, _, epoch = struct.unpack(HEAD, heads[i])
    reply[3 * i - 2], reply[3 * i - 1], reply[3 * i] = ids[i], epoch, holders[i]
end
return reply
"""

CLAIM = script(OPENED + REFUSED + _CLAIM)
END = script(OPENED + _END)
HOLDINGS = script(OPENED + _HOLDINGS)
OWNERS = script(OPENED + _OWNERS)
RELEASE = script(OPENED + _RELEASE)
RENEW = script(OPENED + _RENEW)

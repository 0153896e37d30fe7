"""A store's calls as one Lua script on a Valkey server, which runs each whole or not at all.

    rnn:session:<id>  hash    a session
    rnn:used          zset    ids by the time of their last commit
    rnn:sweep         zset    ids by the time to look whether they have expired; a commit does not move it
    rnn:ids           zset    ids by name
    rnn:totals        hash    sessions, bytes
    rnn:weights       hash    sessions by the weights that they run on
    rnn:ended         hash    reason:step:at:owner by id
    rnn:ended:order   list    ids in the order in which they ended

Keys are made up inside the script, which a cluster does not allow. A server that has no memory left, or cannot save its
data, looks at a script's first write alone: what ends sessions begins with a ZREM or an HDEL, which it always allows.
"""

import hashlib

from service.stores.interface import ENDED_SECONDS, SESSION_OVERHEAD_BYTES

SCRIPT = f"""
local max_ended, name = tonumber(ARGV[1]), ARGV[2]
local call = redis.call

local function load(id)
    return call('HMGET', 'rnn:session:' .. id,
        'owner', 'weights', 'ttl_seconds', 'created_at', 'initial', 'revision', 'step', 'state', 'replies', 'used_at')
end

local function count(sign, weights, initial, state, replies)
    call('HINCRBY', 'rnn:totals', 'sessions', sign)
    call('HINCRBY', 'rnn:totals', 'bytes', sign * ({SESSION_OVERHEAD_BYTES} + #initial + #state + #replies))
    if call('HINCRBY', 'rnn:weights', weights, sign) == 0 then call('HDEL', 'rnn:weights', weights) end
end

local function finish(id, reason, at, begun)
    local found = load(id)
    if begun and found[4] ~= begun then return false end
    for _, set in ipairs({{'rnn:used', 'rnn:sweep', 'rnn:ids'}}) do call('ZREM', set, id) end
    if not found[1] then return false end
    local owner, weights, _, _, initial, _, step, state, replies = unpack(found)
    call('DEL', 'rnn:session:' .. id)
    count(-1, weights, initial, state, replies)
    call('HSET', 'rnn:ended', id, reason .. ':' .. step .. ':' .. at .. ':' .. owner)
    if call('RPUSH', 'rnn:ended:order', id) > max_ended then
        call('HDEL', 'rnn:ended', call('LPOP', 'rnn:ended:order'))
    end
    return found
end

if name == 'create' then
    local id, expires_at, owner, weights, ttl_seconds, created_at, initial = unpack(ARGV, 3, 9)
    local revision, step, state, replies, used_at = unpack(ARGV, 10)
    local old = revision ~= '0' and load(id)
    call('HSET', 'rnn:session:' .. id, 'owner', owner, 'weights', weights, 'ttl_seconds', ttl_seconds,
        'created_at', created_at, 'initial', initial, 'revision', revision, 'step', step, 'state', state,
        'replies', replies, 'used_at', used_at)
    call('ZADD', 'rnn:used', used_at, id)
    call('ZADD', 'rnn:sweep', expires_at, id)
    call('ZADD', 'rnn:ids', 0, id)
    count(1, weights, initial, state, replies)
    if not old then return false end
    if old[1] then
        count(-1, old[2], old[5], old[8], old[9])
        return old
    elseif call('HDEL', 'rnn:ended', id) == 1 then
        call('LREM', 'rnn:ended:order', -1, id)  -- it is near the end, where ids are used again soon
    end

elseif name == 'load' then
    local found = load(ARGV[3])
    return found[1] and found or call('HGET', 'rnn:ended', ARGV[3])

elseif name == 'commit' then
    local id, old, growth, revision, step, state, replies, used_at = unpack(ARGV, 3)
    local key = 'rnn:session:' .. id
    if call('HGET', key, 'revision') ~= old then return 0 end
    call('HSET', key, 'revision', revision, 'step', step, 'state', state, 'replies', replies, 'used_at', used_at)
    call('ZADD', 'rnn:used', used_at, id)
    if growth ~= '0' then call('HINCRBY', 'rnn:totals', 'bytes', growth) end
    return 1

elseif name == 'end' then
    return finish(unpack(ARGV, 3))

elseif name == 'expire' then
    local now, looks = ARGV[3], ARGV[4]
    for _, id in ipairs(call('LRANGE', 'rnn:ended:order', 0, looks - 1)) do
        local at = string.match(call('HGET', 'rnn:ended', id), '^[^:]*:[^:]*:([^:]*):')
        if tonumber(at) > tonumber(now) - {ENDED_SECONDS} then break end
        call('HDEL', 'rnn:ended', id)
        call('LPOP', 'rnn:ended:order')
    end
    local ids = call('ZRANGEBYSCORE', 'rnn:sweep', '-inf', now, 'LIMIT', 0, looks)
    local ended = 0
    for _, id in ipairs(ids) do
        local used_at, ttl_seconds = unpack(call('HMGET', 'rnn:session:' .. id, 'used_at', 'ttl_seconds'))
        if used_at and used_at + ttl_seconds > tonumber(now) then
            call('ZREM', 'rnn:sweep', id)
            call('ZADD', 'rnn:sweep', used_at + ttl_seconds, id)
        else
            finish(id, 'expired', now)
            ended = ended + 1
        end
    end
    return {{ended, #ids}}

elseif name == 'evict' then
    local sessions, now = ARGV[3], ARGV[4]
    local ids = call('ZRANGE', 'rnn:used', 0, sessions - 1)
    for _, id in ipairs(ids) do finish(id, 'evicted', now) end
    return #ids

elseif name == 'page' then
    local after, limit = ARGV[3], ARGV[4]
    local page = call('ZRANGEBYLEX', 'rnn:ids', after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, limit)
    for i, id in ipairs(page) do page[i] = {{id, load(id)}} end
    return page

elseif name == 'in_use' then
    return call('HGETALL', 'rnn:weights')
end
"""

DIGEST = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()

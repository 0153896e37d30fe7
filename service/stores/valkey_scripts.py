"""A store's calls as Lua scripts on a Valkey server, each of which runs whole or not at all.

    rnn:session:<id>  hash    a session
    rnn:used          zset    ids by the time of their last commit
    rnn:sweep         zset    ids by the time to look whether they have expired; a commit does not move it
    rnn:ids           zset    ids by name
    rnn:totals        hash    sessions, bytes
    rnn:weights       hash    sessions by the weights that they run on
    rnn:ended         hash    reason:step:at:owner by id
    rnn:ended:order   list    ids in the order in which they ended

Keys are made up inside the scripts, which a cluster does not allow.
"""

import hashlib

from service.stores.interface import ENDED_SECONDS, SESSION_OVERHEAD_BYTES

FIELDS = ["owner", "weights", "ttl_seconds", "created_at", "initial", "revision", "step", "state", "replies", "used_at"]

_COMMON = f"""
local function size_of(key)
    return {SESSION_OVERHEAD_BYTES} + redis.call('HSTRLEN', key, 'initial')
        + redis.call('HSTRLEN', key, 'state') + redis.call('HSTRLEN', key, 'replies')
end
local function load(id)
    return redis.call('HMGET', 'rnn:session:' .. id, {str(FIELDS)[1:-1]})
end
local function finish(id, reason, at, max_ended)
    local key = 'rnn:session:' .. id
    local found = redis.call('HMGET', key, 'step', 'owner', 'weights')
    if found[1] then
        redis.call('HINCRBY', 'rnn:totals', 'sessions', -1)
        redis.call('HINCRBY', 'rnn:totals', 'bytes', -size_of(key))
        if redis.call('HINCRBY', 'rnn:weights', found[3], -1) == 0 then redis.call('HDEL', 'rnn:weights', found[3]) end
        redis.call('HSET', 'rnn:ended', id, reason .. ':' .. found[1] .. ':' .. at .. ':' .. found[2])
        if redis.call('RPUSH', 'rnn:ended:order', id) > tonumber(max_ended) then
            redis.call('HDEL', 'rnn:ended', redis.call('LPOP', 'rnn:ended:order'))
        end
        redis.call('DEL', key)
    end
    redis.call('ZREM', 'rnn:used', id)
    redis.call('ZREM', 'rnn:sweep', id)
    redis.call('ZREM', 'rnn:ids', id)
end
"""


class Script:
    """A script's text, and the digest by which a server that has seen it knows it.

    Its first line holds flags for the server: what frees memory or only reads runs on one that has no memory left.
    """

    def __init__(self, text: str) -> None:
        first, _, rest = text.partition("\n")
        self.text = f"{first}\n{_COMMON}{rest}"
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


CREATE = Script("""#!lua flags=
local id, expires_at, used_at, weights = unpack(ARGV, 1, 4)
local key = 'rnn:session:' .. id
redis.call('HSET', key, unpack(ARGV, 5))
redis.call('ZADD', 'rnn:used', used_at, id)
redis.call('ZADD', 'rnn:sweep', expires_at, id)
redis.call('ZADD', 'rnn:ids', 0, id)
redis.call('HINCRBY', 'rnn:weights', weights, 1)
redis.call('HINCRBY', 'rnn:totals', 'sessions', 1)
redis.call('HINCRBY', 'rnn:totals', 'bytes', size_of(key))
""")

LOAD = Script(
    """
local found = load(ARGV[1])
if found[1] then return found end
return redis.call('HGET', 'rnn:ended', ARGV[1])
"""
)

COMMIT = Script("""#!lua flags=
local id, old, revision, step, state, replies, used_at = unpack(ARGV)
local key = 'rnn:session:' .. id
if redis.call('HGET', key, 'revision') ~= old then return 0 end
local grown = #state + #replies - redis.call('HSTRLEN', key, 'state') - redis.call('HSTRLEN', key, 'replies')
redis.call('HSET', key, 'revision', revision, 'step', step, 'state', state, 'replies', replies, 'used_at', used_at)
redis.call('ZADD', 'rnn:used', used_at, id)
if grown ~= 0 then redis.call('HINCRBY', 'rnn:totals', 'bytes', grown) end
return 1
""")

END = Script("""#!lua flags=allow-oom
local id, reason, at, max_ended = unpack(ARGV)
local found = load(id)
if not found[1] then return false end
finish(id, reason, at, max_ended)
return found
""")

EXPIRE = Script(f"""#!lua flags=allow-oom
local now, limit, looks, max_ended = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
for _, id in ipairs(redis.call('LRANGE', 'rnn:ended:order', 0, looks - 1)) do
    local at = string.match(redis.call('HGET', 'rnn:ended', id), '^[^:]*:[^:]*:([^:]*):')
    if tonumber(at) > tonumber(now) - {ENDED_SECONDS} then break end
    redis.call('HDEL', 'rnn:ended', id)
    redis.call('LPOP', 'rnn:ended:order')
end
local ids = redis.call('ZRANGEBYSCORE', 'rnn:sweep', '-inf', now, 'LIMIT', 0, looks)
local ended = 0
for _, id in ipairs(ids) do
    local found = redis.call('HMGET', 'rnn:session:' .. id, 'used_at', 'ttl_seconds')
    local expires_at = found[1] and tonumber(found[1]) + tonumber(found[2])
    if expires_at and expires_at > tonumber(now) then
        redis.call('ZADD', 'rnn:sweep', expires_at, id)
    elseif ended < limit then
        finish(id, 'expired', now, max_ended)
        ended = ended + 1
    end
end
return {{ended, #ids}}
""")

EVICT = Script("""#!lua flags=allow-oom
local count, now, max_ended = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local ids = redis.call('ZRANGE', 'rnn:used', 0, count - 1)
for _, id in ipairs(ids) do finish(id, 'evicted', now, max_ended) end
return #ids
""")

PAGE = Script("""#!lua flags=no-writes
local first = ARGV[1] == '' and '-' or '(' .. ARGV[1]
local page = redis.call('ZRANGEBYLEX', 'rnn:ids', first, '+', 'LIMIT', 0, ARGV[2])
for i, id in ipairs(page) do page[i] = {id, load(id)} end
return page
""")

IN_USE = Script("""#!lua flags=no-writes
return redis.call('HGETALL', 'rnn:weights')
""")

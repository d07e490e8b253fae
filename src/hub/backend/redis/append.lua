-- Adds records to the stream KEYS[1], which then holds about ARGV[1] of them, none older than ARGV[2] milliseconds (0: of any
-- age). From ARGV[4] on: the topic, the name of the kind and the event of each. Returns the id of the last.
--
-- An entry's id is the time of the server in milliseconds, and the number of the entry in it, below 2^20 - 1, so that both
-- together are one number. It is greater than ARGV[3], the newest id that is known to whoever adds them: where a failover has
-- lost entries their ids are not given to others.
--
-- An entry's field p is the id before it: where that is not held any more, a reader knows what it has missed. It is left out
-- where it is the number before in the same millisecond. Its field l is what was lost before it, in a failover: the newest id
-- that is known, of a log that has ended before that.
local stream, now = KEYS[1], redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)

local previous, ms, seq
local function follow(id)
  previous = id
  ms, seq = string.match(id, '(%d+)-(%d+)')
  ms, seq = tonumber(ms), tonumber(seq)
end
local function follow_last_generated()
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      follow(info[i + 1])
    end
  end
end

local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
if newest then
  follow(newest[1])
elseif redis.call('EXISTS', stream) == 1 then
  follow_last_generated()
else
  -- Whoever knows an id of a stream that was here before has missed what was in it.
  follow(string.format('%.0f-0', now))
end

local follows, lost
local function leap()
  local floor_ms, floor_seq = string.match(ARGV[3], '(%d+)-(%d+)')
  floor_ms, floor_seq = tonumber(floor_ms), tonumber(floor_seq)
  follows, lost = true, nil
  if floor_ms > ms or floor_ms == ms and floor_seq > seq then
    -- Not the next one: the place immediately before an entry is one from which nothing is missed.
    ms, seq, follows, lost = floor_ms, floor_seq + 1, false, ARGV[3]
  end
end
local function next_id()
  if now > ms then
    ms, seq, follows = now, 0, false
  elseif seq >= 1048574 then
    ms, seq, follows = ms + 1, 0, false
  else
    seq = seq + 1
  end
  return string.format('%.0f-%.0f', ms, seq)
end
local function add(id, topic, kind, event)
  if follows then
    return redis.pcall('XADD', stream, 'MAXLEN', '~', ARGV[1], id, 't', topic, kind, event)
  end
  if lost then
    return redis.pcall('XADD', stream, 'MAXLEN', '~', ARGV[1], id, 'p', previous, 'l', lost, 't', topic, kind, event)
  end
  return redis.pcall('XADD', stream, 'MAXLEN', '~', ARGV[1], id, 'p', previous, 't', topic, kind, event)
end

leap()
for i = 4, #ARGV, 3 do
  if ms >= 17592186044415 then
    return redis.error_reply('ERR the stream has an entry with the id ' .. previous
      .. ', which is too great for one to be added after it; delete the stream')
  end
  local id = next_id()
  local added = add(id, ARGV[i], ARGV[i + 1], ARGV[i + 2])
  if i == 4 and added.err and string.find(added.err, 'equal or smaller', 1, true) then
    -- The newest entry was deleted. Its id is not given again.
    follow_last_generated()
    leap()
    id = next_id()
    added = add(id, ARGV[i], ARGV[i + 1], ARGV[i + 2])
  end
  if added.err then
    return added
  end
  previous, follows, lost = id, true, nil
end
local age = tonumber(ARGV[2])
if age > 0 and age < now then
  redis.call('XTRIM', stream, 'MINID', '~', string.format('%.0f', now - age))
end
return previous

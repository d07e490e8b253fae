-- Adds records to the stream KEYS[1], which then holds about ARGV[1] of them, none older than ARGV[2] milliseconds.
-- From ARGV[3] on: the topic, the kind and the event of each.
--
-- An entry's id is the time of the server in milliseconds, and the number of the entry in it, below 2^20, so that both
-- together are one number. Its field p is the id before: where that is not held any more, a reader knows what it has missed.
local stream = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
local ms, seq
if newest then
  ms, seq = string.match(newest[1], '(%d+)-(%d+)')
elseif redis.call('EXISTS', stream) == 1 then
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      ms, seq = string.match(info[i + 1], '(%d+)-(%d+)')
    end
  end
else
  -- Whoever knows an id of a stream that was here before has missed what was in it.
  ms, seq = now, 0
end
ms, seq = tonumber(ms), tonumber(seq)

local id
for i = 3, #ARGV, 3 do
  local previous = string.format('%.0f-%.0f', ms, seq)
  if now > ms then
    ms, seq = now, 0
  elseif seq >= 1048575 then
    ms, seq = ms + 1, 0
  else
    seq = seq + 1
  end
  id = string.format('%.0f-%.0f', ms, seq)
  redis.call('XADD', stream, 'MAXLEN', '~', ARGV[1], id, 'p', previous, 't', ARGV[i], 'k', ARGV[i + 1], 'e', ARGV[i + 2])
end
if ARGV[2] ~= '0' then
  redis.call('XTRIM', stream, 'MINID', '~', string.format('%.0f', now - ARGV[2]))
end
return id

-- The oldest entry of the stream KEYS[1], if there is one, and the newest id that it ever had.
--
-- A stream that is not there is made, empty, as one whose newest entry was added now, after ARGV[1]: so nobody is at a place
-- after it, and whoever is at one before it has missed what was there.
local stream = KEYS[1]
if redis.call('EXISTS', stream) == 0 then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local ms, seq = string.match(ARGV[1], '(%d+)-(%d+)')
  ms, seq = tonumber(ms), tonumber(seq)
  if now > ms or seq >= 1048574 then
    ms, seq = math.max(now, ms + 1), -1
  end
  redis.call('XADD', stream, string.format('%.0f-%.0f', ms, seq + 1), 'p', '0-0')
  redis.call('XTRIM', stream, 'MAXLEN', 0)
end
local info = redis.call('XINFO', 'STREAM', stream)
local newest
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    newest = info[i + 1]
  end
end
return { redis.call('XRANGE', stream, '-', '+', 'COUNT', 1), newest }

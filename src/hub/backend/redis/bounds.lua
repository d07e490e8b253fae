-- The id before the oldest entry of the stream KEYS[1], and that of its newest.
--
-- A stream that is not there is made, empty, as one whose newest entry was added now: so nobody is at a place before it.
local stream = KEYS[1]
if redis.call('EXISTS', stream) == 0 then
  local time = redis.call('TIME')
  redis.call('XADD', stream, string.format('%.0f-0', time[1] * 1000 + math.floor(time[2] / 1000)), 'p', '0-0')
  redis.call('XTRIM', stream, 'MAXLEN', 0)
end
local info = redis.call('XINFO', 'STREAM', stream)
local newest
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    newest = info[i + 1]
  end
end
local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local before = newest
if oldest then
  before = oldest[1]
  for i = 1, #oldest[2], 2 do
    if oldest[2][i] == 'p' then
      before = oldest[2][i + 1]
    end
  end
end
return { before, newest }

-- Returns the oldest entry of the stream if there is one, the newest id that the stream ever had,
-- and the time of the server. ARGV[1] is the newest id that the caller knows.
--
-- Makes the stream if there is none: empty, and as if its newest entry had been added after ARGV[1]
-- and deleted. So no reader is at a place after it, and a reader at a place before it has missed
-- what was there.
local tail = newest()
if not tail then
  tail = text(beginning(ARGV[1]))
  redis.call('XADD', stream, tail, 'p', '0-0')
  redis.call('XTRIM', stream, 'MAXLEN', 0)
end
return { redis.call('XRANGE', stream, '-', '+', 'COUNT', 1), tail, now }

-- Returns the oldest entry of the stream if there is one, the newest id that the stream has ever
-- had, and the time of the server. ARGV[1] is the newest id that the caller knows.
--
-- Creates the stream if it does not exist. The new stream is empty, but its newest id is after
-- ARGV[1], as if the entry with this id had been deleted. So no reader has a cursor after this id,
-- and each reader with a cursor before it gets a gap for the entries of the old stream.
local tail = newest()
if not tail then
  tail = text(beginning(ARGV[1]))
  redis.call('XADD', stream, tail, 'p', '0-0')
  redis.call('XTRIM', stream, 'MAXLEN', 0)
end
return { redis.call('XRANGE', stream, '-', '+', 'COUNT', 1), tail, now }

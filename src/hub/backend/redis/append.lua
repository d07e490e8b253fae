-- Adds records to the stream, and trims it to about ARGV[1] entries and to a maximum age of ARGV[2]
-- milliseconds (0: no limit). ARGV[3] is the newest id that the caller knows. ARGV[4] is the first
-- sequence number of the server in a millisecond. From ARGV[5] on: the topic, the name of the
-- record kind and the event of each record. Then at most two arguments of the script before this
-- one. Returns the id of the last entry.
--
-- The field p of an entry is the id of the preceding entry, so that a reader detects missing
-- entries. The field is left out if the preceding entry has the previous sequence number of the
-- same millisecond. The field l is the newest id before the entry that a failover has lost.
local region = tonumber(ARGV[4])
local ms, seq, previous, lost
-- False if the next entry needs the field p, even if its sequence number follows `seq`.
local is_next = true
local is_first = true

local tail = newest()
if tail then
  ms, seq = parts(tail)
  previous = tail
  local floor_ms, floor_seq = floor(ARGV[3])
  if is_greater(floor_ms, floor_seq, ms, seq) then
    ms, seq = after_missing(floor_ms, floor_seq)
    is_next, lost = false, ARGV[3]
  end
else
  ms, seq = beginning(ARGV[3])
  previous = string.format('%.0f-1048575', ms - 1)
  seq, is_next, is_first = seq - 1, false, false
end

local function add(id, follows, topic, kind, event)
  if follows then
    return redis.pcall('XADD', stream, 'MAXLEN', '~', ARGV[1], id, 't', topic, kind, event)
  end
  if lost then
    return redis.pcall('XADD', stream, 'MAXLEN', '~', ARGV[1], id, 'p', previous, 'l', lost, 't', topic, kind, event)
  end
  return redis.pcall('XADD', stream, 'MAXLEN', '~', ARGV[1], id, 'p', previous, 't', topic, kind, event)
end

for i = 5, #ARGV - 2, 3 do
  local full = no_room(ms, previous)
  if full then
    return full
  end
  local follows
  ms, seq, follows = following(ms, seq, region, is_first)
  local id = text(ms, seq)
  local added = add(id, follows and is_next, ARGV[i], ARGV[i + 1], ARGV[i + 2])
  if added.err then
    return added
  end
  previous, is_next, is_first, lost = id, true, false, nil
end

local age = tonumber(ARGV[2])
if age > 0 and age < now then
  redis.call('XTRIM', stream, 'MINID', '~', string.format('%.0f', now - age))
end
return previous

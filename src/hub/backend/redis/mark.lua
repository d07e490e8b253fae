-- Adds a mark to the stream: an entry which says that entries before it were lost. Every reader
-- that passes the mark reports a gap.
--
-- ARGV[1] is the approximate maximum number of entries in the stream. ARGV[2] is the newest id that
-- the caller knows. ARGV[3] is the first sequence number of the server in a millisecond. ARGV[4] is
-- the newest lost id. The caller has read the stream up to ARGV[5] and has found no mark for the
-- lost id. The script searches the entries after ARGV[5], at most ARGV[6] of them. If ARGV[7] is 1,
-- the mark is added even if there are more entries.
--
-- Returns the id of the mark, or of the entry that already reports the lost id. Returns nil if the
-- stream does not exist, or if it has too many entries to search.
local tail = newest()
if not tail then
  -- On a replica that is being synchronized, the stream does not exist for a moment.
  return false
end
local lost_ms, lost_seq = parts(ARGV[4])
local entries = redis.call('XRANGE', stream, '(' .. ARGV[5], '+', 'COUNT', ARGV[6])
for _, entry in ipairs(entries) do
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'g' or fields[i] == 'l' then
      local ms, seq = parts(fields[i + 1])
      if ms and not is_greater(lost_ms, lost_seq, ms, seq) then
        return entry[1]
      end
    end
  end
end
if #entries >= tonumber(ARGV[6]) and ARGV[7] ~= '1' then
  return false
end

local ms, seq = parts(tail)
local floor_ms, floor_seq = floor(ARGV[2])
if is_greater(floor_ms, floor_seq, ms, seq) then
  ms, seq = after_missing(floor_ms, floor_seq)
else
  seq = seq + 1
end
local full = no_room(ms, tail)
if full then
  return full
end
-- One number is left free: a reader whose cursor is immediately before an entry has missed no
-- entry, and would get no gap.
ms, seq = following(ms, seq, tonumber(ARGV[3]), true)
seq = math.max(seq, 1)
return redis.call('XADD', stream, 'MAXLEN', '~', ARGV[1], text(ms, seq), 'p', tail, 'g', ARGV[4])

-- Adds a mark to the stream that says that entries were lost before it. Every reader that passes
-- the mark reports a gap.
--
-- ARGV[1] is how many entries the stream has, about. ARGV[2] is the newest id that the caller
-- knows. ARGV[3] is the first sequence number of the server's region. ARGV[4] is the newest id that
-- was lost. The caller has read the stream up to ARGV[5] and has found no mark for that id. ARGV[6]
-- is how many entries the script may look at after that. ARGV[7] is 1 if the mark is to be added
-- however many entries there are.
--
-- Returns the id of the mark, an empty string if there is a mark for the id already, or nil if
-- there is no stream or if there are too many entries to look at.
local tail = newest()
if not tail then
  -- A replica that is being synchronized has no stream for a moment.
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
        return ''
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
-- A number is left out: a reader immediately before an entry has missed nothing.
ms, seq = following(ms, seq, tonumber(ARGV[3]), true)
seq = math.max(seq, 1)
return redis.call('XADD', stream, 'MAXLEN', '~', ARGV[1], text(ms, seq), 'p', tail, 'g', ARGV[4])

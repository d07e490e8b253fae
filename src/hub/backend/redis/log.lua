-- Shared by the scripts that add entries to the stream KEYS[1].
--
-- The id of an entry consists of a time of the server in milliseconds and a sequence number. The
-- sequence number is at most LAST, so that both parts fit into one number of 64 bits.
--
-- Two masters can run at the same time after a failover. So that they do not issue the same ids,
-- each server begins a millisecond with its own sequence number, `region`. The caller derives it
-- from the identity of the server. If the newest sequence number of the stream is within REGION
-- numbers after `region`, the script continues from the newest number. Otherwise another server may
-- have issued the newest number and may continue from it, so the script continues from `region`.
--
-- A new stream begins in a millisecond that the clock has not reached, with a sequence number below
-- BEGINNINGS. No region is below BEGINNINGS.
local LAST, REGION, BEGINNINGS = 1048574, 512, 327680
local DAY = 86400000
local stream = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function text(ms, seq)
  return string.format('%.0f-%.0f', ms, seq)
end
local function is_greater(ms, seq, other_ms, other_seq)
  return ms > other_ms or ms == other_ms and seq > other_seq
end

-- Returns the newest id that the stream has ever had, even if its entry was deleted. Returns nil if
-- the stream does not exist.
local function newest()
  if redis.call('EXISTS', stream) == 0 then
    return nil
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
end

-- Returns the parts of an id that the caller remembers, as a lower bound for new ids. An id that is
-- more than a day ahead of the clock is a mistake, so it is ignored: after the stream is deleted,
-- the new log does not continue from it.
local function floor(id)
  local ms, seq = parts(id)
  if ms > now + DAY then
    return 0, 0
  end
  return ms, seq
end

-- Returns a sequence number for a millisecond that the clock has not reached. Streams that were
-- deleted may have entries in this millisecond, with ids that this caller does not know. The ids
-- are smaller than the returned number: the number rises by 8 in each microsecond, and a script
-- takes longer than a microsecond to add 8 entries. The number starts again after 32 milliseconds.
-- No stream is so far ahead of the clock, because each stream begins one millisecond after the ids
-- that its caller knows.
local function unused()
  return (time[1] * 1000000 + time[2]) % 32768 * 8
end

-- Returns the first id of a new stream. A stream that was deleted may have used any id up to the
-- end of this millisecond, so the new stream begins in the next millisecond.
local function beginning(remembered)
  local ms = floor(remembered)
  return math.max(now, ms) + 1, unused()
end

-- Returns an id after entries that the caller knows and the stream has lost. The id leaves at least
-- one number free after them: a reader whose cursor is immediately before an entry has missed no
-- entry, and would get no gap.
local function after_missing(ms, seq)
  if ms <= now then
    return ms, seq + 1
  end
  -- The stream was deleted, and another caller has begun the new stream in an earlier millisecond.
  local number = unused()
  if number > seq then
    return ms, number
  end
  return ms + 1, number
end

-- Returns the next id after this id. `is_first` is true for the first entry of a script run:
-- another server may then have issued this id. The last result is true if the returned id has the
-- next sequence number of the same millisecond.
local function following(ms, seq, region, is_first)
  if now > ms then
    return now, region, false
  end
  -- This server has just begun the stream, so no other server can have issued this id.
  local has_begun = ms > now and seq < BEGINNINGS
  local is_elsewhere = is_first and not has_begun and (seq < region or seq >= region + REGION)
  if is_elsewhere and seq < region then
    return ms, region, false
  elseif is_elsewhere or seq >= LAST then
    return ms + 1, region, false
  end
  return ms, seq + 1, true
end

-- Returns an error if no position follows this millisecond: the time of a position has 44 bits.
local function no_room(ms, id)
  if ms >= 17592186044414 then
    return redis.error_reply('ERR the stream has an entry with the id ' .. id
      .. ', which is too great for one to be added after it; delete the stream')
  end
end

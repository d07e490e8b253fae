-- Shared by the scripts that add entries to the stream KEYS[1].
--
-- The id of an entry is a time of the server in milliseconds and a sequence number. The sequence
-- number is at most LAST, so that both fit into one number of 64 bits.
--
-- Two masters can run at the same time after a failover. So that they do not give the same ids,
-- each of them begins a millisecond with its own sequence number, `region`. The caller derives it
-- from the identity of the server. If the stream is within REGION numbers after it, a call continues
-- there. If the stream is elsewhere, a call continues at its own number, because another server may
-- continue at the number that it found.
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

-- Returns the newest id that the stream ever had, also if its entry was deleted. Returns nil if
-- there is no stream.
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

-- Returns the parts of an id that the caller remembers. An id more than a day ahead of the clock
-- was a mistake: the log does not continue there after the stream was deleted.
local function floor(id)
  local ms, seq = parts(id)
  if ms > now + DAY then
    return 0, 0
  end
  return ms, seq
end

-- Returns a sequence number for a millisecond that the clock has not reached. Streams that were
-- deleted may have entries there, with ids that this caller does not know. They are smaller than
-- this number: it rises by 8 in each microsecond, and a script takes longer than that to add 8
-- entries. The number begins again after 32 milliseconds. No stream is so far ahead of the clock,
-- because each of them begins one millisecond after the ids that its caller knows.
local function unused()
  return (time[1] * 1000000 + time[2]) % 32768 * 8
end

-- Returns the id with which a new stream begins. A stream that was deleted may have any id up to
-- the end of this millisecond, so the new one begins in the next.
local function beginning(remembered)
  local ms = floor(remembered)
  return math.max(now, ms) + 1, unused()
end

-- Returns an id after entries that the stream does not have and the caller knows. At least one
-- number is left out: a reader immediately before an entry has missed nothing.
local function after_missing(ms, seq)
  if ms <= now then
    return ms, seq + 1
  end
  -- The stream was deleted, and another caller began the new one in an earlier millisecond.
  local number = unused()
  if number > seq then
    return ms, number
  end
  return ms + 1, number
end

-- Returns the id after another one. `is_first` is true for the first entry of a call: the other id
-- can be one of another server then. The last result is true if the id is the next number.
local function following(ms, seq, region, is_first)
  if now > ms then
    return now, region, false
  end
  -- A stream that has just begun is on this server.
  local has_begun = ms > now and seq < BEGINNINGS
  local is_elsewhere = is_first and not has_begun and (seq < region or seq >= region + REGION)
  if is_elsewhere and seq < region then
    return ms, region, false
  elseif is_elsewhere or seq >= LAST then
    return ms + 1, region, false
  end
  return ms, seq + 1, true
end

-- Returns an error if there is no room for an entry after this millisecond.
local function no_room(ms, id)
  if ms >= 17592186044414 then
    return redis.error_reply('ERR the stream has an entry with the id ' .. id
      .. ', which is too great for one to be added after it; delete the stream')
  end
end

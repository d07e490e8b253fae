-- Shared by the scripts that add entries to the stream KEYS[1].
--
-- The id of an entry is a time of the server in milliseconds and a sequence number. The sequence
-- number is at most LAST, so that both fit into one number of 64 bits.
--
-- Two masters can run at the same time after a failover. So that they do not give the same ids,
-- each of them begins a millisecond with a sequence number of its own, `region`. The caller derives
-- it from the identity of the server. A call that finds the stream within REGION numbers after it
-- goes on there. One that finds the stream elsewhere goes to its own number, because another server
-- may go on there.
local LAST, REGION = 1048574, 512
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
-- was a mistake: the log does not go on there after the stream was deleted.
local function floor(id)
  local ms, seq = parts(id)
  if ms > now + DAY then
    return 0, 0
  end
  return ms, seq
end

-- Returns the id with which a new stream begins. A stream that was deleted may have had any id up
-- to the end of this millisecond, so the new one begins in the next. A second stream that is
-- deleted in the same millisecond has begun there too, so the sequence number is random.
local function beginning(remembered, random)
  local ms = floor(remembered)
  return math.max(now, ms) + 1, tonumber(random)
end

-- Returns the id after another one. `is_first` is true for the first entry of a call: the other id
-- can be one of another server then. The last result is true if the id is the next number.
local function following(ms, seq, region, is_first)
  if now > ms then
    return now, region, false
  end
  -- The millisecond after this one is left as it is: a new stream has begun there.
  local is_elsewhere = is_first and ms ~= now + 1 and (seq < region or seq >= region + REGION)
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

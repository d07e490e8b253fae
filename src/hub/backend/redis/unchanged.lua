-- Compares the topic of the records to add with the stream, before append.lua adds the records. The
-- last argument is an id of the log, `since`. Ends the script with an empty string if an entry of
-- the topic may have been added after `since`: the stream has one, entries after `since` are
-- missing, or there are SEARCHED entries or more after `since`. The other arguments are those of
-- append.lua.
--
-- No entry is missing if each entry names the one before it, the first one names `since`, and the
-- last one has the newest id that the stream has ever had.
local SEARCHED, BLOCK = 2000, 100
local since = ARGV[#ARGV]

-- Compares the positions of two ids. The greatest sequence numbers of a millisecond share one
-- position.
local function is_same(id, other)
  if id == other then
    return true
  end
  local ms, seq = parts(id)
  local other_ms, other_seq = parts(other)
  return ms == other_ms and seq > LAST and other_seq > LAST
end
local function is_after(id, other)
  local ms, seq = parts(id)
  local other_ms, other_seq = parts(other)
  return is_greater(ms, seq, other_ms, other_seq) and not is_same(id, other)
end

-- Returns whether this entry is of the topic, or whether entries between `at` and this entry are
-- missing. `at` is `since`, or the id of the entry before this entry in the stream.
local function has_changed(at, id, fields)
  local topic, kind, previous, lost
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 't' then
      topic = value
      if topic == ARGV[5] then
        return true
      end
    elseif name == 'p' then
      previous = value
    elseif name == 'l' then
      lost = value
    elseif name == 'g' then
      -- The entry reports to every reader that entries before it were lost.
      return true
    elseif name == 'e' or name == 's' or name == 'f' or name == 'r' then
      kind = true
    end
  end
  if lost and parts(lost) and is_after(lost, at) then
    return true
  end
  if previous == at then
    return false
  end
  local ms, seq = parts(id)
  local previous_ms, previous_seq = parts(previous or '')
  if previous_ms and is_greater(ms, seq, previous_ms, previous_seq) then
    return not is_same(previous, at)
  elseif topic and kind and seq > 0 then
    local at_ms, at_seq = parts(at)
    return at_ms ~= ms or at_seq ~= seq - 1
  end
  -- Other software has added the entry, so the entry does not name the one before it. Streams are
  -- trimmed at their beginning. So if an entry up to `since` is retained, no entry after it was
  -- trimmed.
  return at == since and #redis.call('XREVRANGE', stream, since, '-', 'COUNT', 1) == 0
end

local function is_unchanged()
  local newest_id = newest()
  if not newest_id then
    return false
  end
  if floor(ARGV[3]) > 0 and is_after(ARGV[3], newest_id) then
    -- The stream has lost entries that the caller knows.
    return false
  end
  local at = since
  for _ = 1, SEARCHED, BLOCK do
    local entries = redis.call('XRANGE', stream, '(' .. at, '+', 'COUNT', BLOCK)
    for _, entry in ipairs(entries) do
      if has_changed(at, entry[1], entry[2]) then
        return false
      end
      at = entry[1]
    end
    if #entries < BLOCK then
      return is_same(at, newest_id)
    end
  end
  return false
end

if not is_unchanged() then
  return ''
end


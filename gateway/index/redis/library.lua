#!lua name=@LIBRARY@
-- The prefix index inside Redis or Valkey: run nodes with a bitmask for each holder.
--
-- One shard is three hashes under one tag:
--   i   head hash -> node: n:u8, hashes[2..n]: 8 bytes each, then (slot: u16 big-endian, mask: i32) ascending by slot.
--       Bit k of a mask says that the holder in that slot has block k of the node. A node never splits or moves;
--       a block is in one node at one place for as long as anybody holds it.
--   m   v -> changes whenever a slot does; s<slot> -> epoch:u32 last call:double holder's name; d<slot> -> forgotten.
--   l   gateway -> expiry:double, what it has in flight.
-- and hashes of guesses: block hash -> (name:u32, expiry:double)*.
--
-- Loading a library gives no globals but redis.register_function (Redis 7.0), so names are bound at the first call.

local call, sub, byte, char, pack, unpack_, band, bor, bnot, lshift, rshift, floor, min, concat, spread
local LOW = {}  -- LOW[k]: the k lowest bits
local NONE, ALL = '', -1

local function bind()
  call = redis.call
  sub, byte, char, concat = string.sub, string.byte, string.char, table.concat
  pack, unpack_, spread = struct.pack, struct.unpack, unpack
  band, bor, bnot, lshift, rshift = bit.band, bit.bor, bit.bnot, bit.lshift, bit.rshift
  floor, min = math.floor, math.min
  LOW[0] = 0
  for k = 1, 31 do LOW[k] = bit.tobit(2 ^ k - 1) end
  LOW[32] = ALL
end

-- How many blocks two packed runs share, from byte a of x and b of y on, at most `limit`. Chained hashes are equal
-- at a block only if they are equal before it.
local function shared(x, a, y, b, limit)
  local function same(k) return sub(x, a + 8 * k - 8, a + 8 * k - 1) == sub(y, b + 8 * k - 8, b + 8 * k - 1) end
  if limit <= 0 then return 0 end
  if same(limit) then return limit end
  local low, high = 0, limit
  while high - low > 1 do
    local middle = floor((low + high) / 2)
    if same(middle) then low = middle else high = middle end
  end
  return low
end

local function trailing_ones(mask)
  local count = 0
  while count < 32 and band(mask, 1) == 1 do
    count = count + 1
    mask = rshift(mask, 1)
  end
  return count
end

---------------------------------------------------------------------------------------------------------- match

-- Reads the nodes along a query. After a full node the next ones are fetched ahead: long prompts are straight runs.
local function reader(key, query, blocks, width)
  local ahead, at, count, step = nil, 0, 0, 1
  local self = {}
  function self.node(position)
    if at < count then
      at = at + 1
      return ahead[at]
    end
    local wanted = min(step, floor((blocks - position - 1) / width) + 1)
    if wanted <= 1 then return call('HGET', key, sub(query, 8 * position + 1, 8 * position + 8)) end
    local heads = {}
    for k = 0, wanted - 1 do
      local from = 8 * (position + width * k)
      heads[k + 1] = sub(query, from + 1, from + 8)
    end
    ahead = call('HMGET', key, spread(heads))
    at, count = 1, wanted
    return ahead[1]
  end
  function self.straight()
    if at >= count then step = min(step * 2, 16) end
  end
  function self.bent() at, count, step = 0, 0, 1 end
  return self
end

-- Slots and how many leading blocks each has, packed: (slot:u16 depth:u32)*, big-endian.
local function depths(key, query, width)
  local found, blocks = {}, #query / 8
  local function note(slot, depth)
    if depth > 0 then found[#found + 1] = pack('>I2I4', slot, depth) end
  end
  local nodes = reader(key, query, blocks, width)
  local active, alive = nil, 0  -- who has everything so far, and how many they are
  local position = 0
  local previous, whole = nil, false  -- the last node's entries, and whether all of them had all of it
  while position < blocks do
    local node = nodes.node(position)
    if not node then break end
    local size = byte(node, 1)
    local same = 1 + shared(query, 8 * position + 9, node, 2, min(size, blocks - position) - 1)
    if same == width then nodes.straight() else nodes.bent() end
    local entries = sub(node, 8 * size - 6)
    if not (whole and same == size and size == width and entries == previous) then
      local need = LOW[same]
      local still, left = {}, 0
      whole = true
      for k = 1, #entries, 6 do
        local slot, mask = unpack_('>I2<i4', entries, k)
        if mask ~= ALL then whole = false end
        if active == nil or active[slot] then
          if active then active[slot] = nil end
          if band(mask, need) == need then
            still[slot] = true
            left = left + 1
          else
            note(slot, position + trailing_ones(mask))
          end
        else
          whole = false
        end
      end
      if active then
        for slot in pairs(active) do note(slot, position) end
      end
      active, alive, previous = still, left, entries
    end
    position = position + same
    if alive == 0 then break end
  end
  if active then
    for slot in pairs(active) do note(slot, position) end
  end
  return concat(found)
end

-- Names and how deep they are expected to hold a prompt: (name:u32 depth:u32)*. Guesses are kept at the 4th, 8th, 16th
-- and every 32nd block and at the last one, in two buckets.
local function guesses(before, now, query, clock)
  if call('EXISTS', before, now) == 0 then return NONE end
  local blocks = #query / 8
  local deepest, depth = {}, 0
  while depth < blocks do
    depth = min(depth == 0 and 4 or depth + min(depth, 32), blocks)
    local key, alive = sub(query, 8 * depth - 7, 8 * depth), false
    for _, bucket in pairs({before, now}) do
      local held = call('HGET', bucket, key) or NONE
      for k = 1, #held, 12 do
        local name, ends = unpack_('<I4d', held, k)
        if ends > clock then
          deepest[name] = depth
          alive = true
        end
      end
    end
    if not alive then break end
  end
  local found = {}
  for name, deep in pairs(deepest) do found[#found + 1] = pack('<I4I4', name, deep) end
  return concat(found)
end

-- KEYS i m l, two buckets of short guesses, two of long ones, session. ARGV hashes, width, clock in ms, gateway.
local function match(keys, args)
  local query, clock = args[1], tonumber(args[3])
  local loads = {}
  local all = call('HGETALL', keys[3])
  for k = 1, #all, 2 do
    if all[k] ~= args[4] and unpack_('<d', all[k + 1]) > clock then loads[#loads + 1] = all[k + 1] end
  end
  return {
    call('HGET', keys[2], 'v') or NONE,
    depths(keys[1], query, tonumber(args[2])),
    guesses(keys[4], keys[5], query, clock),
    guesses(keys[6], keys[7], query, clock),
    call('GET', keys[8]) or NONE,
    concat(loads),
  }
end

---------------------------------------------------------------------------------------------------------- apply

-- The nodes that one call touches: read once, written once.
local function workspace(key, slot_bytes, width)
  local runs, entries, dirty = {}, {}, {}  -- head -> packed hashes (false: no such node), entries, changed
  local self = {}

  function self.run(head)
    local run = runs[head]
    if run ~= nil then return run end
    local node = call('HGET', key, head)
    if not node then
      runs[head] = false
      return false
    end
    local size = byte(node, 1)
    runs[head] = head .. sub(node, 2, 8 * size - 7)
    entries[head] = sub(node, 8 * size - 6)
    return runs[head]
  end

  -- Where our entry is or belongs, in bytes before it, and whether it is there.
  local function locate(section)
    local low, high = 0, #section / 6
    while low < high do
      local middle = floor((low + high) / 2)
      if sub(section, 6 * middle + 1, 6 * middle + 2) == slot_bytes then return 6 * middle, true end
      local a, b = byte(section, 6 * middle + 1, 6 * middle + 2)
      local c, d = byte(slot_bytes, 1, 2)
      if a < c or (a == c and b < d) then low = middle + 1 else high = middle end
    end
    return 6 * low, false
  end

  local function put(head, section, at, there, mask)
    local rest = sub(section, at + (there and 7 or 1))
    entries[head] = sub(section, 1, at) .. (mask == 0 and NONE or slot_bytes .. pack('<i4', mask)) .. rest
    dirty[head] = true
  end

  function self.add(head, first, count)
    local mask = LOW[count]
    if first > 0 then mask = lshift(mask, first) end
    local section = entries[head]
    local at, there = locate(section)
    if there then
      local old = unpack_('<i4', section, at + 3)
      mask = bor(old, mask)
      if mask == old then return end
    end
    put(head, section, at, there, mask)
  end

  function self.create(head, run)
    runs[head], entries[head], dirty[head] = run, NONE, true
  end

  function self.extend(head, more)
    runs[head] = runs[head] .. more
    dirty[head] = true
  end

  -- Cut the end that nobody holds; only where few hold anything, which bounds the work.
  local function trim(head)
    local section = entries[head]
    if section == NONE then
      runs[head] = false
      return
    end
    if #section > 96 then return end
    local held = 0
    for k = 3, #section, 6 do held = bor(held, (unpack_('<i4', section, k))) end
    local size = #runs[head] / 8
    while size > 1 and band(held, lshift(1, size - 1)) == 0 do size = size - 1 end
    runs[head] = sub(runs[head], 1, 8 * size)
  end

  function self.remove(head, mask)
    if not self.run(head) then return end
    local section = entries[head]
    local at, there = locate(section)
    if not there then return end
    local old = unpack_('<i4', section, at + 3)
    put(head, section, at, true, band(old, bnot(mask)))
    trim(head)
  end

  -- How many of the next blocks, at most `limit`, start no node of their own.
  function self.fresh(hashes, from, limit)
    local heads = {}
    for k = 1, limit do heads[k] = sub(hashes, from + 8 * k - 8, from + 8 * k - 1) end
    local there = call('HMGET', key, spread(heads))
    for k = 1, limit do
      local known = runs[heads[k]]
      if known or (known == nil and there[k]) then return k - 1 end
    end
    return limit
  end

  function self.write()
    local puts, drops = {}, {}
    for head in pairs(dirty) do
      local run = runs[head]
      if run then
        puts[#puts + 1] = head
        puts[#puts + 1] = char(#run / 8) .. sub(run, 9) .. entries[head]
      else
        drops[#drops + 1] = head
      end
    end
    for k = 1, #puts, 2000 do call('HSET', key, spread(puts, k, min(#puts, k + 1999))) end
    for k = 1, #drops, 2000 do call('HDEL', key, spread(drops, k, min(#drops, k + 1999))) end
  end

  self.width = width
  return self
end

-- Store a run of blocks behind a parent's place (head nil: at the root). Appends (head offset:u8 count:u8)* to places.
local function store(nodes, head, offset, hashes, places)
  local blocks, done = #hashes / 8, 0
  local open = nil  -- a node whose last block is the parent of the next one
  local function took(node, first, count)
    nodes.add(node, first, count)
    places[#places + 1] = node .. char(first, count)
    done = done + count
  end
  local parent = head and nodes.run(head)
  if parent then
    local size = #parent / 8
    local same = shared(hashes, 1, parent, 8 * offset + 9, min(size - offset - 1, blocks))
    if same > 0 then took(head, offset + 1, same) end
    if offset + 1 + same == size then open = head end
  end
  while done < blocks do
    local room = open and nodes.width - #nodes.run(open) / 8 or 0
    local count = room > 0 and nodes.fresh(hashes, 8 * done + 1, min(room, blocks - done)) or 0
    if count > 0 then
      local first = #nodes.run(open) / 8
      nodes.extend(open, sub(hashes, 8 * done + 1, 8 * (done + count)))
      took(open, first, count)
    else
      local next = sub(hashes, 8 * done + 1, 8 * done + 8)
      local run = nodes.run(next)
      if run then
        local same = shared(hashes, 8 * done + 1, run, 1, min(#run / 8, blocks - done))
        took(next, 0, same)
        open = same == #run / 8 and next or nil
      else
        local more = min(nodes.width, blocks - done) - 1
        if more > 0 then more = nodes.fresh(hashes, 8 * done + 9, more) end
        nodes.create(next, sub(hashes, 8 * done + 1, 8 * (done + 1 + more)))
        took(next, 0, 1 + more)
        open = next
      end
    end
  end
end

-- KEYS i m. ARGV slot:u16, epoch, number of this call, width, events in order:
--   S parent's head:8 offset:u8 hashes   offset 255: no parent; 254: the parent is the last block of an earlier S of
--                                        this call, named by its hash
--   R (head:8 mask:i32)*
-- Calls are numbered from 1. The last one may come again, because its reply was lost; its places are returned again.
local function apply(keys, args)
  local field = 's' .. args[1]
  local slot = call('HGET', keys[2], field)
  if not slot then return redis.error_reply('LOST no such slot') end
  local epoch, last = unpack_('<I4d', slot)
  local number = tonumber(args[3])
  if epoch ~= tonumber(args[2]) then return redis.error_reply('LOST another epoch') end
  if number ~= last and number ~= last + 1 then return redis.error_reply('LOST a call in between') end
  call('HSET', keys[2], field, pack('<I4d', epoch, number) .. sub(slot, 13))
  local nodes = workspace(keys[1], args[1], tonumber(args[4]))
  local places, ends = {}, {}  -- ends: hash of a store's last block -> its head and offset
  for k = 5, #args do
    local event = args[k]
    if byte(event, 1) == 83 then
      local head, offset = sub(event, 2, 9), byte(event, 10)
      if offset == 255 then head = nil end
      if offset == 254 then head, offset = ends[head][1], ends[head][2] end
      store(nodes, head, offset, sub(event, 11), places)
      local final = places[#places]
      ends[sub(event, -8)] = {sub(final, 1, 8), byte(final, 9) + byte(final, 10) - 1}
    else
      for at = 2, #event, 12 do nodes.remove(sub(event, at, at + 7), (unpack_('<i4', event, at + 8))) end
    end
  end
  nodes.write()
  return concat(places)
end

------------------------------------------------------------------------------------------- slots, sweep, guesses

local function bury(key, holder, version)
  local all, gone = call('HGETALL', key), false
  for k = 1, #all, 2 do
    if byte(all[k]) == 115 and sub(all[k + 1], 13) == holder then
      call('HDEL', key, all[k])
      call('HSET', key, 'd' .. sub(all[k], 2), '')
      gone = true
    end
  end
  if gone then call('HSET', key, 'v', version) end
end

-- KEYS m. ARGV holder, version (any new value).
local function forget(keys, args)
  bury(keys[1], args[1], args[2])
  return redis.status_reply('OK')
end

-- KEYS m. ARGV holder, version, epoch. A new slot for the holder; what it had before is forgotten.
local function open(keys, args)
  bury(keys[1], args[1], args[2])
  local taken = {}
  for _, field in pairs(call('HKEYS', keys[1])) do taken[sub(field, 2)] = true end
  for number = 1, 65535 do
    local slot = pack('>I2', number)
    if not taken[slot] then
      call('HSET', keys[1], 's' .. slot, pack('<I4d', tonumber(args[3]), 0) .. args[1], 'v', args[2])
      return slot
    end
  end
  return redis.error_reply('no slot is free: 65535 holders')
end

-- KEYS i m. ARGV cursor, count. Drops entries of slots that are not live. Returns cursor, entries dropped.
local function sweep(keys, args)
  local live = {}
  for _, field in pairs(call('HKEYS', keys[2])) do
    if byte(field) == 115 then live[sub(field, 2)] = true end
  end
  local page = call('HSCAN', keys[1], args[1], 'COUNT', args[2])
  local nodes, cut = page[2], 0
  for k = 1, #nodes, 2 do
    local node = nodes[k + 1]
    local from = 8 * byte(node, 1) - 6
    local kept, dropped = {}, 0
    for at = from, #node, 6 do
      if live[sub(node, at, at + 1)] then kept[#kept + 1] = sub(node, at, at + 5) else dropped = dropped + 1 end
    end
    if #kept == 0 then
      call('HDEL', keys[1], nodes[k])
    elseif dropped > 0 then
      call('HSET', keys[1], nodes[k], sub(node, 1, from - 1) .. concat(kept))
    end
    cut = cut + dropped
  end
  return {page[1], cut}
end

-- KEYS bucket. ARGV expiry in ms, life of the bucket in ms, names (u32 each, packed), hashes.
local function guess(keys, args)
  local ends, names = tonumber(args[1]), args[3]
  for k = 4, #args do
    local held, kept = call('HGET', keys[1], args[k]) or NONE, {}
    for at = 1, #held, 12 do
      local name = sub(held, at, at + 3)
      local named = false
      for n = 1, #names, 4 do named = named or sub(names, n, n + 3) == name end
      if not named then kept[#kept + 1] = sub(held, at, at + 11) end
    end
    for n = 1, #names, 4 do kept[#kept + 1] = sub(names, n, n + 3) .. pack('<d', ends) end
    call('HSET', keys[1], args[k], concat(kept))
  end
  call('PEXPIRE', keys[1], args[2])
  return redis.status_reply('OK')
end

-- KEYS lease. ARGV owner, life in ms. 1 if the owner has it now.
local function lease(keys, args)
  local owner = call('GET', keys[1])
  if owner and owner ~= args[1] then return 0 end
  call('SET', keys[1], args[1], 'PX', args[2])
  return 1
end

-- KEYS lease. ARGV owner.
local function release(keys, args)
  if call('GET', keys[1]) == args[1] then call('DEL', keys[1]) end
  return redis.status_reply('OK')
end

local function register(name, run, flags)
  redis.register_function({
    function_name = '@LIBRARY@_' .. name,
    flags = flags,
    callback = function(keys, args)
      if not call then bind() end
      return run(keys, args)
    end,
  })
end

register('match', match, {'no-writes'})
register('apply', apply, {})
register('open', open, {})
register('forget', forget, {})
register('sweep', sweep, {})
register('guess', guess, {})
register('lease', lease, {})
register('release', release, {})

"""One shard: a complete index for the prompts whose first block falls into it. All its keys share one hash tag."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from struct import Struct, iter_unpack
from typing import Any

from gateway.index.contract import Holder, InFlight, Lost, Match, Unavailable
from gateway.index.guesses import grid
from gateway.index.redis import library, loads
from gateway.index.redis.buckets import LONG_MS, SHORT_MS, Buckets
from gateway.index.redis.links import Caller
from gateway.index.redis.wire import ServerError, bulk, pack
from gateway.index.redis.writer import ShardWriter

log = logging.getLogger(__name__)

SHORT, LONG = b"s", b"a"
"""Kinds of guesses, by how long they live."""

PATIENCE_S = 2.0
"""How long what is not hot may take."""

_LOAD_LIFE_MS = 3_000
_GONE_S = 60.0
"""A gateway that has not told its load for so long is gone."""

_BEAT_MS = 100
"""How long a load that has not changed goes without being told again; and one that has, while no other gateway is there
to read it."""

_SLOT = Struct("<Id")
_FCALL, _FCALL_RO, _HSET = b"FCALL", b"FCALL_RO", b"HSET"


def packed(holder: Holder) -> bytes:
    """A holder's name in Redis."""
    return f"{holder.rank}|{holder.tier}|{holder.engine}".encode()


def unpacked(name: bytes) -> Holder:
    rank, tier, engine = name.decode().split("|", 2)
    return Holder(engine, int(rank), tier)


class Shard:
    """Calls of the library on the keys of one tag."""

    def __init__(
        self,
        link: Caller,
        tag: bytes,
        width: int,
        gateway: bytes,
        names: Mapping[int, str],
        restore: Callable[[], Awaitable[None]],
    ) -> None:
        self.nodes, self.meta, self.loads = tag + b"i", tag + b"m", tag + b"l"
        self._tag = tag
        self._link = link
        self._width = str(width).encode()
        self._gateway = gateway
        self._names = names
        self._restore = restore
        self._mending: asyncio.Task[None] | None = None
        self._version = b""
        self._holders: dict[int, Holder] = {}
        # What all matches have in common, packed once.
        self._match_head = b"*15\r\n" + bulk(
            _FCALL_RO, library.function("match"), b"8", self.nodes, self.meta, self.loads
        )
        self._match_width, self._match_gateway = bulk(self._width), bulk(gateway)
        self._buckets = {SHORT: Buckets(tag, SHORT, SHORT_MS), LONG: Buckets(tag, LONG, LONG_MS)}
        self._told: Mapping[str, InFlight] = {}
        self._told_ms = 0.0
        self._alone = False
        """Whether no other gateway is there."""
        self.mine: Callable[[], Mapping[str, InFlight]] = dict
        """Says what this gateway has in flight."""

    async def match(self, hashes: bytes, session: bytes, budget_s: float) -> Match:
        """One round trip; our own load goes along when there is news of it."""
        now = time.time() * 1e3
        binding, clock = self._tag + b"b" + session, b"%d" % now
        command = b"%b%b%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b$%d\r\n%b\r\n%b" % (
            self._match_head,
            self._buckets[SHORT].both(now),
            self._buckets[LONG].both(now),
            len(binding),
            binding,
            len(hashes),
            hashes,
            self._match_width,
            len(clock),
            clock,
            self._match_gateway,
        )
        count = 1
        if (news := self.news(now)) is not None:
            command, count = news + command, 2
        try:
            reply = await self._link.call(command, count, budget_s)
        except ServerError as error:
            self._mend(error)
            raise Unavailable(str(error)) from None
        version, depths, short, long, bound, others = reply
        if version != self._version:
            await self._learn_slots(budget_s)
        self._alone = not others or not loads.alive(others, now)
        return Match(
            held=self._held(depths) if depths else {},
            expected=self._guessed(short) if short else {},
            learned=self._guessed(long) if long else {},
            others=loads.decode(others, now, self._names) if others else {},
            session=bound.decode(),
        )

    def tell(self) -> None:
        """Tell the others our load, if there is news of it; nobody waits for an answer."""
        if (news := self.news(time.time() * 1e3)) is not None:
            self._link.post(news, 1)

    def news(self, now: float) -> bytes | None:
        """The command that tells the others our load; None if they know it."""
        age_ms = now - self._told_ms
        if self._alone and age_ms < _BEAT_MS:
            return None
        mine = self.mine()
        if mine == self._told and age_ms < (_BEAT_MS if mine else _LOAD_LIFE_MS):
            return None
        self._told, self._told_ms = mine, now
        return pack(_HSET, self.loads, self._gateway, loads.encode(mine, now + _LOAD_LIFE_MS))

    def _held(self, depths: bytes) -> dict[Holder, int]:
        holders = self._holders
        return {holders[slot]: depth for slot, depth in iter_unpack(">HI", depths) if slot in holders}

    def _guessed(self, found: bytes) -> dict[str, int]:
        names = self._names
        return {names[key]: depth for key, depth in iter_unpack("<II", found) if key in names}

    def guess(self, kind: bytes, hashes: bytes, engines: bytes, ttl_s: float) -> None:
        """These engines (four bytes each) will hold this prompt; told without waiting for an answer."""
        if keys := grid(hashes):
            self._link.post(self._buckets[kind].put(keys, engines, ttl_s, time.time() * 1e3), 1)

    def bind(self, session: bytes, engine: str, ttl_s: float) -> None:
        life = b"%d" % max(1, int(ttl_s * 1e3))
        self._link.post(pack(b"SET", self._tag + b"b" + session, engine.encode(), b"PX", life), 1)

    async def open(self, holder: Holder) -> ShardWriter:
        epoch = random.getrandbits(32)
        args = (packed(holder), self._any(), b"%d" % epoch)
        slot = await self.call("open", (self.meta,), *args)
        return ShardWriter(holder, slot, epoch, self._apply)

    async def forget(self, holder: Holder) -> None:
        await self.call("forget", (self.meta,), packed(holder), self._any())

    @staticmethod
    def _any() -> bytes:
        return b"%d" % random.getrandbits(63)

    async def _apply(self, slot: bytes, epoch: int, number: int, events: list[bytes]) -> bytes:
        head = (slot, b"%d" % epoch, b"%d" % number, self._width)
        places: bytes = await self.call("apply", (self.nodes, self.meta), *head, *events)
        return places

    async def call(self, name: str, keys: Sequence[bytes], *args: bytes) -> Any:
        """Call a function of the library that is not hot. Raises `Unavailable`, `Lost`."""
        command = pack(_FCALL, library.function(name), b"%d" % len(keys), *keys, *args)
        try:
            return await self._link.call(command, 1, PATIENCE_S)
        except ServerError as error:
            if "LOST" in str(error):
                raise Lost(str(error)) from None
            refused = error
        await self._refused(refused)
        try:
            return await self._link.call(command, 1, PATIENCE_S)
        except ServerError as error:
            raise (Lost if "LOST" in str(error) else Unavailable)(str(error)) from None

    async def _refused(self, error: ServerError) -> None:
        """The server has lost the library (flushed, failed over): give it back."""
        if library.MISSING in str(error):
            await self._restore()
        else:
            log.warning("redis: %s", error)

    def _mend(self, error: ServerError) -> None:
        """The same, beside the requests: no lookup waits for it."""
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mended(error))

    async def _mended(self, error: ServerError) -> None:
        with suppress(Unavailable):
            await self._refused(error)

    async def _learn_slots(self, budget_s: float) -> None:
        """Who is in which slot now."""
        try:
            reply = await self._link.call(pack(b"HGETALL", self.meta), 1, budget_s)
        except ServerError as error:
            raise Unavailable(str(error)) from None
        meta = dict(zip(reply[::2], reply[1::2], strict=True))
        self._holders = {
            int.from_bytes(name[1:], "big"): unpacked(value[_SLOT.size :])
            for name, value in meta.items()
            if name[:1] == b"s"
        }
        self._version = meta.get(b"v", b"")

    async def sweep(self) -> int:
        """Drop entries of forgotten slots, in small steps; then their numbers may be used again. And gone gateways."""
        told = await self._link.call(pack(b"HGETALL", self.loads), 1, PATIENCE_S)
        limit = (time.time() - _GONE_S) * 1e3
        if gone := [name for name, blob in zip(told[::2], told[1::2], strict=True) if loads.ends(blob) < limit]:
            await self._link.call(pack(b"HDEL", self.loads, *gone), 1, PATIENCE_S)
        fields = await self._link.call(pack(b"HKEYS", self.meta), 1, PATIENCE_S)
        dead = [name for name in fields if name[:1] == b"d"]
        if not dead:
            return 0
        cursor: bytes = b"0"
        cut = 0
        while True:
            cursor, dropped = await self.call("sweep", (self.nodes, self.meta), cursor, b"100")
            cut += int(dropped)
            if cursor == b"0":
                break
        await self._link.call(pack(b"HDEL", self.meta, *dead), 1, PATIENCE_S)
        return cut

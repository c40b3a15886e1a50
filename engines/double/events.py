"""KV events as vLLM publishes them: PUB frames, a replay ROUTER, 10,000 batches kept.

Source: `vllm/distributed/kv_events.py`. A batch is `[timestamp, [events], data_parallel_rank]` in msgpack.
"""

import asyncio
import errno
import time
from collections import deque
from typing import Any

import msgspec
from zmq import asyncio as zmq_asyncio
from zmq.constants import SocketOption, SocketType
from zmq.error import ZMQError
from zmq.sugar.context import Context

from engines.double.faults import Faults

KEPT_BATCHES = 10_000
_END = (-1).to_bytes(8, "big", signed=True)
_HIGH_WATER = 100_000
_PATIENCE_S = 2.0


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True):
    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, omit_defaults=True):
    pass


class Batch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class Publisher:
    """Publishes what a pool's prefix cache stores and forgets; `flush` makes one batch of it (one engine step).

    Endpoints are to bind, as vLLM's `tcp://*:5557`; a port of `*` is any free one, and `endpoint` then says which.
    Batches that `faults.lose_events` takes are numbered and kept for replay but never sent.
    """

    def __init__(
        self,
        block_size: int,
        endpoint: str,
        replay_endpoint: str | None,
        faults: Faults,
        rank: int = 0,
        topic: str = "kv-events",
    ) -> None:
        self._faults = faults
        self._rank = rank
        self._size = block_size
        self._topic = topic.encode()
        self._pending: list[BlockStored | BlockRemoved | AllBlocksCleared] = []
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT_BATCHES)
        self._next = 0
        self._loras: dict[str, int] = {}
        """Adapter -> the number that events call it by."""
        self._encode = msgspec.msgpack.Encoder().encode
        context = Context.instance()
        self._pub = context.socket(SocketType.PUB)
        self._pub.set_hwm(_HIGH_WATER)
        self._replay: Any = None
        self._answering: asyncio.Task[None] | None = None
        self.endpoint = endpoint
        self.replay_endpoint = replay_endpoint
        try:
            self.endpoint = _bind(self._pub, endpoint)
            if replay_endpoint is not None:
                self._replay = zmq_asyncio.Context.shadow(context).socket(SocketType.ROUTER)
                self.replay_endpoint = _bind(self._replay, replay_endpoint)
                self._answering = asyncio.get_running_loop().create_task(self._answer())
        except BaseException:
            self._close_sockets()
            raise

    def source(self) -> dict[str, Any]:
        """This publisher as `/kv_event_sources` describes it."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint,
            "buffer_steps": KEPT_BATCHES,
            "hwm": _HIGH_WATER,
            "max_queue_size": _HIGH_WATER,
            "topic": self._topic.decode(),
        }

    def stored(
        self, names: list[int], parent: int | None, tokens: list[int], salt: str | None, lora: str | None = None
    ) -> None:
        own = (lora,) if lora else ()
        keys: list[tuple[str, ...] | None] = [own or None] * len(names)
        if salt and parent is None:
            keys[0] = (*own, salt)
        number = self._loras.setdefault(lora, len(self._loras) + 1) if lora else None
        self._pending.append(
            BlockStored(names, parent, tokens, self._size, number, "GPU", lora, keys, 0, "full_attention")
        )

    def removed(self, name: int) -> None:
        self._pending.append(BlockRemoved([name], "GPU", 0))

    def cleared(self) -> None:
        self._pending.append(AllBlocksCleared())

    def flush(self) -> None:
        """Send what happened since the last flush as one batch; nothing if nothing did."""
        if not self._pending:
            return
        payload = self._encode(Batch(time.time(), self._pending, self._rank))
        self._pending = []
        number, self._next = self._next, self._next + 1
        self._kept.append((number, payload))
        if self._faults.lose_events > 0:
            self._faults.lose_events -= 1
            return
        self._pub.send_multipart((self._topic, number.to_bytes(8, "big"), payload))

    async def _answer(self) -> None:
        while True:
            client, _, start = await self._replay.recv_multipart()
            first = int.from_bytes(start, "big")
            answer = [(self._topic, number.to_bytes(8, "big"), kept) for number, kept in self._kept if number >= first]
            room = self._faults.replay_room
            for at, parts in enumerate([*answer, (b"", _END, b"")]):
                if not room or at // room % 2 == 0:
                    await self._replay.send_multipart((client, b"", *parts))

    async def close(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)
        self._close_sockets()

    def _close_sockets(self) -> None:
        """ZMQ lets go of the ports a little later, in a thread of its own."""
        for socket in (self._pub, self._replay):
            if socket is not None:
                socket.close(linger=0)


async def publisher(
    block_size: int, endpoint: str, replay_endpoint: str | None, faults: Faults, rank: int = 0
) -> Publisher:
    """A publisher; waits a little for ports that an earlier one has just closed. Raises OSError if they stay taken."""
    patience = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            return Publisher(block_size, endpoint, replay_endpoint, faults, rank)
        except ZMQError as error:
            if error.errno != errno.EADDRINUSE or asyncio.get_running_loop().time() > patience:
                raise OSError(f"cannot publish KV events on {endpoint}, {replay_endpoint}: {error.strerror}") from error
            await asyncio.sleep(0.002)


def _bind(socket: Any, endpoint: str) -> str:
    """Bind, and the endpoint with the port that it got."""
    socket.bind(endpoint)
    if not endpoint.endswith(":*"):
        return endpoint
    bound: str = socket.getsockopt_string(SocketOption.LAST_ENDPOINT)
    return bound

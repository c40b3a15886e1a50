"""One engine's stream of KV events: what it publishes from now on, and on request what it published before.

PUB sends three frames: topic, sequence number (8 bytes, big-endian, from 0), payload. The replay ROUTER takes
`["", first sequence]`, answers `["", topic, sequence, payload]` for what it still has, and ends with sequence -1.
A ROUTER drops what does not fit into its queue (1000 messages), the end too, so a long answer may have holes.
Source: vLLM `distributed/kv_events.py`.
"""

import asyncio
from typing import Any, NamedTuple

from zmq.asyncio import Context
from zmq.constants import Event as SocketEvent
from zmq.constants import Flag, SocketOption, SocketType
from zmq.error import Again
from zmq.utils.monitor import recv_monitor_message

from gateway.index.events.source import Source

HIGH_WATER = 20_000
"""Messages that wait to be read; what comes above is lost, seen as a gap and replayed."""

BEAT_MS = 2_000
SILENT_MS = 6_000
"""A publisher that answers no heartbeat for so long is gone: a host that loses its power says no goodbye."""
CONNECT_MS = 2_000
RETRY_MS = 1_000
"""TCP by itself asks a host that was away ever more rarely."""

_ANSWER_S = 5.0
_GO_ON_S = 0.5
"""How long an engine may take to begin a replay, and to go on with it."""

_DONE = -1


class Message(NamedTuple):
    """One batch on the wire."""

    topic: str
    number: int
    payload: bytes


class Stream:
    """A subscription; use `close` when done."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._context = Context()
        self._socket: Any = self._context.socket(SocketType.SUB)
        self._socket.set_hwm(HIGH_WATER)
        self._socket.setsockopt(SocketOption.HEARTBEAT_IVL, BEAT_MS)
        self._socket.setsockopt(SocketOption.HEARTBEAT_TIMEOUT, SILENT_MS)
        self._socket.setsockopt(SocketOption.CONNECT_TIMEOUT, CONNECT_MS)
        self._socket.setsockopt(SocketOption.RECONNECT_IVL_MAX, RETRY_MS)
        self._socket.subscribe(b"")  # whatever its topic is called
        self._monitor: Any = self._socket.get_monitor_socket(SocketEvent.HANDSHAKE_SUCCEEDED)
        self._connections = 0
        self._socket.connect(source.endpoint)

    async def receive(self, batch_s: float) -> list[Message]:
        """Wait for a message; then return all that came until `batch_s` later."""
        frames = [await self._socket.recv_multipart()]
        await asyncio.sleep(batch_s)
        try:
            while len(frames) < HIGH_WATER:
                frames.append(await self._socket.recv_multipart(Flag.NOBLOCK))
        except Again:
            pass
        return [_message(parts) for parts in frames if len(parts) == 3]

    async def reconnected(self) -> None:
        """Wait until a connection to the publisher has been made that is not the first one."""
        while True:
            await recv_monitor_message(self._monitor)
            self._connections += 1
            if self._connections > 1:
                return

    async def replay(self, first: int) -> list[Message]:
        """What the engine still has from `first` on, without a hole; empty if it has nothing or does not answer.

        What was dropped on the way is asked for again.
        """
        found: list[Message] = []
        while self.source.replay_endpoint:
            wanted = found[-1].number + 1 if found else first
            part = await self._asked(wanted)
            if not part:
                break  # only an empty answer says that nothing before its end was dropped
            if part[0].number != wanted:
                found.clear()  # what was dropped is gone by now, and nothing before it is of use
            found += part
        return found

    async def _asked(self, first: int) -> list[Message]:
        """One answer, up to its first hole."""
        part: list[Message] = []
        socket: Any = self._context.socket(SocketType.DEALER)
        socket.set_hwm(0)
        try:
            socket.connect(self.source.replay_endpoint)
            await socket.send_multipart((b"", first.to_bytes(8, "big")))
            while await socket.poll(1e3 * (_GO_ON_S if part else _ANSWER_S)):
                _, *parts = await socket.recv_multipart()
                message = _message(parts)
                if message.number == _DONE or (part and message.number != part[-1].number + 1):
                    break
                part.append(message)
            return part
        finally:
            socket.close(linger=0)

    def close(self) -> None:
        self._socket.disable_monitor()
        self._context.destroy(linger=0)


def _message(parts: list[bytes]) -> Message:
    topic, number, payload = parts
    return Message(topic.decode("utf-8", "replace"), int.from_bytes(number, "big", signed=True), payload)

"""A client of the gateways: plain HTTP/1.1 on kept connections, and no more retrying than a careful client does.

It goes to another gateway only while no byte of an answer has come: the connection was refused, reset or closed.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from load.chaos.judge import Answer
from load.chaos.traffic import Ask

TRIES = 6
PAUSE_S = 0.1
"""After each gateway was tried once, before the next round."""

_DAWDLE_S = 0.02
"""What a slow reader rests before each read."""

_IDLE = 64

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NoAnswer(Exception):
    """The connection ended before the first byte of an answer."""


@dataclass(slots=True)
class Client:
    """Asks gateways on these ports of this machine."""

    ports: Sequence[int]
    retried: int = 0
    """Requests sent to another gateway because no byte of an answer came."""
    _idle: dict[int, list[Streams]] = field(default_factory=dict)

    async def send(self, ask: Ask) -> tuple[Answer, int]:
        """One request; also the gateway (its index) that answered. Never raises for what a gateway does."""
        raw = ask.raw()
        which = ask.gateway % len(self.ports)
        answer = Answer()
        for attempt in range(TRIES):
            which = (ask.gateway + attempt) % len(self.ports)
            if attempt:
                self.retried += 1
            if attempt and attempt % len(self.ports) == 0:
                await asyncio.sleep(PAUSE_S)
            answer = Answer()
            with contextlib.suppress(NoAnswer):
                await self._once(self.ports[which], ask, raw, answer)
                break
        return answer, which

    async def _once(self, port: int, ask: Ask, raw: bytes, answer: Answer) -> None:
        """One try. Raises `NoAnswer`."""
        reader, writer = await self._connect(port)
        keep = False
        try:
            try:
                writer.write(raw)
                head = await reader.readuntil(b"\r\n\r\n")
            except (OSError, asyncio.IncompleteReadError) as error:
                if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                    return
                raise NoAnswer from None
            answer.status = int(head[9:12])
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await _body(reader, head.lower(), ask, answer)
            keep = answer.ended and not answer.left
        finally:
            if keep and len(idle := self._idle.setdefault(port, [])) < _IDLE:
                idle.append((reader, writer))
            else:
                writer.transport.abort()

    async def _connect(self, port: int) -> Streams:
        """A kept connection that still looks open, or a new one. Raises `NoAnswer`."""
        idle = self._idle.get(port, [])
        while idle:
            reader, writer = idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.transport.abort()
        try:
            return await self._open(port)
        except OSError:
            raise NoAnswer from None

    async def _open(self, port: int) -> Streams:
        """A new connection. Raises OSError."""
        return await asyncio.open_connection("127.0.0.1", port)

    def close(self) -> None:
        """Let go of the kept connections."""
        for streams in self._idle.values():
            for _, writer in streams:
                writer.transport.abort()
        self._idle.clear()


async def _body(reader: asyncio.StreamReader, head: bytes, ask: Ask, answer: Answer) -> None:
    """Read a body into `answer`. Raises `OSError` or `IncompleteReadError` if it breaks off."""
    _, found, rest = head.partition(b"\r\ncontent-length:")
    if found:
        answer.body.append(await reader.readexactly(int(rest.partition(b"\r\n")[0])))
        answer.ended = True
        return
    held = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        held += (await reader.readexactly(size + 2))[:-2]
        *events, held = held.split(b"\n\n")
        answer.body += events
        if ask.leave_after and len(answer.body) >= ask.leave_after:
            answer.left = True
            return
        if ask.manner == "dawdles":
            await asyncio.sleep(_DAWDLE_S)
    await reader.readexactly(2)
    if held:
        answer.body.append(held)
    answer.ended = True

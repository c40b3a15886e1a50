"""The side channel between doubles: a decode double reads blocks of a prefill double and tells it when it has them.

Stands in for NIXL: `remote_host:remote_port` is a TCP listener that answers length-prefixed msgpack messages. Like a
one-sided RDMA read, a read is served from whatever the blocks hold at that moment; the owner checks nothing.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from engines.double.pool import Content
from engines.double.port import Port

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class TransferError(Exception):
    """The other engine cannot be reached, or is not the one it was."""


class Owner(Protocol):
    """The engine behind a side channel."""

    @property
    def id(self) -> str: ...
    def contents(self, blocks: Sequence[int]) -> list[Content]: ...
    def notified(self, request: str) -> None: ...
    def heard(self, requests: Sequence[str]) -> None: ...


async def _receive(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(4), "big")
    return _decode(await reader.readexactly(size))


def _send(writer: asyncio.StreamWriter, message: Any) -> None:
    raw = _encode(message)
    writer.write(len(raw).to_bytes(4, "big") + raw)


class SideChannel:
    """Serves an owner's blocks on `host:port` (0: any) until closed."""

    def __init__(self, host: str, port: int) -> None:
        self._listening = Port(host, port)
        self._owner: Owner | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def host(self) -> str:
        return self._listening.host

    @property
    def port(self) -> int:
        """Its number; 0 until one was taken."""
        return self._listening.number

    def open(self, owner: Owner) -> None:
        """Raises OSError if the port is taken."""
        self._owner = owner
        self._listening.listen(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._accept))

    async def close(self) -> None:
        """Drop the listener and all connections at once."""
        self._owner = None
        self._listening.refuse()
        for client in self._clients:
            client.transport.abort()
        await self._listening.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._owner is None:  # closed meanwhile
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(writer)
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                _send(writer, self._answer(*await _receive(reader)))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(writer)
            writer.close()

    def _answer(self, engine: str, verb: str, subject: Any) -> Any:
        owner = self._owner
        if owner is None or engine != owner.id:
            return ["error", "engine id mismatch"]
        if verb == "read":
            try:
                contents = owner.contents(subject)
            except (IndexError, TypeError):
                return ["error", "no such block"]
            return ["ok", [(content.base, content.tokens) for content in contents]]
        if verb == "done":
            owner.notified(subject)
        else:
            owner.heard(subject)
        return ["ok", None]


class Peer:
    """A connection to the side channel of one engine, for the length of a `with` block."""

    def __init__(self, host: str, port: int, engine: str) -> None:
        self._address = (host, port)
        self._engine = engine
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> "Peer":
        try:
            self._streams = await asyncio.open_connection(*self._address)
        except OSError as error:
            raise TransferError(f"{self._address}: {error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._streams is not None:
            writer = self._streams[1]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _ask(self, verb: str, subject: Any) -> Any:
        if self._streams is None:
            raise TransferError("not connected")
        reader, writer = self._streams
        try:
            _send(writer, [self._engine, verb, subject])
            status, value = await _receive(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise TransferError(f"{self._address}: {error}") from error
        if status != "ok":
            raise TransferError(f"{self._address}: {value}")
        return value

    async def read(self, blocks: Sequence[int]) -> list[Content]:
        """What these blocks hold now. Raises `TransferError`."""
        return [Content(base, tokens) for base, tokens in await self._ask("read", list(blocks))]

    async def done(self, request: str) -> None:
        """The request's blocks were read or are not wanted. Raises `TransferError`."""
        await self._ask("done", request)

    async def beat(self, requests: Sequence[str]) -> None:
        """These requests still wait. Raises `TransferError`."""
        await self._ask("beat", list(requests))

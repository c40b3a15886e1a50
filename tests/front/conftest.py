"""A server of our own protocol on a real socket, with a handler that echoes what it is told to."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.front.call import Call, Gone
from gateway.front.connection import Connection
from gateway.front.turnstile import Turnstile

LIMIT = 8 << 20


@dataclass
class Shared:
    """What uvicorn's server gives to all connections."""

    total_requests: int = 0
    connections: set[Any] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    default_headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"date", b"now")])


class Echo:
    """Answers with the digest of what came; `/stream` sends the body back in pieces of random sizes."""

    def __init__(self) -> None:
        self.gone = 0
        self.calls: list[Call] = []
        self.released = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        self.calls.append(call)
        try:
            body = await call.body(LIMIT, LIMIT, 5.0)
        except Gone:
            self.gone += 1
            return
        if body is None:
            call.reply(413, [], b"too large")
        elif call.url.startswith(b"/stream"):
            call.start(200, [(b"x-method", call.method)])
            for piece in pieces(body, len(body)):
                await call.send(piece)
            call.end()
        elif call.url.startswith(b"/wait"):
            left = asyncio.Event()
            call.left = left.set
            waits = [asyncio.ensure_future(one.wait()) for one in (left, self.released)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for one in waits:
                one.cancel()
            if left.is_set():
                self.gone += 1
            else:
                call.reply(200, [], b"waited")
        elif call.url == b"/empty":
            call.reply(204, [], b"")
        elif call.url == b"/raise":
            raise RuntimeError("on purpose")
        elif call.url == b"/half":
            call.start(200, [])
            await call.send(b"half")
            raise RuntimeError("on purpose")
        elif call.url == b"/inject":
            call.reply(200, [(b"x", b"a\r\nset-cookie: b")], b"")
        else:
            facts = [(b"x-method", call.method), (b"x-headers", str(len(call.headers)).encode())]
            call.reply(200, facts, digest(body))


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    """`data` in pieces of random sizes, many of them tiny."""
    pick = random.Random(seed)
    at = 0
    while at < len(data):
        size = pick.choice((1, 2, 3, 17, 255, 4096, 70_000))
        yield data[at : at + size]
        at += size


@asynccontextmanager
async def serving(keep_alive_s: float = 5.0) -> AsyncIterator[tuple[int, Echo, Shared]]:
    """Port, handler and shared state of a server."""
    echo, shared = Echo(), Shared()
    loop = asyncio.get_running_loop()
    turnstile = Turnstile(loop)
    server = await loop.create_server(lambda: Connection(echo, shared, turnstile, keep_alive_s), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], echo, shared
    finally:
        server.close()
        for connection in list(shared.connections):
            connection.transport.abort()

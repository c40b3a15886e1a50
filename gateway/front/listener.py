"""Further sockets on which an ASGI app answers, beside the server's own."""

import asyncio
import socket
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any

from uvicorn.server import ServerState

from gateway.front import asgi
from gateway.front.call import Call
from gateway.front.connection import Connection
from gateway.front.turnstile import Turnstile

_KEEP_ALIVE_S = 5.0


class Listener:
    """Listens from `start` to `stop`."""

    def __init__(self, app: asgi.App, sockets: Sequence[socket.socket]) -> None:
        self._app = app
        self._sockets = sockets
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        turnstile = Turnstile(loop)

        def connect() -> Any:
            return Connection(self._answer, self._state, turnstile, _KEEP_ALIVE_S)

        self._servers = [await loop.create_server(connect, sock=one) for one in self._sockets]

    async def _answer(self, call: Call) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        await asgi.serve(self._app, call)

    def stop(self) -> None:
        """Nothing new is heard; what is being answered ends with its connection."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()

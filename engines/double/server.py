"""One listening port with uvicorn's HTTP protocol on the running loop: closed, refused and killed at will.

uvicorn's own `Server` owns signals and a ticking main loop; a process with hundreds of doubles wants neither.
"""

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from engines.double.port import Port

_STOP_S = 5.0


class Server:
    """Serves an ASGI app on `host:port` (0: any)."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._config = uvicorn.Config(
            app, host, port, lifespan="off", ws="none", http="httptools", log_config=None, access_log=False
        )
        self._config.load()
        self._state = ServerState()
        self._listening = Port(host, port)
        self._killed = asyncio.Event()
        self._clock: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """Its number; 0 until one was taken."""
        return self._listening.number

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._state.connections)

    def bind(self) -> None:
        """Take the port, still refusing connections; nothing if it is ours. Raises OSError if it is taken."""
        self._listening.bind()

    def listen(self) -> None:
        """Accept connections; nothing if it does already. Raises OSError if the port is taken."""
        killed = asyncio.Event()
        if self._listening.listen(self._protocol(killed)):
            self._killed = killed
            self._tick()

    def _protocol(self, killed: asyncio.Event) -> Callable[[], asyncio.Protocol]:
        loop = asyncio.get_running_loop()
        base: Any = self._config.http_protocol_class

        class Connection(base):  # type: ignore[misc]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                if killed.is_set():  # nobody knew of it yet
                    transport.abort()

        return lambda: Connection(config=self._config, server_state=self._state, app_state={}, _loop=loop)

    def refuse(self) -> None:
        """New connections are refused; the port stays ours and the open connections stay open."""
        self._listening.refuse()

    def drop(self, client: tuple[str, int]) -> None:
        """Close one client's connection after what has been written to it, whatever is still to come."""
        for connection in self._state.connections:
            transport = getattr(connection, "transport", None)
            if transport is not None and getattr(connection, "client", None) == tuple(client):
                transport.close()

    def kill(self) -> None:
        """Refuse, and drop every open connection at once (RST or EOF, whatever is on the way is lost)."""
        self.refuse()
        self._killed.set()
        for connection in list(self._state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    async def close(self) -> None:
        """Kill, wait for the handlers to end, and give the port back."""
        self.kill()
        await self._listening.close()
        if left := self._state.tasks:
            await asyncio.wait(left, timeout=_STOP_S)

    def _tick(self) -> None:
        """Keep the `date` header right; uvicorn's server does it in its main loop."""
        date = formatdate(usegmt=True).encode()
        self._state.default_headers = [(b"date", date), (b"server", b"uvicorn")]
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick)

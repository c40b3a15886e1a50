"""One listening port with uvicorn's HTTP protocol on the running loop: closed, refused and killed at will.

uvicorn's own `Server` owns signals and a ticking main loop; a process with hundreds of doubles wants neither.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.server import ServerState

_STOP_S = 5.0


class Server:
    """Serves an ASGI app on `host:port` (0: any, and the same one again after `stop`)."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._config = uvicorn.Config(
            app, host, port, lifespan="off", ws="none", http="httptools", log_config=None, access_log=False
        )
        self._config.load()
        self._state = ServerState()
        self.port = port
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """That of the listening socket, while it listens."""
        self._arriving: set[asyncio.Task[Any]] = set()
        self._killed = asyncio.Event()
        self._clock: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._state.connections)

    def bind(self) -> socket.socket:
        """Take the port, still refusing connections; nothing if it is ours. Raises OSError if it is taken."""
        if self._socket is None:
            self._socket = _bound(self._config.host, self.port)
            self.port = self._socket.getsockname()[1]
        return self._socket

    async def listen(self) -> None:
        """Accept connections; nothing if it does already. Raises OSError if the port is taken."""
        if self._loop is not None:
            return
        bound = self.bind()
        bound.listen(2048)
        self._loop = asyncio.get_running_loop()
        self._killed = asyncio.Event()
        self._loop.add_reader(bound, self._accept, bound, self._loop, self._protocol())
        self._tick()

    def _protocol(self) -> Callable[[], asyncio.Protocol]:
        loop, killed = self._loop, self._killed
        base: Any = self._config.http_protocol_class

        class Connection(base):  # type: ignore[misc]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                if killed.is_set():  # nobody knew of it yet
                    transport.abort()

        return lambda: Connection(config=self._config, server_state=self._state, app_state={}, _loop=loop)

    def _accept(
        self, bound: socket.socket, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        """Not by `create_server`: what that has accepted when it is closed stays open, and is never answered."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            accepted, _ = bound.accept()
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(loop.connect_accepted_socket(protocol, accepted))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    def refuse(self) -> None:
        """New connections are refused; the port stays ours and the open connections stay open."""
        if self._loop is not None and self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None
            # Shutting the socket down ends its listening but not its binding (Linux): `listen` can start again.
            self._socket.shutdown(socket.SHUT_RDWR)

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
        if left := self._arriving | self._state.tasks:
            await asyncio.wait(left, timeout=_STOP_S)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tick(self) -> None:
        """Keep the `date` header right; uvicorn's server does it in its main loop."""
        date = formatdate(usegmt=True).encode()
        self._state.default_headers = [(b"date", date), (b"server", b"uvicorn")]
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick)


def _bound(host: str, port: int) -> socket.socket:
    """A socket bound to the port by number, even to a free one: only such a port outlives a `shutdown` (Linux)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only with the proto
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setblocking(False)
        made.bind((host, port))
        if not port:
            with made:
                return _bound(host, made.getsockname()[1])
    except OSError as error:
        made.close()
        raise OSError(f"cannot serve a double on {host}:{port}: {error.strerror}: choose another port") from error
    return made

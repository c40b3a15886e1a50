"""A listening port that can be shut at any moment and leaves nobody unanswered who has just come in."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

_STOP_S = 5.0


class Port:
    """`host:number` (0: any, and the same one again after `refuse`).

    Not asyncio's `Server`: a connection that it has accepted when it is closed is never made and never ended.
    """

    def __init__(self, host: str, number: int) -> None:
        self.host = host
        self.number = number
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """That of the listening socket, while it listens."""
        self._arriving: set[asyncio.Task[Any]] = set()

    def bind(self) -> socket.socket:
        """Take the port, still refusing connections; nothing if it is ours. Raises OSError if it is taken."""
        if self._socket is None:
            self._socket = _bound(self.host, self.number)
            self.number = self._socket.getsockname()[1]
        return self._socket

    def listen(self, protocol: Callable[[], asyncio.Protocol]) -> bool:
        """Accept connections; False if it does already. Raises OSError if the port is taken."""
        if self._loop is not None:
            return False
        bound = self.bind()
        bound.listen(2048)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bound, self._accept, bound, self._loop, protocol)
        return True

    def refuse(self) -> None:
        """New connections are refused; the port stays ours and the open connections stay open."""
        if self._loop is not None and self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None
            # Shutting the socket down ends its listening but not its binding (Linux): `listen` can start again.
            self._socket.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Refuse, wait until who has come in is with its protocol, and give the port back."""
        self.refuse()
        if self._arriving:
            await asyncio.wait(self._arriving, timeout=_STOP_S)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _accept(
        self, bound: socket.socket, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            accepted, _ = bound.accept()
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(loop.connect_accepted_socket(protocol, accepted))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)


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

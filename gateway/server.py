"""uvicorn around the app: start-up, main loop and shutdown, readable top to bottom."""

import asyncio
import logging
import socket
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.app import App
from gateway.settings import Settings


class Connection(HttpToolsProtocol):
    """A client's connection that sends each piece at once: Nagle's algorithm would hold tokens back."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        found = cast(socket.socket | None, transport.get_extra_info("socket"))
        if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)


class Server(uvicorn.Server):
    """Says that it is not ready before it stops accepting."""

    def __init__(self, app: App, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                cast(Any, app),
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(settings.drain_s),
            )
        )
        self._readiness = app.readiness

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._readiness.draining = True
        super().handle_exit(sig, frame)


def log_to_stderr(level: str) -> None:
    """One line per event, with time and level."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per health check otherwise

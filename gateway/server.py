"""uvicorn around the app: start-up, main loop and shutdown, readable top to bottom."""

import asyncio
import ctypes
import gc
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from gateway.app import App
from gateway.front.connection import Connection
from gateway.front.turnstile import Turnstile
from gateway.hangup import Hangup
from gateway.settings import Settings

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than most clients keep an idle connection, so that hardly one sends into a connection that we close."""

_M_ARENA_MAX = -8
"""glibc's `malloc.h`."""

_LAST_WORDS_S = 3.0
"""Until a client has read that its request was ended."""

GARBAGE = 20_000
"""Objects made and not freed before the collector looks at the young ones: a request makes hardly any cycles."""


class Server(uvicorn.Server):
    """Ends in order: not ready any more, but serving, until balancers have noticed; then nothing new, and what is under
    way may end; what does not in time gets an error that its client can read. A second signal ends it at once, with 1.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self._settings = settings
        self._closes_s = math.inf
        turnstile: Turnstile | None = None

        def connect(
            config: uvicorn.Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> Connection:
            nonlocal turnstile
            if turnstile is None:
                turnstile = Turnstile(asyncio.get_running_loop())
            made = Connection(app.answer, server_state, turnstile, config.timeout_keep_alive)
            if app.readiness.draining:
                made.retire()
            return made

        super().__init__(
            uvicorn.Config(
                cast(Any, app),
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http=cast(Any, connect),  # uvicorn only calls it
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self.readiness = app.readiness
        self._reload = app.reloading.again

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():
            Hangup(self._reload).listen(asyncio.get_running_loop())

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._captured_signals.append(sig)
        if self.readiness.draining:
            log.warning("ended at once by a second signal")
            os._exit(1)
        noticed = sig == signal.SIGTERM and self.readiness.balanced
        self._closes_s = time.monotonic() + (self._settings.notice_s if noticed else 0.0)
        self.readiness.draining = True
        for connection in list(self.server_state.connections):
            cast(Connection, connection).retire()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or time.monotonic() >= self._closes_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain_s = self._settings.drain_s
        self.config.timeout_graceful_shutdown = int(drain_s + _LAST_WORDS_S)
        clock = asyncio.get_running_loop().call_later(drain_s, self._dismiss)
        try:
            await super().shutdown(sockets)
        finally:
            clock.cancel()

    def _dismiss(self) -> None:
        late = list(self.server_state.connections)
        log.warning("%d connections are still busy after drain_s", len(late))
        for connection in late:
            cast(Connection, connection).dismiss()


def until_signalled(server: Server, sockets: list[socket.socket] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises SystemExit with 1 if it could not start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a stream holds two connections
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)  # there is one busy thread: more arenas only hold more memory
    gc.freeze()  # what is loaded by now stays; the collector need not walk through it again and again
    gc.set_threshold(GARBAGE)
    # uvicorn raises the signal that ended it again once it has shut down in order: both are a good end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt):
        server.run(sockets)
    if not server.started:
        sys.exit(1)


def log_to_stderr(level: str, who: str = "") -> None:
    """One line per event, with time and level, and who says it where there are several."""
    logging.basicConfig(level=level.upper(), format=f"%(asctime)s %(levelname)-7s {who}%(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per health check otherwise

"""One worker: a whole gateway that shares its listening socket with the others."""

import asyncio
import os
import signal
import socket
from multiprocessing import parent_process
from multiprocessing.synchronize import Event

from engines.fleet import Fleet as FleetFile
from gateway import lean  # noqa: F401  # before all that imports httpx
from gateway.api.siblings import Siblings
from gateway.launch import Launch
from gateway.settings import Settings


def work(
    launch: Launch,
    file: FleetFile,
    settings: Settings,
    shared: socket.socket,
    door: socket.socket | None,
    siblings: Siblings,
    up: Event,
) -> None:
    """Serve until SIGTERM or the parent's end; sets `up` when requests are taken. Exits with 1 if that never was."""
    from gateway.app import App
    from gateway.server import Server, log_to_stderr, until_signalled

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is heard
    os.setsid()  # Ctrl-C is for the parent, who ends all of us in order
    log_to_stderr(settings.log_level, f"worker {siblings.number} ")

    class Worker(Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                up.set()
                parent = parent_process()
                assert parent is not None
                asyncio.get_running_loop().add_reader(parent.sentinel, self.orphaned, parent.sentinel)

        def orphaned(self, sentinel: int) -> None:
            asyncio.get_running_loop().remove_reader(sentinel)
            self.readiness.draining = self.should_exit = True

    doors = [siblings.listen(), *([door] if door is not None else [])]
    until_signalled(Worker(App.of(launch, file, settings, siblings, doors), settings), [shared])

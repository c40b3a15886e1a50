"""The parent of all workers: starts them, starts again who dies, and ends them in order."""

import asyncio
import logging
import os
import signal
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory

from engines.fleet import Fleet as FleetFile
from engines.fleet import FleetError
from gateway.admission.keys import Keys
from gateway.api.address import bind
from gateway.api.siblings import Siblings
from gateway.hangup import Hangup
from gateway.index.embedded import Embedded
from gateway.launch import Launch
from gateway.routing.router import Router
from gateway.settings import LIVE, Settings, SettingsError
from gateway.telemetry.metrics import Metrics
from gateway.workers import CannotStart
from gateway.workers.worker import work

log = logging.getLogger(__name__)

BACKLOG = 2048
GRACE_S = 5.0
"""After `drain_s`, until a worker that does not end is killed."""
_AGAIN_S, _AGAIN_MAX_S = 0.5, 30.0
_LOOK_S = 0.5
_LIVED_S = 60.0
"""A worker that lived so long is started again at once."""


def run_workers(launch: Launch, file: FleetFile, settings: Settings) -> None:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT.

    They share one listening socket, so that no connection is lost when one of them dies, and one Redis: an embedded
    Valkey where none is named. Raises `CannotStart`, OSError if the port is taken, `SettingsError`,
    `UnknownPolicy`.
    """
    Router(settings, Metrics())  # what every worker would fail on is said once, here: policies, folder, keys
    Keys.load(settings.api_keys_file)
    with ExitStack() as stack:
        shared = stack.enter_context(socket.create_server((settings.host, settings.port), backlog=BACKLOG))
        door = bind(settings)
        folder = stack.enter_context(TemporaryDirectory(prefix="baton-"))
        embedded = None
        if not settings.redis:
            embedded = stack.enter_context(Embedded())
            settings = settings.model_copy(update={"redis": embedded.url})
            launch = replace(launch, flags={**launch.flags, "redis": embedded.url})
        asyncio.run(_Crew(launch, file, settings, shared, door, folder, embedded).run())


class _Crew:
    def __init__(
        self,
        launch: Launch,
        file: FleetFile,
        settings: Settings,
        shared: socket.socket,
        door: socket.socket | None,
        folder: str,
        embedded: Embedded | None,
    ) -> None:
        self._launch = launch
        self._file = file
        self._settings = settings
        self._shared = shared
        self._door = door
        self._folder = folder
        self._embedded = embedded
        self._context = get_context("spawn")
        self._up = self._context.Event()
        self._processes: dict[int, SpawnProcess] = {}
        self._told: set[int] = set()
        """Workers that were told to end; a second time would be at once."""
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for ending in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ending, self._stop, ending)
        Hangup(self._reload).listen(loop)
        count = self._settings.workers
        where = f"http://{self._settings.host}:{self._shared.getsockname()[1]}"
        log.info("%d workers on %s", count, where)
        minder = asyncio.create_task(self._mind_redis())
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    group.create_task(self._keep(number))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            minder.cancel()
            for process in self._processes.values():
                process.kill()

    def _stop(self, ending: signal.Signals) -> None:
        """The first time: everybody ends in order. The second time: at once."""
        for process in self._processes.values():
            self._end_one(process, signal.SIGKILL if self._stopping.is_set() else ending)
        self._stopping.set()

    def _end_one(self, process: SpawnProcess, how: signal.Signals) -> None:
        if process.is_alive() and process.pid is not None:
            self._told.add(process.pid)
            os.kill(process.pid, how)

    def _reload(self) -> None:
        """Everybody reads fleet file, settings and keys again; who is started later reads them anyway."""
        self._read()
        for process in self._processes.values():
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGHUP)

    def _read(self) -> None:
        """What the next worker starts with: fleet and settings as they are now, if they are good."""
        try:
            self._file, effective = self._launch.read()
        except (FleetError, SettingsError) as error:
            log.error("%s", error)
            return
        live = {name: getattr(effective.settings, name) for name in LIVE}
        self._settings = self._settings.model_copy(update=live)

    async def _keep(self, number: int) -> None:
        """One worker after the other in one place."""
        siblings = Siblings(self._folder, number, self._settings.workers)
        again_s = _AGAIN_S
        while not self._stopping.is_set():
            began = time.monotonic()
            mine = (self._launch, self._file, self._settings, self._shared, self._door, siblings, self._up)
            process = self._context.Process(target=work, args=mine, name=f"worker {number}")
            process.start()
            self._processes[number] = process
            await self._end(process)
            if self._stopping.is_set():
                return
            if not self._up.is_set():
                raise CannotStart(f"worker {number} ended with {process.exitcode} before any was up")
            self._read()
            again_s = _AGAIN_S if time.monotonic() - began > _LIVED_S else min(again_s * 2, _AGAIN_MAX_S)
            log.error("worker %d ended with %s; starts again in %g s", number, process.exitcode, again_s)
            try:
                async with asyncio.timeout(again_s):
                    await self._stopping.wait()
            except TimeoutError:
                pass

    async def _end(self, process: SpawnProcess) -> None:
        """Wait until a worker has ended; one that is to end has a limited time for it."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(process.sentinel, ended.set)
        waiting = asyncio.create_task(ended.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not ended.is_set():
                if process.pid not in self._told:  # the signal came before it was in our book
                    self._end_one(process, signal.SIGTERM)
                limit_s = self._settings.notice_s + self._settings.drain_s + GRACE_S
                _, late = await asyncio.wait((waiting,), timeout=limit_s)
                if late:
                    process.kill()
                    await waiting
        finally:
            stopping.cancel()
            waiting.cancel()
            loop.remove_reader(process.sentinel)
        process.join()

    async def _mind_redis(self) -> None:
        """The embedded server is started again, empty, if it dies; the workers fill it from the engines."""
        server = self._embedded
        while server is not None and server.process is not None:
            await asyncio.sleep(_LOOK_S)
            if (died := server.process.poll()) is not None:
                log.error("the embedded index server ended with %s; it starts again", died)
                await asyncio.to_thread(server.start)

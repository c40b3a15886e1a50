"""One process that is kept running: started when its turn comes, watched, started again, drained, ended.

    waiting -> starting -> ready -> draining -> stopping -> stopped
                  └───────────┴─ ends, hangs or is never ready: pausing -> starting ...; too often: failed

`stopped` and `failed` last until somebody wants it to run again.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, StrEnum, auto
from typing import NamedTuple

import httpx

from engines.budget import Figures
from engines.checks import is_free
from engines.diagnosis import diagnose
from engines.log import Log
from engines.process import LEFT_S, Process
from engines.pulse import Pulse
from engines.spec import Spec
from engines.supervision import Crashes, Supervision

log = logging.getLogger(__name__)

ASK_S = 0.3
"""Between two questions to an engine that starts or drains."""
LOOK_S = 1.0
"""Between two looks at one that serves."""
RECENT = 60
"""Looks at what it counts that are remembered."""
IDLE_S = 1.0
"""An engine without requests for so long is drained: gateways have heard of it, and what it prefilled is fetched."""


class Phase(StrEnum):
    """Where a service is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    PAUSING = "pausing"
    FAILED = "failed"


COMING = {Phase.WAITING, Phase.STARTING, Phase.PAUSING}


class _Wish(Enum):
    RUN = auto()
    RESTART = auto()
    STOP = auto()


class _End(NamedTuple):
    why: str
    final: bool = False


class Service:
    """`after`: what must not be starting when this is. `drains`: gateways hear of it, so it can be awaited."""

    def __init__(
        self,
        spec: Spec,
        rules: Supervision,
        log: Log,
        http: httpx.AsyncClient,
        after: Sequence["Service"] = (),
        shown: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.log = log
        self.after = after
        self.drains = False
        self.patient = True
        """False: the first end of the process is a failure."""
        self.phase = Phase.WAITING
        self.why = ""
        """What ended it last, in words, with the mend."""
        self.starts = 0
        self.since_s = time.monotonic()
        """When its phase began."""
        self.took_s = 0.0
        """From its last start until it was ready."""
        self.recent: deque[Figures] = deque(maxlen=RECENT)
        """What it counted at the last looks, about one a second."""
        self._rules = rules
        self._http = http
        self._shown = shown
        self._crashes = Crashes(rules)
        self._process: Process | None = None
        self._wish = _Wish.RUN
        self._told = asyncio.Event()
        self._moved = asyncio.Event()
        self._drain = False
        self._life: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def ready(self) -> bool:
        return self.phase is Phase.READY

    @property
    def pid(self) -> int | None:
        """Of the guard above it, while it runs."""
        return self._process.pid if self._process is not None and self._process.running else None

    @property
    def stage(self) -> str:
        """What it is doing, for a person."""
        if self.phase is Phase.WAITING:
            names = [other.name for other in self.after if other.phase in COMING]
            return f"waiting for {', '.join(names)}" if names else "waiting"
        return self.log.stages.name if self.phase is Phase.STARTING else self.phase

    @property
    def share(self) -> float:
        """How far it is with starting, 0 to 1."""
        return self.log.stages.share if self.phase is Phase.STARTING else float(self.ready)

    # What others want of it.

    def begin(self) -> None:
        """Keep it from now on."""
        self._life = asyncio.create_task(self._live(), name=f"service {self.name}")
        self._life.add_done_callback(self._broken)

    def restart(self, drain: bool = True) -> None:
        """End the process and start it again; also what has failed or was stopped."""
        self._want(_Wish.RESTART, drain)

    def stop(self, drain: bool = True) -> None:
        """End the process and do not start it again before `restart`."""
        self._want(_Wish.STOP, drain)

    def kill(self) -> None:
        """The same at once."""
        self._want(_Wish.STOP, drain=False)
        if self._process is not None:
            self._process.kill()

    def replace(self, spec: Spec, rules: Supervision) -> None:
        """From the next start on it is this, under these rules."""
        self.spec, self._rules = spec, rules

    async def count(self) -> Figures | None:
        """What it counts now; None if it does not say."""
        page = await self._metrics()
        return Figures.of(page) if page else None

    async def reaches(self, *phases: Phase) -> Phase:
        """Wait until it is in one of these; returns which."""
        while self.phase not in phases or self._told.is_set():
            await self._moved.wait()
        return self.phase

    async def end(self) -> None:
        """Forget it, once it is stopped or at once."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait((self._life,))
        self.log.close()

    def _want(self, wish: _Wish, drain: bool) -> None:
        self._wish, self._drain = wish, drain and self.drains
        self._told.set()

    def _broken(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled() and (error := life.exception()) is not None:
            self.why = f"{self.name} is not supervised any more: {type(error).__name__}: {error}"
            log.error("%s", self.why, exc_info=error)
            self._to(Phase.FAILED)

    # Its life.

    async def _live(self) -> None:
        while True:
            if self._wish is _Wish.RUN and await self._turn():
                end = await self._run()
                self._process = None
                if self._wish is _Wish.RUN:
                    await self._rest(end)
            if self._wish is _Wish.STOP:
                self._told.clear()
                self._to(Phase.STOPPED)
                await self._told.wait()
            if self._wish is _Wish.RESTART:
                self._wish = _Wish.RUN
                self._told.clear()
                self._crashes.forget()

    def _to(self, phase: Phase) -> None:
        self.phase, self.since_s = phase, time.monotonic()
        self._moved.set()
        self._moved = asyncio.Event()
        self._shown()

    async def _turn(self) -> bool:
        """Wait until nothing that comes before is starting; False if something else is wanted meanwhile."""
        if any(other.phase in COMING for other in self.after):
            self._to(Phase.WAITING)
        while any(other.phase in COMING for other in self.after):
            if await self._hears(ASK_S):
                return False
        return True

    async def _rest(self, end: _End) -> None:
        """After an end that nobody wanted: a pause, or for good."""
        self.why = f"{self.name} {end.why}"
        pause_s = self._crashes.ended(time.monotonic()) if self.patient else None
        if end.final or pause_s is None:
            often = "" if end.final or not self.patient else f"; given up after {self._rules.crashes} times"
            log.error("%s%s; its log: %s", self.why, often, self.log.path)
            self._to(Phase.FAILED)
            await self._told.wait()
            return
        log.warning("%s; starts again in %.1f s; its log: %s", self.why, pause_s, self.log.path)
        self._to(Phase.PAUSING)
        await self._hears(pause_s)

    async def _hears(self, within_s: float) -> bool:
        """Whether something else is wanted within this time."""
        try:
            async with asyncio.timeout(within_s):
                await self._told.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self) -> _End:
        """One process, from its start to its end."""
        self._to(Phase.STARTING)
        if taken := await self._taken():
            return _End(f"cannot start: {taken}")
        rules = self._rules
        grace_s = rules.stop_s + (rules.drain_s if self.drains or self.spec.metrics else 0.0)
        process = Process(self.name, self.spec.command, self.spec.env, self.log, grace_s, self.spec.cpus)
        self._process = process
        self.starts += 1
        self.recent.clear()
        try:
            await process.start()
        except OSError as error:
            return _End(f"cannot start: {error}")
        ended = asyncio.create_task(process.wait())
        watched = asyncio.create_task(self._watch())
        told = asyncio.create_task(self._told.wait())
        try:
            await asyncio.wait((ended, watched, told), return_when=asyncio.FIRST_COMPLETED)
            if told.done() and not ended.done():
                await self._leave(process, ended)
            elif watched.done() and not ended.done():
                why = watched.result()
                process.kill()
                await ended
                return _End(why)
            return self._ended(await ended)
        finally:
            process.kill()
            for task in (watched, told, ended):
                task.cancel()
            await asyncio.gather(watched, told, ended, return_exceptions=True)

    async def _taken(self) -> str:
        """Which of its ports is taken, with the mend; waits a little for what ran here before."""
        deadline = time.monotonic() + LEFT_S
        while taken := next((f"{host}:{port}" for host, port in self.spec.ports if not is_free(host, port)), ""):
            if time.monotonic() > deadline or await self._hears(ASK_S):
                return f"{taken} is taken: stop what listens there, or choose another port in the fleet file"
        return ""

    def _ended(self, status: int) -> _End:
        found = diagnose(self.log.tail(100), status)
        return _End(f"ended with status {status}" + (f": {found.words}" if found.words else ""), found.final)

    async def _watch(self) -> str:
        """Say when it is ready; return why it has to be ended."""
        began_s = time.monotonic()
        while not await self._answers():
            if time.monotonic() - began_s > self._rules.start_s:
                return (
                    f"is not ready after {self._rules.start_s:g} s, last seen {self.log.stages.name}: "
                    "raise supervisor.start_s if it only needs longer"
                )
            await asyncio.sleep(ASK_S)
        self.took_s = time.monotonic() - began_s
        self.patient = True
        self._to(Phase.READY)
        pulse = Pulse(self._rules, time.monotonic())
        while not (why := pulse.hung(time.monotonic())):
            await asyncio.sleep(LOOK_S)
            if await self._answers():
                pulse.answered(time.monotonic())
            if self.spec.metrics and (page := await self._metrics()):
                pulse.metrics(page, time.monotonic())
                self.recent.append(Figures.of(page))
        return why

    async def _leave(self, process: Process, ended: asyncio.Task[int]) -> None:
        """It is to end: what runs ends first; a process that is starting has nothing to finish and does not listen."""
        self._told.clear()
        if not self.ready:
            self._to(Phase.STOPPING)
            process.kill()
        else:
            if self._drain:
                self._to(Phase.DRAINING)
                await self._drained(ended)
            self._to(Phase.STOPPING)
            process.stop()
        await ended

    async def _drained(self, ended: asyncio.Task[int]) -> None:
        pulse = Pulse(self._rules, time.monotonic())
        deadline = time.monotonic() + self._rules.drain_s
        idle_s = time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - idle_s < IDLE_S and not ended.done():
            if page := await self._metrics():
                pulse.metrics(page, time.monotonic())
            if pulse.requests:
                idle_s = time.monotonic()
            await asyncio.sleep(ASK_S)

    async def _answers(self) -> bool:
        try:
            return (await self._http.get(self.spec.health)).status_code == 200
        except httpx.HTTPError:
            return False

    async def _metrics(self) -> str:
        try:
            return (await self._http.get(self.spec.metrics)).text
        except httpx.HTTPError:
            return ""

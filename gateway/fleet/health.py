"""Asks each engine whether it is well, and which models it serves."""

import asyncio
import logging
import ssl
import time
from functools import cache
from typing import Protocol

import httpx
import msgspec

from gateway.fleet.engine import Engine, State
from gateway.fleet.fleet import Fleet
from gateway.fleet.vigil import Elsewhere, Vigil
from gateway.settings import Settings

log = logging.getLogger(__name__)


class Listener(Elsewhere, Protocol):
    """Who wants to know when engines come and go. Must not block."""

    def up(self, engine: Engine) -> None: ...

    def down(self, engine: Engine, gone: bool) -> None:
        """`gone`: nobody listens on its port, so its process has ended."""


class _Entry(msgspec.Struct):
    id: str
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[msgspec.Raw]


@cache
def _authorities() -> ssl.SSLContext:
    """Whom an engine's certificate must come from. One for all engines: each holds more than a megabyte."""
    return ssl.create_default_context()


def client(engine: Engine, timeout_s: float) -> httpx.AsyncClient:
    """A client for control traffic to one engine."""
    url, headers = engine.url.partition("#")[0], engine.headers
    if url.startswith("unix:"):
        transport = httpx.AsyncHTTPTransport(verify=False, uds=url.removeprefix("unix://"))
        return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=timeout_s, headers=headers)
    verify = _authorities() if url.startswith("https:") else False  # there is nothing to verify in the clear
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False, verify=verify, headers=headers)


async def check(engine: Engine, http: httpx.AsyncClient, models: bool = True) -> str:
    """Ask once, with `models` for what it serves too. Returns why the engine cannot be used; empty if it can."""
    try:
        health = await http.get("/health")
        if health.status_code != 200:
            return f"/health answered {health.status_code}"
        if models:
            answer = await http.get("/v1/models")
            if engine.state is State.UP and answer.status_code != 200:
                return ""
            listed = msgspec.json.decode(answer.content, type=_Models)
            entries = [(msgspec.json.decode(entry, type=_Entry), bytes(entry)) for entry in listed.data]
            engine.served = {entry.id: raw for entry, raw in entries}
            engine.adapters = frozenset(entry.id for entry, _ in entries if entry.parent)
            if engine.model and engine.model not in engine.served:
                return f"serves {', '.join(engine.served) or 'nothing'}, not {engine.model}: check --served-model-name"
            engine.model = engine.model or next(iter(engine.served), "")
    except (httpx.HTTPError, msgspec.DecodeError, OSError) as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return ""


class Watch:
    """Health checks of a fleet, one task per engine, until `stop`."""

    def __init__(self, fleet: Fleet, settings: Settings, listener: Listener) -> None:
        self._fleet = fleet
        self._settings = settings
        self._listener = listener
        self._tasks: dict[Engine, asyncio.Task[None]] = {}
        self._checked: dict[Engine, asyncio.Event] = {}
        for engine in fleet:
            self.joined(engine)
        fleet.members.append(self)

    def joined(self, engine: Engine) -> None:
        self._checked[engine] = asyncio.Event()
        self._tasks[engine] = asyncio.create_task(self._watch(engine), name=f"health {engine.name}")

    def left(self, engine: Engine) -> None:
        self._checked.pop(engine).set()
        self._tasks.pop(engine).cancel()

    async def gone(self, engine: Engine) -> None:
        """Nothing is kept of it."""

    async def first_round(self) -> None:
        """Wait until every engine was asked once."""
        for checked in list(self._checked.values()):
            await checked.wait()

    async def stop(self) -> None:
        self._fleet.members.remove(self)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, engine: Engine) -> None:
        vigil = Vigil(self._fleet, engine, self._settings, self._listener)
        models_s = 0.0
        async with client(engine, self._settings.health_timeout_s) as http:
            while True:
                ask = engine.state is not State.UP or time.monotonic() >= models_s  # adapters come and go meanwhile
                if ask:
                    models_s = time.monotonic() + self._settings.vitals_interval_s
                why = await check(engine, http, ask) or await vigil.check(http)
                state = State.DOWN if why else State.UP
                if state is not engine.state:
                    level = logging.WARNING if why else logging.INFO
                    log.log(level, "engine %s (%s) is %s%s", engine.name, engine.url, state, why and f": {why}")
                    if state is State.UP:
                        self._listener.up(engine)
                    else:
                        self._listener.down(engine, gone=why.startswith("ConnectError"))
                self._fleet.mark(engine, state, why)
                self._checked[engine].set()
                await asyncio.sleep(self._settings.health_interval_s)

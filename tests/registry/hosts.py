"""A host with a supervisor in this process, whose engines are doubles in processes of their own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from engines.fleet import Fleet
from engines.keeper import Keeper
from engines.registrar import Registrar
from engines.service import Phase
from engines.supervisor import Supervisor
from gateway.app import App
from gateway.fleet.engine import State
from gateway.index.embedded import Embedded
from gateway.launch import Launch
from gateway.settings import Settings
from tests.gateway.conftest import FAST, Gateway

SIM = Path(__file__).parents[2] / "docker" / "sim"
SECRET = b"the secret of this fleet"


def fleet(
    ports: Iterator[int],
    taken: dict[str, dict[str, int]],
    roles: dict[str, str],
    env: dict[str, str] | None = None,
    **more: Any,
) -> Fleet:
    """Doubles by name and role; a name keeps its ports. `env` is of all; `more`: further keys of an engine."""
    keys = ("port", "nixl_port", "events_port", "replay_port")
    engines = [
        {
            "name": name,
            "role": role,
            **taken.setdefault(name, dict(zip(keys, ports, strict=False))),
            **more.get(name, {}),
            "env": {"PYTHONPATH": str(SIM), **(env or {}), **more.get(name, {}).get("env", {})},
        }
        for name, role in roles.items()
    ]
    rules = {"backoff_s": 0.05, "stop_s": 5, "drain_s": 5, "watch_s": 0}
    return Fleet.parse({"models": {"m": {"block_size": 16}}, "engines": engines, "supervisor": rules})


@asynccontextmanager
async def gateway(redis: Embedded, secret: Path, file: Fleet | None = None, **more: Any) -> AsyncIterator[Gateway]:
    """A gateway that knows no engine but those that register."""
    settings = Settings(**{**FAST, "redis": redis.url, "fleet_secret_file": str(secret), "engine_wait_s": 5, **more})
    app = App.of(Launch(), file or Fleet.nothing(), settings)
    async with Gateway.around(app, settings) as made:
        yield made


def up(one: Gateway) -> set[str]:
    return {engine.name for engine in one.app.fleet if engine.state is State.UP and not engine.draining}


@dataclass
class Host:
    """What runs on it."""

    supervisor: Supervisor
    keeper: Keeper
    registrar: Registrar

    async def ready(self) -> None:
        await self.supervisor.ready(self.supervisor.engines)


@asynccontextmanager
async def host(
    made: Fleet, folder: Path, redis: str, name: str = "gpu1", secret: bytes = SECRET
) -> AsyncIterator[Host]:
    """Started and registered; says goodbye in the end."""
    supervisor = Supervisor(folder / name, made.supervisor, drains=True)
    keeper = Keeper(supervisor, made)
    registrar = Registrar(keeper, redis, secret, name)
    registrar.start()
    try:
        supervisor.add(keeper.specs().values())
        yield Host(supervisor, keeper, registrar)
    finally:
        await supervisor.stop()
        await registrar.close()


@dataclass
class Load:
    """Chats one after another on several clients at a time, and what became of them."""

    http: httpx.AsyncClient
    good: int = 0
    bad: list[str] = field(default_factory=list)

    async def _client(self, number: int) -> None:
        turn = 0
        while True:
            turn += 1
            body = {
                "model": "m",
                "stream": True,
                "max_tokens": 8,
                "messages": [{"role": "user", "content": f"{number} {turn} " + "word " * 40}],
            }
            try:
                answer = await self.http.post("/v1/chat/completions", json=body)
                if answer.status_code == 200 and answer.text.rstrip().endswith("data: [DONE]"):
                    self.good += 1
                else:
                    self.bad.append(f"{answer.status_code} {answer.text[-300:]}")
            except httpx.HTTPError as error:
                self.bad.append(f"{type(error).__name__}: {error}")

    @asynccontextmanager
    async def running(self, clients: int = 4) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def more(self, requests: int, within_s: float = 30.0) -> None:
        """Wait until so many more went well."""
        wanted = self.good + requests
        async with asyncio.timeout(within_s):
            while self.good < wanted:
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    """The first true value. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value


def phases(one: Host) -> dict[str, Phase]:
    return {name: service.phase for name, service in one.supervisor.services.items()}

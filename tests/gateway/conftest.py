"""A gateway on a real socket in front of engine doubles on real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx
import pytest

from engines.double import Double
from engines.fleet import Fleet as FleetFile
from gateway.app import App, fleet_of
from gateway.fleet.engine import State
from gateway.index.namespace import Namespace
from gateway.prompt.prompts import PromptReader
from gateway.server import Server
from gateway.settings import Settings
from gateway.telemetry.tracing import Tracing
from tests.gateway.readers import DoubleTokenizers

FAST: dict[str, Any] = {
    "port": 0,
    "admin": "",
    "health_interval_s": 0.05,
    "engine_wait_s": 0.2,
    "connect_timeout_s": 1.0,
    "send_ids": False,
}
FAST["policy"] = "lmetric"  # it splits whatever may be split


@dataclass
class Gateway:
    """A running gateway and a client for it."""

    app: App
    server: Server
    url: str
    http: httpx.AsyncClient

    @classmethod
    @asynccontextmanager
    async def over(
        cls, *doubles: Double, tracing: Tracing | None = None, reader: PromptReader | None = None, **settings: Any
    ) -> AsyncIterator[Self]:
        """A gateway in front of these doubles; with `reader` it reads prompts by itself."""
        engines = [{"name": d.name, "role": d.role, "url": d.url, "model": d.model} for d in doubles]
        models = {d.model: {"lease_s": d.lease_s} for d in reversed(doubles)}
        file = FleetFile.parse({"models": models, "engines": engines})
        config = Settings(**{**FAST, **settings})
        tokenizers = DoubleTokenizers(reader) if reader is not None else None
        async with cls.around(App(fleet_of(file, config), config, tracing, tokenizers), config) as made:
            yield made

    @classmethod
    @asynccontextmanager
    async def around(cls, app: App, config: Settings) -> AsyncIterator[Self]:
        """A gateway that serves with this app."""
        server = Server(app, config)
        serving = asyncio.create_task(server._serve())
        while not server.started:
            await asyncio.sleep(0)
            assert not serving.done(), "the gateway did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
                made = cls(app, server, url, http)
                await until(lambda: all(e.enrolled for e in app.fleet if e.state is State.UP), 10)
                yield made
        finally:
            server.should_exit = True
            await serving

    async def enrolled(self) -> Namespace:
        """Wait until everything is known of every engine; returns the only model's namespace."""
        engines = list(self.app.fleet)
        await until(lambda: all(engine.enrolled for engine in engines), 10)
        return next(iter(self.app.lookup.namespaces.values()))

    def booked(self) -> int:
        """Requests and tokens booked on any engine."""
        return sum(e.prefill_requests + e.prefill_tokens + e.decode_requests + e.decode_tokens for e in self.app.fleet)

    def metric(self, name: str, **labels: str) -> float:
        """The current value of one of its metrics."""
        return self.app.metrics.registry.get_sample_value(name, labels) or 0.0


@dataclass
class Pair:
    """One prefill and one decode double, an aggregated one as the judge, and a gateway in front of the pair."""

    prefill: Double
    decode: Double
    judge: Double
    gateway: Gateway

    @property
    def http(self) -> httpx.AsyncClient:
        return self.gateway.http

    async def right(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What an engine that did it all alone answers."""
        async with httpx.AsyncClient(base_url=self.judge.url, trust_env=False) as http:
            answer: dict[str, Any] = (await http.post(path, json=body)).raise_for_status().json()
            return answer


@asynccontextmanager
async def make_pair(**settings: Any) -> AsyncIterator[Pair]:
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d, Double("both", "j") as judge:
        async with Gateway.over(p, d, **settings) as gateway:
            p.requests.clear()  # what the gateway asked to know them
            d.requests.clear()
            yield Pair(p, d, judge, gateway)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with make_pair() as made:
        yield made


async def until(condition: Callable[[], bool], within_s: float = 1.0) -> None:
    """Return when the condition holds. Fails if it does not hold in time."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.001)


Until = Callable[[Callable[[], bool], float], Awaitable[None]]

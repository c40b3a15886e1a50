"""The prefix index on real engines: what it predicts is what they report, also after a gateway or an engine has ended.

One prefill and one decode engine with so few KV blocks that they evict all the time; the index is in a Valkey server.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from engines.fleet import Fleet
from engines.keeper import Keeper
from engines.layout import on_cpu
from engines.log import Log
from engines.process import Process
from engines.service import Phase
from engines.supervisor import Supervisor
from engines.surface import PROMPT_TOKENS_BY_SOURCE, total
from engines.tiny_model import make_tiny_model
from gateway.index.embedded import Embedded
from tests.ports import fresh_ports

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]

BLOCK = 32
BLOCKS = 129
"""As few as hold one prompt of the longest length."""

REQUESTS = 500
"""A tenth of a second each on a quiet machine."""

LOCAL = {"source": "local_cache_hit"}


@dataclass
class Indexed:
    """Running engines, a gateway that can be killed, and where it listens."""

    model: str
    fleet: Fleet
    supervisor: Supervisor
    command: list[str]
    url: str
    folder: Path
    log: Log
    gateway: Process

    async def restart_gateway(self) -> None:
        """kill -9, and a new one in its place."""
        self.gateway.kill()
        await self.gateway.wait()
        await self.start_gateway()

    async def start_gateway(self) -> None:
        patient = {"BATON_LOOKUP_BUDGET_S": "2"}  # a busy machine is not what is tested here
        self.gateway = Process("gateway", self.command, patient, self.log)
        await self.gateway.start()
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(60):
            while not await self._ready(http):
                await asyncio.sleep(0.05)

    async def _ready(self, http: httpx.AsyncClient) -> bool:
        try:
            return (await http.get(f"{self.url}/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    async def _reads(self, http: httpx.AsyncClient) -> bool:
        """Whether the gateway is ready, reads prompts by itself and follows both engines."""
        try:
            found = (await http.get(f"{self.url}/index", params={"top": 0})).json()
            one = found.get(self.model)
            return bool(one and one["prompts"] == "local" and len(one["sources"]) == 2)
        except (httpx.HTTPError, ValueError):
            return False


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def indexed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Indexed]:
    folder = tmp_path_factory.mktemp("index")
    model = make_tiny_model(folder / "tiny-llama")
    ports = fresh_ports()
    fleet = on_cpu(model, ports)
    few = {"args": ["--num-gpu-blocks-override", str(BLOCKS)]}
    engines = [engine.model_dump(exclude_defaults=True) | few for engine in fleet.engines]
    fleet = Fleet.parse({"models": {model.name: fleet.models[model.name].model_dump()}, "engines": engines})
    (folder / "fleet.toml").write_text(fleet.to_toml())
    supervisor = Supervisor(folder)
    port = next(ports)
    with Embedded() as server:
        serve = [
            "serve",
            "-c",
            str(folder / "fleet.toml"),
            "--port",
            str(port),
            "--redis",
            server.url,
            "--policy",
            "lmetric",
        ]
        made = Indexed(
            model.name,
            fleet,
            supervisor,
            [sys.executable, "-m", "gateway.cli", *serve],
            f"http://127.0.0.1:{port}",
            folder,
            Log(folder / "gateway.log"),
            Process("none", [], {}, None),
        )
        try:
            await supervisor.ready(supervisor.add(Keeper(supervisor, fleet).specs().values(), patient=False))
            await made.start_gateway()
            yield made
        finally:
            made.gateway.kill()
            await made.gateway.wait()
            made.log.close()
            await supervisor.stop()


class Talk:
    """Conversations that share system prompts, grow, and come back."""

    def __init__(self, at: Indexed, http: httpx.AsyncClient, seed: int) -> None:
        self._at = at
        self._http = http
        self._pick = random.Random(seed)
        self._talks: list[list[dict[str, str]]] = []
        self._decode = at.fleet.url(at.fleet.engines[1])
        self.wrong: list[tuple[str, int, int]] = []
        self.predicted = 0

    def words(self, count: int) -> str:
        return " ".join(self._pick.choice(("alpha", "beta", "gamma", "delta", "42", "naïve")) for _ in range(count))

    async def say(self) -> None:
        """One request; notes where prediction and report differ by more than a block."""
        if len(self._talks) < 6 or self._pick.random() < 0.15:
            system = random.Random(self._pick.randrange(3))
            text = " ".join(system.choice(("one", "two", "three")) for _ in range(120))
            self._talks.append([{"role": "system", "content": text}])
        said = self._pick.choice(self._talks[-6:])
        said.append({"role": "user", "content": self.words(self._pick.randrange(5, 80))})
        del said[8:]
        before = await self._local()
        body = {"model": self._at.model, "messages": said, "max_tokens": 2, "temperature": 0}
        answer = await self._http.post(f"{self._at.url}/v1/chat/completions", json=body, headers={"x-baton-facts": "1"})
        assert answer.status_code == 200, answer.text
        told = answer.headers
        self._note("p0", int(told["x-baton-predicted-prefill"]), int(told["x-baton-cached-tokens"]))
        self._note("d0", int(told["x-baton-predicted-decode"]), int(await self._local() - before))
        said.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"] or "x"})

    def _note(self, engine: str, predicted: int, reported: int) -> None:
        self.predicted += predicted
        if abs(predicted - reported) > BLOCK:
            self.wrong.append((engine, predicted, reported))

    async def _local(self) -> float:
        return total((await self._http.get(f"{self._decode}/metrics")).text, PROMPT_TOKENS_BY_SOURCE, LOCAL) or 0.0


@pytest.mark.timeout(3600)
async def test_what_is_predicted_is_what_engines_report(indexed: Indexed) -> None:
    async with httpx.AsyncClient(timeout=300, trust_env=False) as http:
        talk = Talk(indexed, http, 1)
        for _ in range(REQUESTS):
            await talk.say()
        assert talk.predicted > REQUESTS * BLOCK, "almost nothing was cached: this proves nothing"
        assert len(talk.wrong) <= 2 * REQUESTS // 100, talk.wrong
        found = (await http.get(f"{indexed.url}/index")).json()[indexed.model]
        assert all(source["state"] == "following" and not source["why"] for source in found["sources"])
        assert all(source["batches"] > REQUESTS / 2 for source in found["sources"])


async def test_a_new_gateway_knows_from_the_first_request_on(indexed: Indexed) -> None:
    async with httpx.AsyncClient(timeout=300, trust_env=False) as http:
        talk = Talk(indexed, http, 1)
        for _ in range(20):
            await talk.say()
        await indexed.restart_gateway()
        talk.wrong, talk.predicted = [], 0
        await talk.say()
        assert talk.predicted > 0
        for _ in range(20):
            await talk.say()
        assert not talk.wrong


async def test_an_engine_that_restarts_has_no_credit_within_two_seconds(indexed: Indexed) -> None:
    service = indexed.supervisor.services["p0"]
    url = indexed.fleet.url(indexed.fleet.engines[0])

    async def blocks(http: httpx.AsyncClient) -> int:
        stats = (await http.get(f"{indexed.url}/index", params={"top": 0})).json()[indexed.model]["stats"]
        return int(stats["holders"].get(url, 0))

    async def up(http: httpx.AsyncClient) -> bool:
        report = (await http.get(f"{indexed.url}/readyz?verbose")).json()
        return any(engine["name"] == "p0" and engine["state"] == "up" for engine in report["engines"])

    async with httpx.AsyncClient(timeout=300, trust_env=False) as http:
        await Talk(indexed, http, 4).say()
        assert await blocks(http) > 0
        service.kill()
        await service.reaches(Phase.STOPPED)
        ended = time.monotonic()
        while await blocks(http):
            assert time.monotonic() < ended + 2.0, "stale credit"
        service.restart()
        async with asyncio.timeout(240):
            while not await up(http):
                await asyncio.sleep(0.2)
        async with asyncio.timeout(30):
            while not await indexed._reads(http):
                await asyncio.sleep(0.05)
        talk = Talk(indexed, http, 5)
        for _ in range(10):
            await talk.say()
        assert not [one for one in talk.wrong if one[0] == "p0"]

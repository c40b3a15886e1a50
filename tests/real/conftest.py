"""Real vLLM engines on the CPU: one prefills, one decodes, one does it all and judges; a gateway."""

import sys
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engines.fleet import Fleet
from engines.keeper import Keeper
from engines.layout import on_cpu
from engines.spec import Spec
from engines.supervisor import Supervisor
from engines.tiny_model import HEAD_DIM, KV_HEADS, LAYERS, make_tiny_model
from load.counters import Pulled
from tests.ports import fresh_ports

BLOCK = 32
BLOCK_BYTES = LAYERS * 2 * KV_HEADS * HEAD_DIM * 4 * BLOCK
"""Of the tiny model: layers x (K, V) x KV heads x head dimension x float32 x tokens."""

LOG_LINES = 40

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """If the test fails, what engines and gateway logged last is part of its report."""
    started_s = time.time()
    yield
    if request.node.stash.get(FAILED, False):
        for log in sorted(tmp_path_factory.getbasetemp().rglob("*.log")):
            if log.stat().st_mtime >= started_s:
                lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                sys.stdout.writelines(f"{line[:300]}\n" for line in (f"--- {log.parent.name}/{log.name}", *lines))


@dataclass
class Real:
    """Running engines and gateway."""

    model: str
    gateway: httpx.AsyncClient
    judge: httpx.AsyncClient
    prefill_url: str
    decode_url: str

    async def pulled(self) -> Pulled:
        """What the decode engine has fetched so far."""
        found = await Pulled.read(self.gateway, self.decode_url)
        assert found is not None
        return found

    async def pulled_since(self, before: Pulled, tokens: int) -> Pulled:
        """What it has fetched since, once its metrics show `tokens`; fails if they show more or never do."""
        now = before
        for _ in range(200):
            now = await self.pulled()
            if (now - before).tokens >= tokens:
                break
        return now - before

    async def well(self) -> None:
        """A fresh prompt is split, and answered as the judge does."""
        body = {
            "model": self.model,
            "prompt": "Are you still well, all of you, after this?",
            "max_tokens": 8,
            "temperature": 0,
        }
        answer = await self.gateway.post("/v1/completions", json=body, headers={"x-baton-facts": "1"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-baton-prefill"] == "p0"
        right = await self.judge.post("/v1/completions", json=body)
        assert answer.json()["choices"] == right.json()["choices"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    folder = tmp_path_factory.mktemp("real")
    model = make_tiny_model(folder / "tiny-llama")
    ports = fresh_ports()
    pair = on_cpu(model, ports)
    alone = {"name": "judge", "role": "both", "port": next(ports), "device": "cpu"}
    judge = Fleet.parse({"models": {model.name: pair.models[model.name].model_dump()}, "engines": [alone]})
    supervisor = Supervisor(folder)
    port = next(ports)
    (folder / "fleet.toml").write_text(pair.to_toml())
    serve = [sys.executable, "-m", "gateway.cli", "serve", "-c", str(folder / "fleet.toml"), "--port", str(port)]
    serve += ["--policy", "lmetric"]  # it splits whatever may be split
    try:
        specs = [spec for fleet in (pair, judge) for spec in Keeper(supervisor, fleet).specs().values()]
        await supervisor.ready(supervisor.add(specs, patient=False))
        gateway = Spec("gateway", tuple(serve), f"http://127.0.0.1:{port}/readyz")
        await supervisor.ready(supervisor.add([gateway], patient=False))
        timeout: dict[str, Any] = {"timeout": 300, "trust_env": False}
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", **timeout) as http,
            httpx.AsyncClient(base_url=judge.url(judge.engines[0]), **timeout) as other,
        ):
            p, d = pair.engines
            yield Real(model.name, http, other, pair.url(p), pair.url(d))
    finally:
        await supervisor.stop()

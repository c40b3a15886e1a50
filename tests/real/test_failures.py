"""Real engines that fail: whatever happens to a hand-over, the answer is the aggregated one and no cache is spoilt.

Few KV blocks and a lease of seconds, so that a prefill engine soon gives blocks away that somebody still wants. The
first test shows what vLLM does to a careless gateway: wrong tokens with status 200, and a spoilt cache.
"""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engines.fleet import Fleet
from engines.guard import descendants
from engines.layout import on_cpu
from engines.log import Log
from engines.process import Process
from engines.surface import KV_EXPIRED, total
from engines.tiny_model import make_tiny_model
from engines.vllm import launch
from tests.ports import fresh_ports
from tests.real.door import Door

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

COMPLETIONS = "/v1/completions"
LEASE_S = 4
MARGIN_S = 1
BLOCKS = 65
"""Of 32 tokens: two prompts of the longest length."""

FILLERS = 8
"""Prompts of 350 words that take all blocks of an engine in turn."""

WORDS = "river stone engine letter window garden number winter summer bread copper signal paper north lantern".split()
FACTS = {"x-baton-facts": "1"}


def text(seed: int, words: int = 250) -> str:
    """Prose of its own from its first word on."""
    chosen = random.Random(seed)
    return f"{seed} " + " ".join(chosen.choice(WORDS) for _ in range(words))


@dataclass
class Failing:
    """A prefill engine, a decode engine behind a door, a judge that decodes too, and two gateways."""

    fleet: Fleet
    engines: dict[str, Process]
    door: Door
    pair: httpx.AsyncClient
    """A gateway over p0 and d0 (behind the door) alone."""
    trio: httpx.AsyncClient
    """A gateway over p0, d0 and the judge."""
    http: httpx.AsyncClient

    def url(self, name: str) -> str:
        return self.fleet.url(next(engine for engine in self.fleet.engines if engine.name == name))

    def body(self, prompt: str, max_tokens: int = 24, **more: Any) -> dict[str, Any]:
        model = self.fleet.engines[0].model
        return {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **more}

    async def right(self, prompt: str, max_tokens: int = 24) -> str:
        """What one engine answers that never shares what it has cached: the salt is its own."""
        return await self.said("judge", self.body(prompt, max_tokens, cache_salt="judge"))

    async def said(self, name: str, body: dict[str, Any]) -> str:
        """The text that an engine answers by itself."""
        answer = await self.http.post(self.url(name) + COMPLETIONS, json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    async def unspoilt(self, *prompts: str) -> None:
        """The decode engine alone answers these prompts as it should: nothing wrong is in its cache."""
        for prompt in prompts:
            assert await self.said("d0", self.body(prompt)) == await self.right(prompt)

    async def expired(self) -> float:
        page = (await self.http.get(self.url("p0") + "/metrics")).text
        return total(page, KV_EXPIRED) or 0.0

    async def late(self) -> float:
        """Hand-overs that the gateway of the pair gave up because of the lease."""
        page = (await self.pair.get("/metrics")).text
        return total(page, "baton_retries_total", {"leg": "decode", "cause": "late"}) or 0.0

    async def fill(self, seed: int) -> None:
        """Other prompts take all blocks of the prefill engine."""
        for number in range(FILLERS):
            await self.said("p0", self.body(text(seed * 100 + number, 350), 1))

    async def lease_ends(self, before: float, seed: int) -> None:
        """Wait until the prefill engine has given blocks up (it looks when it works), and until others have them."""
        async with asyncio.timeout(60):
            number = 0
            while await self.expired() <= before:
                number += 1
                await self.said("p0", self.body(text(seed * 100_000 + number, 20), 1))
        await self.fill(seed)

    async def restart(self, *names: str) -> None:
        """Kill engines and start them again, together."""
        for name in names:
            self.engines[name].kill()
            await self.engines[name].wait()
        for name in names:
            await self.engines[name].start()
        for name in names:
            await healthy(self.http, self.url(name), self.engines[name])

    async def taken(self, gateway: httpx.AsyncClient, *names: str) -> None:
        """Wait until the gateway sends requests to these engines."""
        async with asyncio.timeout(60):
            while True:
                engines = (await gateway.get("/readyz?verbose")).json()["engines"]
                if {e["name"] for e in engines if e["state"] == "up"} >= set(names):
                    return
                await asyncio.sleep(0.1)

    def processes(self, name: str) -> list[int]:
        """Of an engine, without those that guard it."""
        guard = self.engines[name].pid
        assert guard is not None
        return descendants(guard)[1:]

    def signal(self, name: str, what: signal.Signals) -> None:
        for pid in self.processes(name):
            os.kill(pid, what)


def _fleet(model: Path, engines: list[dict[str, Any]], **gateway: Any) -> Fleet:
    args = ["--dtype", "float32", "--num-gpu-blocks-override", str(BLOCKS)]
    shared = {"path": str(model), "block_size": 32, "max_model_len": 1024, "lease_s": LEASE_S, "args": args}
    return Fleet.parse({"models": {model.name: shared}, "engines": engines, "gateway": gateway})


async def healthy(http: httpx.AsyncClient, url: str, process: Process) -> None:
    """Wait until a process answers."""
    async with asyncio.timeout(300):
        while True:
            with suppress(httpx.HTTPError):
                if (await http.get(f"{url}/health")).status_code == 200:
                    return
            assert process.running, f"{process.name} ended with status {await process.wait()}"
            await asyncio.sleep(0.2)


@asynccontextmanager
async def running(process: Process) -> AsyncIterator[Process]:
    """Ended with all that is below it, whatever happens."""
    await process.start()
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def failing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Failing]:
    folder = tmp_path_factory.mktemp("failing")
    model = make_tiny_model(folder / "tiny-llama")
    ports = fresh_ports()
    p, d = (engine.model_dump(exclude_defaults=True) for engine in on_cpu(model, ports).engines)
    judge = {**d, "name": "judge", "role": "decode"}
    judge |= {key: next(ports) for key in ("port", "nixl_port", "events_port", "replay_port")}
    fleet = _fleet(model, [p, d, judge])
    settings = {"policy": "lmetric", "lease_margin_s": MARGIN_S, "engine_wait_s": 60.0, "health_interval_s": 0.25}
    engines = {}
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=120, trust_env=False))

        def log(name: str) -> Log:
            return stack.enter_context(closing(Log(folder / f"{name}.log")))

        for engine in fleet.engines:
            command, env = launch(fleet, engine)
            process = Process(engine.name, command, env, log(engine.name))
            engines[engine.name] = await stack.enter_async_context(running(process))
        for engine in fleet.engines:
            await healthy(http, fleet.url(engine), engines[engine.name])
        door = await stack.enter_async_context(Door(int(d["port"])))

        async def gateway(name: str, urls: dict[str, str]) -> httpx.AsyncClient:
            """A gateway over engines at these URLs."""
            known = [{"name": e.name, "role": e.role, "url": urls[e.name]} for e in fleet.engines if e.name in urls]
            (folder / f"{name}.toml").write_text(_fleet(model, known, **settings).to_toml())
            port = next(ports)
            serve = [sys.executable, "-m", "gateway.cli", "serve", "-c", f"{folder}/{name}.toml", "--port", str(port)]
            process = await stack.enter_async_context(running(Process(name, serve, {}, log(name))))
            await healthy(http, url := f"http://127.0.0.1:{port}", process)
            return await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=120, trust_env=False))

        urls = {engine.name: fleet.url(engine) for engine in fleet.engines}
        pair = await gateway("pair", {"p0": urls["p0"], "d0": f"http://127.0.0.1:{door.port}"})
        yield Failing(fleet, engines, door, pair, await gateway("trio", urls), http)


def spoken(stream: str) -> str:
    """The text of a stream that ended as it should."""
    events = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", stream[-500:]
    return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])


async def asked(gateway: httpx.AsyncClient, body: dict[str, Any], stream: bool) -> str:
    """The text of an answer through a gateway."""
    answer = await gateway.post(COMPLETIONS, json={**body, "stream": stream})
    assert answer.status_code == 200, answer.text
    return spoken(answer.text) if stream else str(answer.json()["choices"][0]["text"])


async def test_a_careless_gateway_gets_wrong_tokens_and_a_spoilt_cache(failing: Failing) -> None:
    """What the others guard against: parameters that are sent after the lease, by hand."""
    prompt = text(1)
    before = await failing.expired()
    asks = {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}
    answer = await failing.http.post(failing.url("p0") + COMPLETIONS, json=failing.body(prompt, 1, **asks))
    params = answer.json()["kv_transfer_params"]
    await failing.lease_ends(before, 1)
    right = await failing.right(prompt)
    assert await failing.said("d0", failing.body(prompt, kv_transfer_params=params)) != right
    assert await failing.said("d0", failing.body(prompt)) != right


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hand_over_that_is_held_back_beyond_the_lease(failing: Failing, stream: bool) -> None:
    prompt = text(2 + stream)
    before, late = await failing.expired(), await failing.late()
    failing.door.shut()
    held = failing.door.held
    try:
        answer = asyncio.create_task(asked(failing.pair, failing.body(prompt), stream))
        async with asyncio.timeout(60):
            while failing.door.held == held:
                await asyncio.sleep(0.01)
        await failing.lease_ends(before, 2 + stream)
    finally:
        failing.door.open()
    assert await answer == await failing.right(prompt)
    assert await failing.late() == late + 1
    await failing.unspoilt(prompt)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_decode_engine_so_slow_that_it_would_fetch_late(failing: Failing, stream: bool) -> None:
    prompt = text(4 + stream)
    before = await failing.expired()
    failing.signal("d0", signal.SIGSTOP)
    try:
        answer = asyncio.create_task(asked(failing.pair, failing.body(prompt), stream))
        await failing.lease_ends(before, 4 + stream)
    finally:
        failing.signal("d0", signal.SIGCONT)
    assert await answer == await failing.right(prompt)
    await failing.unspoilt(prompt)


async def test_a_prefill_engine_killed_after_its_answer(failing: Failing) -> None:
    """And then both engines are started again: what they knew of each other is gone."""
    prompts = [text(10), text(11)]
    failing.door.shut()
    held = failing.door.held
    try:
        answers = [asyncio.create_task(asked(failing.pair, failing.body(p), p == prompts[0])) for p in prompts]
        async with asyncio.timeout(60):
            while failing.door.held < held + 2:
                await asyncio.sleep(0.01)
        failing.engines["p0"].kill()
        await failing.engines["p0"].wait()
    finally:
        failing.door.open()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert await answer == await failing.right(prompt)
    await failing.unspoilt(*prompts)


async def test_both_engines_started_again(failing: Failing) -> None:
    await failing.restart("p0", "d0")
    await failing.taken(failing.pair, "p0", "d0")
    await split_and_right(failing, 20)


async def split_and_right(failing: Failing, seed: int) -> None:
    """Fresh prompts go over both engines again, and are answered right."""
    splits = 0
    for number in range(4):
        prompt = text(seed * 10 + number)
        answer = await failing.pair.post(COMPLETIONS, json=failing.body(prompt), headers=FACTS)
        assert answer.status_code == 200, answer.text
        splits += "x-baton-prefill" in answer.headers
        assert answer.json()["choices"][0]["text"] == await failing.right(prompt)
        await failing.unspoilt(prompt)
    assert splits


async def test_a_decode_engine_killed_in_mid_stream(failing: Failing) -> None:
    """The stream goes on with the other one; then the engine comes back."""
    await failing.taken(failing.trio, "p0", "d0", "judge")
    for seed in range(30, 60):
        prompt, pieces = text(seed), []
        right = await failing.right(prompt, 200)
        body = failing.body(prompt, 200, stream=True)
        async with failing.trio.stream("POST", COMPLETIONS, json=body, headers=FACTS) as answer:
            assert answer.status_code == 200
            at_d0 = answer.headers["x-baton-decode"] == "d0"
            async for piece in answer.aiter_text():
                pieces.append(piece)
                if at_d0 and len(pieces) == 5:
                    failing.engines["d0"].kill()
        assert spoken("".join(pieces)) == right
        if at_d0:
            break
    else:
        pytest.fail("no stream came from d0")
    await failing.engines["d0"].wait()
    await failing.restart("d0")
    await failing.taken(failing.pair, "p0", "d0")
    await split_and_right(failing, 70)

"""Ranks and adapters of real engines: started from the fleet file, addressed, and told apart by the index."""

import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engines.fleet import Fleet
from engines.keeper import Keeper
from engines.layout import free_ports, on_cpu
from engines.spec import Spec
from engines.supervisor import Supervisor
from engines.surface import PROMPT_TOKENS_BY_SOURCE, total
from engines.tiny_model import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, make_tiny_model

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]

BLOCK = 32
RANKS = 2
PULLED = "external_kv_transfer"
SOURCES = ("local_compute", "local_cache_hit", PULLED)


@dataclass
class Ranked:
    """One prefill and one decode engine, each a process with two ranks, behind a gateway that places at random."""

    model: str
    urls: dict[str, str]
    http: httpx.AsyncClient

    async def told(self, engine: str, source: str) -> list[float]:
        """Prompt tokens from one source, rank by rank, as an engine counts them."""
        page = (await self.http.get(f"{self.urls[engine]}/metrics")).text
        labels = [{"engine": str(rank), "source": source} for rank in range(RANKS)]
        return [total(page, PROMPT_TOKENS_BY_SOURCE, one) or 0.0 for one in labels]

    async def index(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get("/index", params={"top": 0})).json()[self.model]
        return found

    async def ask(self, prompt: str, model: str = "") -> httpx.Response:
        body = {"model": model or self.model, "prompt": prompt, "max_tokens": 6, "temperature": 0}
        answer = await self.http.post("/v1/completions", json=body, headers={"x-baton-facts": "1"})
        assert answer.status_code == 200, answer.text
        return answer


def make_adapter(folder: Path, seed: int) -> Path:
    """A LoRA adapter of the tiny model, strong enough to change what it says."""
    import numpy as np
    from safetensors.numpy import save_file

    chance, tensors = np.random.default_rng(seed), {}
    for layer in range(LAYERS):
        for part, heads in (("q_proj", HEADS), ("v_proj", KV_HEADS)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            tensors[f"{name}.lora_A.weight"] = chance.normal(0, 0.5, (8, HIDDEN)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = chance.normal(0, 0.5, (heads * HEAD_DIM, 8)).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ranked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ranked]:
    folder = tmp_path_factory.mktemp("ranks")
    model = make_tiny_model(folder / "tiny-llama")
    everywhere, one = make_adapter(folder / "a", 1), make_adapter(folder / "b", 2)
    ports = free_ports(18601)
    plain = on_cpu(model, ports)
    engines = []
    for engine in plain.engines:
        mine = [next(ports) for _ in range(3 * RANKS)]
        first = dict(zip(("nixl_port", "events_port", "replay_port"), mine[::RANKS], strict=True))
        args = ["--lora-modules", f"everywhere={everywhere}", *([f"decode-only={one}"] if engine.name == "d0" else [])]
        engines.append({**engine.model_dump(exclude_defaults=True), **first, "dp": RANKS, "args": args})
    table = plain.models[model.name].model_dump(exclude_defaults=True, exclude={"name"})
    table["args"] = [*table["args"], "--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"]
    how = {"policy": "random", "lookup_budget_s": 2.0}
    file = Fleet.parse({"models": {model.name: table}, "engines": engines, "gateway": how})
    (folder / "fleet.toml").write_text(file.to_toml())
    port = next(ports)
    serve = (sys.executable, "-m", "gateway.cli", "serve", "-c", str(folder / "fleet.toml"), "--port", str(port))
    supervisor = Supervisor(folder)
    try:
        await supervisor.ready(supervisor.add(Keeper(supervisor, file).specs().values(), patient=False))
        url = f"http://127.0.0.1:{port}"
        await supervisor.ready(supervisor.add([Spec("gateway", serve, f"{url}/readyz")], patient=False))
        async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as http:
            yield Ranked(model.name, {e.name: file.url(e) for e in file.engines}, http)
    finally:
        await supervisor.stop()


def text(seed: int, words: int = 120) -> str:
    pick = random.Random(seed)
    return f"{seed} " + " ".join(pick.choice(("river", "stone", "engine", "letter", "garden")) for _ in range(words))


async def test_every_rank_serves_every_other_and_answers_are_the_same(ranked: Ranked) -> None:
    """KV goes from each rank of one engine to each rank of the other, and is right."""
    before = await ranked.told("d0", PULLED)
    pairs: Counter[tuple[str, str]] = Counter()
    said: dict[int, set[str]] = {}
    for turn in range(48):
        answer = await ranked.ask(text(turn % 8))
        pairs[answer.headers["x-baton-prefill"], answer.headers["x-baton-decode"]] += 1
        said.setdefault(turn % 8, set()).add(answer.json()["choices"][0]["text"])
    assert set(pairs) == set(product(("p0.0", "p0.1"), ("d0.0", "d0.1")))
    assert all(len(texts) == 1 for texts in said.values()), said
    assert all(now > then for now, then in zip(await ranked.told("d0", PULLED), before, strict=True))
    assert await ranked.told("p0", PULLED) == [0.0] * RANKS
    assert min(await ranked.told("p0", "local_compute")) > 0


async def test_the_index_is_right_rank_by_rank(ranked: Ranked) -> None:
    """Wherever a prompt goes, what was predicted of that rank is what the rank reports."""
    found = await ranked.index()
    wanted = {(f"{url}#rank={rank}", rank) for url in ranked.urls.values() for rank in range(RANKS)}
    assert {(source["engine"], source["rank"]) for source in found["sources"]} == wanted
    assert found["prompts"] == "local"
    predicted = 0
    for turn in range(30):
        told = (await ranked.ask(text(100 + turn % 3, 100 + 10 * turn))).headers
        predicted += int(told["x-baton-predicted-prefill"])
        assert abs(int(told["x-baton-predicted-prefill"]) - int(told["x-baton-cached-tokens"])) <= BLOCK
    assert predicted > 30 * BLOCK, "almost nothing was cached: this proves nothing"
    holders = (await ranked.index())["stats"]["holders"]
    assert all(holders[url] > 0 for url, _ in wanted)


def cached(answer: httpx.Response) -> int:
    """Prompt tokens that the engine which prefilled had, as it says itself."""
    told = answer.headers.get("x-baton-cached-tokens")
    return int(told if told is not None else answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_adapters_are_listed_and_never_share_blocks(ranked: Ranked) -> None:
    listed = (await ranked.http.get("/v1/models")).json()["data"]
    assert {one["id"]: one["parent"] for one in listed} == {
        ranked.model: None,
        "everywhere": ranked.model,
        "decode-only": ranked.model,
    }
    prompt = text(200, 200)
    said: dict[str, set[str]] = {}
    seen: set[tuple[str, str]] = set()
    predicted = 0
    for turn in range(36):
        model = (ranked.model, "everywhere", "decode-only")[turn % 3]
        answer = await ranked.ask(prompt, model)
        told = answer.headers
        where = told.get("x-baton-prefill") or told["x-baton-decode"]
        assert (where[:2] == "d0") is (model == "decode-only"), "only d0 has that adapter"
        foretold = int(told["x-baton-predicted-prefill" if where[:2] == "p0" else "x-baton-predicted-decode"])
        assert abs(foretold - cached(answer)) <= BLOCK
        assert (foretold > 0) is ((model, where) in seen), "a hit is of this adapter's own blocks"
        seen.add((model, where))
        predicted += foretold
        said.setdefault(model, set()).add(answer.json()["choices"][0]["text"])
    assert predicted > 20 * BLOCK
    assert [len(texts) for texts in said.values()] == [1, 1, 1]
    assert len(set.union(*said.values())) == 3, "each adapter answers in its own words"

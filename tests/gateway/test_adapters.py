"""LoRA adapters: who has one, whose blocks they are, and that both change while engines run."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from engines.double import Double
from tests.gateway.conftest import Gateway, until
from tests.gateway.readers import DoubleReader

FACTS = {"x-baton-facts": "1"}
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def adapted(**settings: Any) -> AsyncIterator[tuple[Double, Double, Double, Gateway]]:
    """A prefill engine that has `a`, decode engines that have `a` and `b`, and none; a gateway that reads prompts."""
    async with (
        Double("prefill", "p", events=True, adapters=["a"]) as p,
        Double("decode", "d0", events=True, adapters=["a", "b"]) as d0,
        Double("decode", "d1", events=True) as d1,
        Gateway.over(
            p, d0, d1, reader=DoubleReader(), **{"send_ids": True, "policy": "lmetric", **settings}
        ) as gateway,
    ):
        await gateway.enrolled()
        yield p, d0, d1, gateway


def body(model: str, seed: int = 1) -> dict[str, Any]:
    pick = random.Random(seed)
    text = " ".join(pick.choice("abcdefghijklmnop") * 3 for _ in range(150))
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 6}


async def said(http: httpx.AsyncClient, asked: dict[str, Any]) -> httpx.Response:
    answer = await http.post(CHAT, json=asked, headers=FACTS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == asked["model"]
    return answer


async def test_only_engines_that_have_an_adapter_get_its_requests() -> None:
    async with adapted() as (_, _, _, gateway):
        listed = (await gateway.http.get("/v1/models")).json()["data"]
        assert {one["id"]: one["parent"] for one in listed} == {"m": None, "a": "m", "b": "m"}
        went: dict[str, set[tuple[str | None, str]]] = {}
        for seed in range(8):
            for model in ("m", "a", "b"):
                told = (await said(gateway.http, body(model, seed))).headers
                went.setdefault(model, set()).add((told.get("x-baton-prefill"), told["x-baton-decode"]))
        assert went == {"m": {("p", "d0"), ("p", "d1")}, "a": {("p", "d0")}, "b": {(None, "d0")}}
        assert (await gateway.http.post(CHAT, json=body("c"))).status_code == 404


async def test_adapters_never_share_blocks() -> None:
    """The same prompt: each has blocks and an answer of its own, and what is predicted is what is reported."""
    async with adapted() as (p, d0, d1, gateway), Double("both", "judge", adapters=["a", "b"]) as judge:
        namespace = await gateway.enrolled()
        hits: dict[str, list[int]] = {}
        async with httpx.AsyncClient(base_url=judge.url, trust_env=False) as alone:
            for _ in range(3):
                for model in ("m", "a"):
                    answer = await said(gateway.http, body(model))
                    right = (await alone.post(CHAT, json=body(model))).json()
                    assert answer.json()["choices"] == right["choices"]
                    told = answer.headers
                    assert told["x-baton-predicted-prefill"] == told["x-baton-cached-tokens"]
                    hits.setdefault(model, []).append(int(told["x-baton-cached-tokens"]))
                    await until(lambda: set(namespace.ingest.names(p.url)) == p.engine.pool.cached(), 5)
        assert hits["m"] == hits["a"] and hits["m"][0] == 0 < hits["m"][1] == hits["m"][2]
        answers = [(await said(gateway.http, body(model))).json()["choices"][0]["message"] for model in ("m", "a", "b")]
        assert len({answer["content"] for answer in answers}) == 3
        both = (d0, d1)
        await until(lambda: all(set(namespace.ingest.names(d.url)) == d.engine.pool.cached() for d in both), 5)


async def test_an_adapter_may_come_and_go_while_its_engine_serves() -> None:
    async with adapted(vitals_interval_s=0.02) as (p, d0, _, gateway):
        http = gateway.http
        assert (await http.post(CHAT, json=body("new"))).status_code == 404
        for double in (p, d0):
            double.adapters["new"] = None
        await until(lambda: all(gateway.app.fleet.engines[name].serves("new") for name in ("p", "d0")), 5)
        told = (await said(http, body("new"))).headers
        assert (told["x-baton-prefill"], told["x-baton-decode"]) == ("p", "d0")
        assert 'model="new"' in (await http.get("/metrics")).text
        del p.adapters["new"]
        await until(lambda: not gateway.app.fleet.engines["p"].serves("new"), 5)
        assert "x-baton-prefill" not in (await said(http, body("new"))).headers
        del d0.adapters["new"]
        await until(lambda: not gateway.app.fleet.known("new"), 5)
        assert (await http.post(CHAT, json=body("new"))).status_code == 404
        assert 'model="new"' not in (await http.get("/metrics")).text
        assert all(engine.state == "up" for engine in gateway.app.fleet)

"""From a prompt to the engines that hold its beginning: ids on both legs, credit that is true, and what goes wrong."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from engines.double import Double
from engines.double.events import BlockStored
from gateway.index.command import app as index
from gateway.prompt.apis import COMPLETIONS
from tests.gateway.conftest import Gateway, Pair, until
from tests.gateway.readers import DoubleReader

FACTS = {"x-baton-facts": "1"}
SMALL: dict[str, Any] = {"events": True, "num_blocks": 257, "max_model_len": 4096}


@asynccontextmanager
async def four(**settings: Any) -> AsyncIterator[tuple[list[Double], Gateway]]:
    """Two prefill and two decode engines with KV events, and a gateway that reads prompts."""
    doubles = [Double("prefill" if name[0] == "p" else "decode", name, **SMALL) for name in ("p0", "p1", "d0", "d1")]
    async with doubles[0], doubles[1], doubles[2], doubles[3]:
        async with Gateway.over(*doubles, **{"reader": DoubleReader(), "send_ids": True, **settings}) as gateway:
            await gateway.enrolled()
            yield doubles, gateway


def words(seed: int, count: int) -> str:
    pick = random.Random(seed)
    return " ".join(pick.choice("abcdefghijklmnop") * 3 for _ in range(count))


async def warnings(gateway: Gateway) -> list[str]:
    told: list[str] = (await gateway.http.get("/readyz?verbose")).json()["warnings"]
    return told


async def held(double: Double, gateway: Gateway) -> int:
    """Blocks that the index gives the engine."""
    namespace = await gateway.enrolled()
    return sum(status.blocks for status in namespace.ingest.status() if status.engine == double.url)


@pytest.mark.parametrize("stream", [False, True])
async def test_both_legs_carry_the_ids_and_the_answer_is_right(stream: bool) -> None:
    async with four() as (doubles, gateway), Double("both", "judge") as judge:
        body = {"model": "m", "messages": [{"role": "user", "content": words(1, 200)}], "max_tokens": 6}
        await gateway.http.post("/v1/chat/completions", json=body)  # the first one is compared with the engine's ids
        answer = await gateway.http.post("/v1/chat/completions", json={**body, "stream": stream}, headers=FACTS)
        assert answer.status_code == 200
        pair = Pair(doubles[0], doubles[2], judge, gateway)
        right = (await pair.right("/v1/chat/completions", body))["choices"][0]["message"]["content"]
        assert right.strip() and (stream or answer.json()["choices"][0]["message"]["content"] == right)
        legs = [r for d in doubles for r in d.requests if r.path == "/v1/chat/completions" and len(r.body) > 500]
        ids = [leg.json()["kv_transfer_params"].get("prompt_token_ids") for leg in legs]
        assert len(ids) == 4
        assert len([one for one in ids if one]) == 3, "all but the first prefill"
        assert all(one in (None, max(ids, key=bool)) for one in ids)


async def test_the_next_turn_goes_where_the_conversation_is() -> None:
    async with four() as (_, gateway):
        for conversation in range(6):
            said = [{"role": "user", "content": words(conversation, 120)}]
            went = set()
            for turn in range(4):
                body = {"model": "m", "messages": said, "max_tokens": 4}
                answer = await gateway.http.post("/v1/chat/completions", json=body, headers=FACTS)
                went.add(answer.headers["x-baton-prefill"])
                reply = answer.json()["choices"][0]["message"]["content"]
                said += [{"role": "assistant", "content": reply}, {"role": "user", "content": words(turn + 99, 20)}]
            assert len(went) == 1


async def test_what_the_index_predicts_is_what_the_engines_report() -> None:
    """Multi-turn, shared prefixes, and so few blocks that they are evicted all the time."""
    pick = random.Random(7)
    async with four() as (doubles, gateway):
        namespace = await gateway.enrolled()
        talks: list[list[dict[str, str]]] = []
        wrong = 0
        for _ in range(300):
            if len(talks) < 12 or pick.random() < 0.2:
                talks.append([{"role": "system", "content": words(pick.randrange(3), 60)}])
            said = pick.choice(talks[-12:])
            said.append({"role": "user", "content": words(pick.randrange(10**6), pick.randrange(10, 150))})
            del said[9:]
            await asyncio.gather(*(until(lambda d=d: caught_up(d, namespace), 5) for d in doubles))  # type: ignore[misc]
            body = {"model": "m", "messages": said, "max_tokens": 3}
            answer = await gateway.http.post("/v1/chat/completions", json=body, headers=FACTS)
            actual = int(answer.headers["x-baton-cached-tokens"])
            predicted = int(answer.headers["x-baton-predicted-prefill"])
            wrong += abs(actual - predicted) > 16
            said.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
        assert sum(d.stats.cache_hits for d in doubles[:2]) > 10_000
        assert wrong <= 3


def caught_up(double: Double, namespace: Any) -> bool:
    """Whether the index has seen all that the engine has published."""
    return bool(namespace.ingest.names(double.url) == double.engine.pool.cached())


async def test_an_engine_that_restarts_has_no_credit() -> None:
    async with four(speculation_s=0.01) as (doubles, gateway):
        body = {"model": "m", "messages": [{"role": "user", "content": words(3, 200)}], "max_tokens": 2}
        first = await gateway.http.post("/v1/chat/completions", json=body, headers=FACTS)
        p = next(d for d in doubles if d.name == first.headers["x-baton-prefill"])
        await until(lambda: caught_up(p, next(iter(gateway.app.lookup.namespaces.values()))), 5)
        assert await held(p, gateway) > 0
        await p.revive()
        gateway.app.fleet.engines["p0" if p.name == "p1" else "p1"].state  # noqa: B018
        async with asyncio.timeout(2):
            while await held(p, gateway):
                await asyncio.sleep(0.005)
        again = await gateway.http.post("/v1/chat/completions", json=body, headers=FACTS)
        if again.headers["x-baton-prefill"] == p.name:
            assert again.headers["x-baton-predicted-prefill"] == "0"


async def test_another_tokenizer_is_noticed_at_the_start() -> None:
    reader = DoubleReader()
    reader.shift = 1
    async with four(reader=reader) as (doubles, gateway):
        assert any("reads prompts differently" in told and "p0" in told for told in await warnings(gateway))
        body = {"model": "m", "messages": [{"role": "user", "content": words(3, 50)}], "max_tokens": 2}
        assert (await gateway.http.post("/v1/chat/completions", json=body)).status_code == 200
        prefills = [request for double in doubles[:2] for request in double.requests if b"return_token" in request.body]
        sent = [request.json()["kv_transfer_params"] for request in prefills]
        assert sent and "prompt_token_ids" not in sent[-1]
        decoded = [r for d in doubles[2:] for r in d.requests if b"remote_block_ids" in r.body]
        assert len(decoded[-1].json()["kv_transfer_params"]["prompt_token_ids"]) > 40, "learnt from the prefill engine"


@pytest.mark.parametrize("how", ["shift", "extra"])
async def test_drift_is_noticed_while_serving(how: str) -> None:
    """The template changes behind our back: other ids, or more of them."""
    reader = DoubleReader()
    async with four(reader=reader) as (_, gateway):
        namespace = await gateway.enrolled()
        assert namespace.prompts.mode == "local"
        setattr(reader, how, 1)
        body = {"model": "m", "messages": [{"role": "user", "content": words(3, 50)}], "max_tokens": 2}
        assert (await gateway.http.post("/v1/chat/completions", json=body)).status_code == 200
        assert namespace.prompts.mode == "learned"
        assert any("template" in told for told in await warnings(gateway))


async def test_engines_without_events_are_known_by_what_was_sent_there() -> None:
    async with Double("prefill", "p0") as p0, Double("prefill", "p1") as p1, Double("decode", "d0") as d0:
        async with Gateway.over(p0, p1, d0, reader=DoubleReader()) as gateway:
            await gateway.enrolled()
            assert any("p0" in told or p0.url in told for told in await warnings(gateway))
            body = {"model": "m", "messages": [{"role": "user", "content": words(3, 900)}], "max_tokens": 2}
            went = {
                (await gateway.http.post("/v1/chat/completions", json=body, headers=FACTS)).headers["x-baton-prefill"]
                for _ in range(8)
            }
            assert len(went) == 1


async def test_another_block_size_is_named_with_its_mend() -> None:
    async with Double("prefill", "p0", events=True) as p0, Double("decode", "d0", block_size=32, events=True) as d0:
        async with Gateway.over(p0, d0, reader=DoubleReader()) as gateway:
            await gateway.enrolled()
            told = await warnings(gateway)
            assert any("--block-size" in warning and "16" in warning and "32" in warning for warning in told)


async def test_a_session_is_remembered() -> None:
    async with four() as (_, gateway):
        body = {"model": "m", "prompt": words(1, 100), "max_tokens": 2}
        answer = await gateway.http.post("/v1/completions", json=body, headers={**FACTS, "x-session-id": "mine"})
        decode = gateway.app.fleet.engines[answer.headers["x-baton-decode"]].url
        fields = {"prompt": msgspec.Raw(msgspec.json.encode(body["prompt"]))}
        sight = await gateway.app.lookup.look("m", COMPLETIONS, fields, 100, b"mine")
        assert sight.bound == decode
        assert (await gateway.app.lookup.look("m", COMPLETIONS, fields, 100, b"other")).bound == ""


async def test_blocks_in_host_memory_are_told_apart() -> None:
    """Policies see them as such, and `baton index stats` names them."""
    ids = list(range(40))
    async with four() as (doubles, gateway):
        namespace = await gateway.enrolled()
        p0, publisher = doubles[0], doubles[0].engine.publisher
        assert publisher is not None
        status = namespace.ingest.status
        await until(lambda: all(source.state == "following" for source in status()), 5)
        publisher._pending.append(BlockStored([1, 2], None, ids[:32], 16, None, "CPU", None, [None, None]))
        publisher.flush()
        fields = {"prompt": msgspec.Raw(msgspec.json.encode(ids))}
        async with asyncio.timeout(5):
            while (seen := (await gateway.app.lookup.look("m", COMPLETIONS, fields, 100, b"")).of(p0.url))[1] == 0:
                await asyncio.sleep(0.005)
        assert seen[:2] == (0, 32)
        shown = await asyncio.to_thread(CliRunner().invoke, index, ["stats", "--url", gateway.url])
        assert shown.exit_code == 0, shown.output
        assert f"{p0.url} (cpu): 2 blocks" in shown.output.replace("\n", "")


async def test_the_index_is_shown() -> None:
    async with four() as (doubles, gateway):
        body = {"model": "m", "prompt": words(1, 100), "max_tokens": 2}
        await gateway.http.post("/v1/completions", json=body)
        namespace = await gateway.enrolled()
        await asyncio.gather(*(until(lambda d=d: caught_up(d, namespace), 5) for d in doubles))  # type: ignore[misc]
        shown = (await gateway.http.get("/index?top=5")).json()["m"]
        assert (shown["block_size"], shown["prompts"]) == (16, "local")
        assert shown["stats"]["blocks"] == max(run["blocks"] for run in shown["runs"]) > 5
        assert len(shown["stats"]["holders"]) >= 2
        assert (await gateway.http.get("/index?top=x")).status_code == 400
        metrics = (await gateway.http.get("/metrics")).text
        assert 'baton_prompt_mode{mode="local",model="m"} 1.0' in metrics
        assert metrics.count('state="following"') == 4
        assert "baton_index_warnings" in metrics

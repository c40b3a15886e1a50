"""What clients get through a pair is what one engine alone would have answered; both legs say the same."""

import json
import socket
from typing import Any

import httpx
import pytest

from engines.double import Double
from tests.gateway.conftest import Gateway, Pair

LONG = "The gateway places each request where its keys and values already are. " * 20
ASK = [{"role": "user", "content": LONG}]

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 12}),
    ("/v1/chat/completions", {"messages": ASK, "max_completion_tokens": 7, "max_tokens": 3}),
    ("/v1/completions", {"prompt": LONG, "max_tokens": 12}),
    ("/v1/completions", {"prompt": [LONG], "max_tokens": 12, "stop": ["zz"]}),
    ("/v1/responses", {"input": LONG, "max_output_tokens": 12}),
    ("/v1/messages", {"messages": ASK, "max_tokens": 12}),
]


def content(answer: dict[str, Any]) -> Any:
    """The part of an answer that must be equal: no ids, no times."""
    if "choices" in answer:
        return answer["choices"], {k: v for k, v in answer["usage"].items() if "details" not in k}
    if "output" in answer:
        return [part["content"] for part in answer["output"]], answer["usage"]["output_tokens"]
    return answer["content"], answer["stop_reason"]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_split_answer_equals_the_aggregated_one(pair: Pair, path: str, body: dict[str, Any]) -> None:
    body = {"model": "m", **body}
    answer = (await pair.http.post(path, json=body)).raise_for_status().json()
    assert content(answer) == content(await pair.right(path, body))
    assert pair.decode.stats.external_kv_transfer > 200
    assert pair.prefill.stats.generated == 1
    assert pair.gateway.booked() == 0


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_split_stream_is_byte_for_byte_the_decode_engines(pair: Pair, path: str, body: dict[str, Any]) -> None:
    body = {"model": "m", "stream": True, **body}
    streamed = await pair.http.post(path, json=body)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    async with httpx.AsyncClient(base_url=pair.judge.url, trust_env=False) as http:
        alone = await http.post(path, json=body)

    def texts(stream: str) -> list[Any]:
        datas = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
        found = []
        for data in datas:
            event = json.loads(data) if data != "[DONE]" else {"choices": [data]}
            found.append(event.get("choices") or event.get("delta") or event.get("type"))
        return found

    assert texts(streamed.text) == texts(alone.text)
    if "/completions" in path:
        assert streamed.text.endswith("data: [DONE]\n\n")
    assert pair.decode.stats.external_kv_transfer > 200


async def test_usage_of_a_stream_is_intact(pair: Pair) -> None:
    body = {"model": "m", "messages": ASK, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    lines = (await pair.http.post("/v1/chat/completions", json=body)).text.split("\n\n")
    usage = json.loads(lines[-3].removeprefix("data: "))["usage"]
    right = (await pair.right("/v1/chat/completions", {**body, "stream": False, "stream_options": None}))["usage"]
    assert usage["prompt_tokens"] == right["prompt_tokens"]
    assert usage["completion_tokens"] == 5
    assert lines[-2] == "data: [DONE]"


async def test_both_legs_carry_the_clients_body_and_one_request_id(pair: Pair) -> None:
    raw = (
        b'{"model":"m","messages":[{"role":"user","content":"hi \\u00e9"}],"max_tokens":4,'
        b'"seed":12345678901234567890123,"temperature":0.10,"my_field":{"a":[1.0,-0.0]}}'
    )
    headers = {"x-request-id": "mine-1", "x-data-parallel-rank": "7", "x-session-id": "s", "x-vllm-priority": "-9"}
    headers |= {"authorization": "Bearer secret", "cookie": "c=1", "proxy-authorization": "x", "user-agent": "test"}
    answer = await pair.http.post("/v1/chat/completions", content=raw, headers=headers)
    assert answer.headers["x-request-id"] == "mine-1"
    prefill, decode = pair.prefill.posts[-1], pair.decode.posts[-1]
    kept = raw[raw.index(b'"seed"') : -1]
    messages = raw[raw.index(b'"messages"') : raw.index(b',"max_tokens"')]
    for leg in (prefill, decode):
        assert kept in leg.body
        assert messages in leg.body
        assert not {"x-data-parallel-rank", "x-session-id", "x-vllm-priority", "authorization", "cookie"} & set(
            leg.headers
        )
        assert "proxy-authorization" not in leg.headers
        assert leg.headers["user-agent"] == "test"
    ours = prefill.headers["x-request-id"]
    assert ours == decode.headers["x-request-id"]
    assert ours.startswith("mine-1-")
    assert len(ours) > len("mine-1-") + 7


@pytest.mark.parametrize("given", ["", "a b", "x" * 200, "é", 'q"'])
async def test_a_request_id_that_could_forge_a_log_line_is_replaced(pair: Pair, given: str) -> None:
    body = {"model": "m", "prompt": "x", "max_tokens": 2}
    answer = await pair.http.post("/v1/completions", json=body, headers=[(b"x-request-id", given.encode())])
    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


async def test_facts_are_for_those_who_ask(pair: Pair) -> None:
    body = {"model": "m", "prompt": LONG, "max_tokens": 2}
    silent = await pair.http.post("/v1/completions", json=body)
    assert not [name for name in silent.headers if name.startswith("x-baton")]
    asked = await pair.http.post("/v1/completions", json=body, headers={"x-baton-facts": "1"})
    assert asked.headers["x-baton-prefill"] == "p0"
    assert asked.headers["x-baton-decode"] == "d0"
    assert "prefill;dur=" in asked.headers["server-timing"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 1}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4}),
        ("/v1/chat/completions", {"messages": ASK, "n": 2, "max_tokens": 4, "temperature": 1, "seed": 1}),
        ("/v1/embeddings", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ],
)
async def test_what_may_not_be_split_goes_to_one_engine_whole(pair: Pair, path: str, body: dict[str, Any]) -> None:
    answer = await pair.http.post(path, json={"model": "m", **body})
    assert answer.status_code == 200
    assert not pair.prefill.posts
    assert b"kv_transfer_params" not in pair.decode.posts[-1].body


async def test_models_are_merged() -> None:
    async with Double("both", "b0", model="other") as other, Double("prefill", "p9") as p, Double("decode", "d9") as d:
        async with Gateway.over(other, p, d) as gateway:
            listed = (await gateway.http.get("/v1/models")).json()
            assert [entry["id"] for entry in listed["data"]] == ["m", "other"]
            assert (await gateway.http.get("/v1/models/other")).json()["id"] == "other"
            assert (await gateway.http.get("/v1/models/none")).status_code == 404
            before = len(other.posts)
            body = {"prompt": "x", "max_tokens": 2}
            assert (await gateway.http.post("/v1/completions", json={"model": "other", **body})).status_code == 200
            assert len(other.posts) == before + 1
            unnamed = await gateway.http.post("/v1/completions", json=body)
            assert unnamed.json()["error"]["param"] == "model"


async def test_health_routes(pair: Pair) -> None:
    assert (await pair.http.get("/livez")).status_code == 200
    assert (await pair.http.get("/health")).status_code == 200
    assert (await pair.http.get("/readyz")).json() == {"ready": True}
    report = (await pair.http.get("/readyz?verbose")).json()
    assert [(e["name"], e["role"], e["state"]) for e in report["engines"]] == [
        ("p0", "prefill", "up"),
        ("d0", "decode", "up"),
    ]


async def test_readiness_follows_the_engines(pair: Pair) -> None:
    await pair.decode.die()
    from tests.gateway.conftest import until

    await until(lambda: not pair.gateway.app.readiness.ready, 2)
    answer = await pair.http.get("/readyz?verbose")
    assert answer.status_code == 503
    assert answer.json()["missing"] == ["m: no decode engine is up"]
    assert (await pair.http.get("/livez")).status_code == 200
    await pair.decode.revive()
    await until(lambda: pair.gateway.app.readiness.ready, 2)


async def test_every_socket_sends_at_once(pair: Pair) -> None:
    """Nagle's algorithm would hold back tokens, on the client's side and on the engines'."""
    body = {"model": "m", "prompt": LONG, "max_tokens": 2}
    await pair.http.post("/v1/completions", json=body)
    protocols = list(pair.gateway.server.server_state.connections)
    ours = [protocol.transport for protocol in protocols]
    engines = [connection._transport for e in pair.gateway.app.fleet for connection in e.pool._open]
    assert ours
    assert len(engines) == 2
    for transport in (*ours, *engines):
        assert transport is not None
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_policies_take_turns() -> None:
    async with (
        Double("prefill", "p0") as p0,
        Double("prefill", "p1") as p1,
        Double("decode", "d0") as d0,
        Double("decode", "d1") as d1,
        Gateway.over(p0, p1, d0, d1, policy="round_robin") as gateway,
    ):
        for number in range(4):
            await gateway.http.post(
                "/v1/completions", json={"model": "m", "prompt": f"{number} {LONG}", "max_tokens": 2}
            )
        assert [x.stats.received for x in (p0, p1, d0, d1)] == [2, 2, 2, 2]
        assert gateway.metric("baton_placements_total", policy="round_robin", path="remote", reason="in turn") == 4

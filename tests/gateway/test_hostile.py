"""Bad and hostile bodies: an OpenAI error object, no 5xx of ours, and engines that answer afterwards."""

import asyncio
import json
from typing import Any

import pytest

from gateway.prompt.body import STEERING
from tests.gateway.conftest import Pair, make_pair

HI = [{"role": "user", "content": "hi there, how are you?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 4},
    "/v1/completions": {"prompt": "hi there, how are you?", "max_tokens": 4},
    "/v1/responses": {"input": "hi there, how are you?", "max_output_tokens": 4},
    "/v1/messages": {"messages": HI, "max_tokens": 4},
    "/v1/embeddings": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
}
STOLEN = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[0, 1]],
    "remote_engine_id": "x",
    "remote_request_id": "y",
    "remote_host": "127.0.0.1",
    "remote_port": 1,
    "prompt_token_ids": [1, 2, 3],
}


async def still_well(pair: Pair) -> None:
    """Both engines answer, split, and right."""
    body = {"model": "m", "prompt": "are you still well?", "max_tokens": 6}
    answer = await pair.http.post("/v1/completions", json=body, headers={"x-baton-facts": "1"})
    assert answer.headers["x-baton-prefill"] == "p0"
    assert answer.json()["choices"] == (await pair.right("/v1/completions", body))["choices"]
    assert pair.gateway.booked() == 0


def assert_openai_error(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    return error


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("extra", sorted(STEERING))
async def test_a_client_cannot_steer_the_engines(pair: Pair, path: str, extra: str) -> None:
    body = {"model": "m", **BODIES[path]}
    stolen = STOLEN if extra.endswith("params") else {"kv_transfer_params": "x"} if extra == "vllm_xargs" else "x"
    answer = await pair.http.post(path, json={**body, extra: stolen})
    assert answer.status_code == 200, answer.text
    for request in (*pair.prefill.requests, *pair.decode.requests):
        assert b"prompt_token_ids" not in request.body
        sent = request.json() if request.body else {}
        if extra != "kv_transfer_params":
            assert extra not in sent
        else:
            assert sent.get(extra, {}).get("remote_engine_id") != "x"
    await still_well(pair)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe{}", b'{"model":NaN}', b'{"a":' + b"[" * 9999])
async def test_what_is_not_a_json_object_is_a_400(pair: Pair, path: str, raw: bytes) -> None:
    assert_openai_error(await pair.http.post(path, content=raw), 400)


@pytest.mark.parametrize("path", BODIES)
async def test_an_unknown_model_is_openais_404(pair: Pair, path: str) -> None:
    error = assert_openai_error(await pair.http.post(path, json={**BODIES[path], "model": "gpt-9"}), 404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"


@pytest.mark.parametrize("named", [{}, {"model": None}])
async def test_the_only_model_need_not_be_named(pair: Pair, named: dict[str, Any]) -> None:
    answer = await pair.http.post("/v1/completions", json={**named, "prompt": "x", "max_tokens": 2})
    assert answer.status_code == 200 and answer.json()["model"] == "m"


@pytest.mark.parametrize("model", [3, ["m"], {"a": 1}, ""])
async def test_a_model_of_a_wrong_type_is_a_400(pair: Pair, model: Any) -> None:
    assert_openai_error(await pair.http.post("/v1/completions", json={"model": model, "prompt": "x"}), 400)


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 10**12},
        {"max_tokens": "many"},
        {"max_tokens": -5},
        {"temperature": "hot"},
        {"messages": "hi"},
        {"messages": []},
        {"messages": [7]},
        {"stream": {"a": 1}},
        {"n": "x"},
        {"min_tokens": 9},
    ],
)
async def test_an_engines_own_refusal_reaches_the_client_as_it_is(pair: Pair, change: dict[str, Any]) -> None:
    body = {"model": "m", **BODIES["/v1/chat/completions"], **change}
    answer = await pair.http.post("/v1/chat/completions", json=body)
    import httpx

    async with httpx.AsyncClient(base_url=pair.judge.url, trust_env=False) as http:
        alone = await http.post("/v1/chat/completions", json=body)
    assert alone.status_code == 400
    assert (answer.status_code, answer.json()) == (alone.status_code, alone.json())
    await still_well(pair)


async def test_a_prompt_that_is_too_long_is_the_engines_400(pair: Pair) -> None:
    body = {"model": "m", "prompt": "abc " * 200_000, "max_tokens": 4}
    assert_openai_error(await pair.http.post("/v1/completions", json=body), 400)
    await still_well(pair)


async def test_fifty_megabytes_are_refused_and_not_kept(pair: Pair) -> None:
    huge = b'{"model":"m","prompt":"' + b"x" * 50_000_000 + b'"}'
    error = assert_openai_error(await pair.http.post("/v1/completions", content=huge), 413)
    assert error["code"] == "body_too_large"
    await still_well(pair)


async def test_a_body_of_unknown_length_is_bounded_too() -> None:
    async def endless() -> Any:
        for _ in range(64):
            yield b"x" * 1024

    async with make_pair(max_body_bytes=10_000) as pair:
        assert_openai_error(await pair.http.post("/v1/completions", content=endless()), 413)
        await still_well(pair)


async def test_other_paths_and_methods(pair: Pair) -> None:
    assert_openai_error(await pair.http.get("/v1/nothing"), 404)
    assert_openai_error(await pair.http.post("/inference/v1/generate", json={}), 404)
    assert_openai_error(await pair.http.post("/v1/load_lora_adapter", json={}), 404)
    assert_openai_error(await pair.http.get("/v1/completions"), 405)
    assert_openai_error(await pair.http.post("/v1/models", json={}), 405)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST http://g:80/v1/completions HTTP/1.1", 200),
        (b"POST http://g/v1/completions?a=b HTTP/1.1", 200),
        (b"POST /v1/completions?http://x HTTP/1.1", 200),
        (b"POST http://g HTTP/1.1", 404),
        (b"POST http://g:99999/ HTTP/1.1", 404),
        (b"OPTIONS * HTTP/1.1", 404),
        (b"CONNECT g:443 HTTP/1.1", 405),
        (b"PUT /v1/completions HTTP/1.1", 405),
    ],
)
async def test_every_form_of_a_target(pair: Pair, line: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    body = b'{"model":"m","prompt":"x","max_tokens":2}'
    port = int(pair.gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%b\r\nhost: g\r\ncontent-length: %d\r\n\r\n%b" % (line, len(body), body))
    assert int((await reader.readline()).split()[1]) == status
    writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_error_suits_anthropics_clients_too(pair: Pair) -> None:
    answer = await pair.http.post("/v1/messages", content=json.dumps({"model": "none"}))
    assert answer.json()["type"] == "error"

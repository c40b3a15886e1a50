"""Refusals, word for word as vLLM 0.32.0 gave them (captured from a real engine with `--max-model-len 512`)."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from engines.double import Double
from tests.double.conftest import Client

CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
SAID = [{"role": "user", "content": "hi there"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}]
INVALID = "1 validation error:\n  "


def said(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": SAID, **more}


def plain(**more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "a", **more}


@pytest.fixture
async def double() -> AsyncIterator[Double]:
    async with Double(max_model_len=512) as double:
        yield double


BODIES: list[tuple[str, Any, str, str | None]] = [
    (
        CHAT,
        {"model": "m"},
        INVALID + "{'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}",
        "body.messages",
    ),
    (
        CHAT,
        {"model": "m", "messages": "x"},
        INVALID + "{'type': 'list_type', 'loc': 'body.messages', 'msg': 'Input should be a valid list', 'input': 'x'}",
        "body.messages",
    ),
    (
        CHAT,
        said(max_tokens="x"),
        INVALID + "{'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, "
        "unable to parse string as an integer', 'input': 'x'}",
        "body.max_tokens",
    ),
    (
        CHAT,
        [],
        INVALID + "{'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or "
        "object to extract fields from', 'input': '<list of 0 items>'}",
        "body",
    ),
    (
        COMPLETIONS,
        plain(kv_transfer_params="x"),
        INVALID + "{'type': 'dict_type', 'loc': 'body.kv_transfer_params', 'msg': 'Input should be a valid "
        "dictionary', 'input': 'x'}",
        "body.kv_transfer_params",
    ),
    (
        MESSAGES,
        said(),
        INVALID
        + "{'type': 'missing', 'loc': 'body.max_tokens', 'msg': 'Field required', 'input': '<dict of 2 items>'}",
        "body.max_tokens",
    ),
    (
        MESSAGES,
        said(max_tokens=0),
        INVALID + "{'type': 'value_error', 'loc': 'body.max_tokens', 'msg': 'Value error, max_tokens must be "
        "positive', 'input': '0', 'ctx': {'error': ValueError('max_tokens must be positive')}}",
        "body.max_tokens",
    ),
]

VALUES: list[tuple[str, Any, str, str | None]] = [
    (
        CHAT,
        said(temperature=-1),
        "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
        "temperature",
    ),
    (
        CHAT,
        said(temperature=3),
        "temperature must be in [0, 2], got 3.0. (parameter=temperature, value=3.0)",
        "temperature",
    ),
    (CHAT, said(top_p=0), "top_p must be in (0, 1], got 0.0. (parameter=top_p, value=0.0)", "top_p"),
    (
        COMPLETIONS,
        plain(prompt=list(range(5, 605)), max_tokens=1),
        "This model's maximum context length is 512 tokens. However, your prompt contains 600 input tokens, which "
        "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        "(parameter=input_tokens, value=600)",
        "input_tokens",
    ),
    (
        COMPLETIONS,
        plain(prompt=[5] * 512, max_tokens=1),
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        "max_tokens",
    ),
    (
        CHAT,
        said(max_tokens=9999),
        "max_tokens=9999 cannot be greater than max_model_len=512. Please request fewer output tokens. "
        "(parameter=max_tokens, value=9999)",
        "max_tokens",
    ),
    (
        CHAT,
        said(max_completion_tokens=9999, max_tokens=1),
        "max_completion_tokens=9999 cannot be greater than max_model_len=512. Please request fewer output tokens. "
        "(parameter=max_completion_tokens, value=9999)",
        "max_completion_tokens",
    ),
    (
        RESPONSES,
        {"model": "m", "input": "x", "max_output_tokens": 9999},
        "max_output_tokens=9999 cannot be greater than max_model_len=512. Please request fewer output tokens. "
        "(parameter=max_output_tokens, value=9999)",
        "max_output_tokens",
    ),
    (CHAT, said(max_tokens=0), "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"),
    (
        COMPLETIONS,
        plain(max_tokens=-1),
        "max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)",
        "max_tokens",
    ),
    (
        CHAT,
        said(max_tokens=1, min_tokens=3),
        "min_tokens must be less than or equal to max_tokens=1, got 3.",
        None,
    ),
    (
        CHAT,
        said(max_tokens=1, n=2, temperature=0),
        "n must be 1 when using greedy sampling, got 2.",
        None,
    ),
    (CHAT, said(max_tokens=1, n=0), "n must be at least 1, got 0.", None),
    (
        CHAT,
        said(n=10**9),
        "n must be at most 16384, got 1000000000. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
        "environment variable.",
        None,
    ),
    (COMPLETIONS, plain(prompt=[[]]), "The decoder prompt cannot be empty", None),
    (COMPLETIONS, plain(stop=[""]), "stop cannot contain an empty string.", None),
    (
        CHAT,
        said(stream_options={"include_usage": True}),
        "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
        "stream_options",
    ),
    (
        CHAT,
        said(tool_choice="required"),
        "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)",
        "tool_choice",
    ),
    (
        CHAT,
        said(tools=[]),
        "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely. "
        "(parameter=tools)",
        "tools",
    ),
    (
        CHAT,
        said(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "x"}}),
        "The tool specified in `tool_choice` does not match any of the specified `tools` (parameter=tool_choice)",
        "tool_choice",
    ),
    (
        CHAT,
        {"model": "m", "messages": []},
        "Cannot apply chat template to an empty conversation. Provide at least one message.",
        None,
    ),
    (
        COMPLETIONS,
        {"model": "m", "prompt": ""},
        "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
        "prompt",
    ),
    (COMPLETIONS, {"model": "m", "prompt": []}, "You must pass at least one prompt", None),
    (COMPLETIONS, plain(prompt=[999999]), "Token id 999999 is out of vocabulary", None),
    (
        CHAT,
        said(kv_transfer_params={"prompt_token_ids": []}),
        "`kv_transfer_params['prompt_token_ids']` must be a non-empty list of non-negative integers. "
        "(parameter=kv_transfer_params.prompt_token_ids)",
        "kv_transfer_params.prompt_token_ids",
    ),
]


@pytest.mark.parametrize(("path", "body", "message", "param"), BODIES)
async def test_a_body_that_does_not_fit(
    client: Client, double: Double, path: str, body: Any, message: str, param: str | None
) -> None:
    response = await client.post(double, body, path)
    assert response.status_code == 400
    assert response.json() == {"error": {"message": message, "type": "Bad Request", "param": param, "code": 400}}
    assert double.stats.received == 0


@pytest.mark.parametrize(("path", "body", "message", "param"), VALUES)
async def test_a_value_that_is_refused(
    client: Client, double: Double, path: str, body: Any, message: str, param: str | None
) -> None:
    response = await client.post(double, body, path)
    assert response.status_code == 400
    assert response.json() == {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}
    assert double.stats.received == 0


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, "/tokenize"])
async def test_an_unknown_model(client: Client, double: Double, path: str) -> None:
    body = {"model": "zz", "messages": SAID, "prompt": "a", "input": "a"}
    response = await client.post(double, body, path)
    assert response.status_code == 404
    message = "The model `zz` does not exist. Valid aliases: m."
    assert response.json() == {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}}


async def test_messages_have_their_own_shape(client: Client, double: Double) -> None:
    response = await client.post(double, {"model": "zz", "messages": SAID, "max_tokens": 3}, MESSAGES)
    assert response.status_code == 404
    assert response.content == (
        b'{"type":"error","error":{"type":"NotFoundError","message":"The model `zz` does not exist. '
        b'Valid aliases: m."}}'
    )
    response = await client.post(double, {"model": "m", "messages": SAID, "max_tokens": 9999}, MESSAGES)
    assert response.json()["error"]["message"].startswith("max_completion_tokens=9999 cannot be greater")


@pytest.mark.parametrize(
    ("raw", "kind", "message", "param"),
    [
        (
            b"{nope",
            "application/json",
            "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.1', 'msg': 'JSON decode error', 'input': "
            "'<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}",
            "body.1",
        ),
        (
            b"",
            "application/json",
            "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}",
            "body",
        ),
        (
            b"{}",
            "text/plain",
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            None,
        ),
    ],
)
async def test_a_body_that_is_no_json(
    client: Client, double: Double, raw: bytes, kind: str, message: str, param: str | None
) -> None:
    response = await client.http.post(double.url + CHAT, content=raw, headers={"content-type": kind})
    assert response.status_code == 400
    assert response.json() == {"error": {"message": message, "type": "Bad Request", "param": param, "code": 400}}


async def test_a_full_queue_is_a_503(client: Client) -> None:
    async with Double(max_num_queued_reqs=0) as double:
        response = await client.post(double, said())
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "Service Unavailable"
        assert double.stats.admission_rejections == 1


async def test_no_such_route(client: Client, double: Double) -> None:
    response = await client.http.get(double.url + "/nope")
    assert (response.status_code, response.content) == (404, b'{"detail":"Not Found"}')
    response = await client.http.get(double.url + CHAT)
    assert (response.status_code, response.content) == (405, b'{"detail":"Method Not Allowed"}')
    assert response.headers["allow"] == "POST"


async def test_an_unknown_earlier_response(client: Client, double: Double) -> None:
    response = await client.post(double, {"model": "m", "input": "x", "previous_response_id": "resp_1"}, RESPONSES)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"

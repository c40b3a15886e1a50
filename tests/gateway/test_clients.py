"""The clients that people use work unmodified."""

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.conftest import Pair

ASK: Any = [{"role": "user", "content": "Name three rivers, and say why they matter. " * 8}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def asynchronous(pair: Pair) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{pair.gateway.url}/v1", api_key="none", max_retries=0)


async def test_openai_async(pair: Pair) -> None:
    async with asynchronous(pair) as client:
        answer = await client.chat.completions.create(model="m", messages=ASK, max_tokens=8)
        right = await pair.right("/v1/chat/completions", {"model": "m", "messages": ASK, "max_tokens": 8})
        assert answer.choices[0].message.content == right["choices"][0]["message"]["content"]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8
        assert [model.id async for model in client.models.list()] == ["m"]


async def test_openai_streaming(pair: Pair) -> None:
    async with asynchronous(pair) as client:
        options: Any = {"include_usage": True}
        stream = await client.chat.completions.create(
            model="m", messages=ASK, max_tokens=8, stream=True, stream_options=options
        )
        pieces = [event async for event in stream]
        right = await pair.right("/v1/chat/completions", {"model": "m", "messages": ASK, "max_tokens": 8})
        text = "".join(event.choices[0].delta.content or "" for event in pieces if event.choices)
        assert text == right["choices"][0]["message"]["content"]
        assert pieces[-1].usage is not None
        assert pieces[-1].usage.completion_tokens == 8


async def test_openai_tools(pair: Pair) -> None:
    async with asynchronous(pair) as client:
        answer = await client.chat.completions.create(
            model="m", messages=ASK, max_tokens=64, tools=[TOOL], tool_choice="required"
        )
        calls = answer.choices[0].message.tool_calls
        assert calls
        call: Any = calls[0]
        assert call.function.name == "weather"
        json.loads(call.function.arguments)
        stream = await client.chat.completions.create(
            model="m", messages=ASK, max_tokens=64, tools=[TOOL], tool_choice="required", stream=True
        )
        deltas = [e.choices[0].delta.tool_calls async for e in stream if e.choices and e.choices[0].delta.tool_calls]
        assert deltas


async def test_openai_raw_response_and_errors(pair: Pair) -> None:
    async with asynchronous(pair) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="m", messages=ASK, max_tokens=4, extra_headers={"x-request-id": "me"}
        )
        assert raw.headers["x-request-id"] == "me"
        assert raw.parse().choices
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nobody", messages=ASK)
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="m", messages=ASK, max_tokens=10**9)


async def test_openai_sees_a_cut_stream_as_an_error(pair: Pair) -> None:
    pair.decode.faults.cut_after = 3
    async with asynchronous(pair) as client:
        stream = await client.completions.create(model="m", prompt="x " * 99, max_tokens=20, stream=True)
        with pytest.raises(openai.APIError):
            _ = [event async for event in stream]


async def test_openai_sync(pair: Pair) -> None:
    def work() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{pair.gateway.url}/v1", api_key="none") as client:
            answer = client.chat.completions.create(model="m", messages=ASK, max_tokens=8)
            stream = client.completions.create(model="m", prompt="x " * 99, max_tokens=8, stream=True)
            return answer.choices[0].message.content, "".join(
                event.choices[0].text for event in stream if event.choices
            )

    chat, completion = await asyncio.to_thread(work)
    assert chat
    right = await pair.right("/v1/completions", {"model": "m", "prompt": "x " * 99, "max_tokens": 8})
    assert completion == right["choices"][0]["text"]


async def test_openai_responses(pair: Pair) -> None:
    async with asynchronous(pair) as client:
        answer = await client.responses.create(model="m", input="Name three rivers. " * 9, max_output_tokens=8)
        assert answer.output_text


async def test_anthropic(pair: Pair) -> None:
    async with anthropic.AsyncAnthropic(base_url=pair.gateway.url, api_key="none", max_retries=0) as client:
        answer = await client.messages.create(model="m", messages=ASK, max_tokens=8)
        assert answer.content[0].type == "text"
        assert answer.usage.output_tokens == 8
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="nobody", messages=ASK, max_tokens=8)


async def test_curl(pair: Pair) -> None:
    body = json.dumps({"model": "m", "messages": ASK, "max_tokens": 8, "stream": True})
    url = f"{pair.gateway.url}/v1/chat/completions"
    process = await asyncio.create_subprocess_exec(
        "curl",
        "-sSN",
        "--noproxy",
        "*",
        url,
        "-H",
        "content-type: application/json",
        "-d",
        body,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.endswith(b"data: [DONE]\n\n")

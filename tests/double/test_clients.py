"""The clients that users use work on a double unmodified."""

from collections.abc import AsyncIterator, Iterator
from threading import Thread
from typing import Any

import anthropic
import openai
import pytest

from engines.double import Double
from tests.double.conftest import Client, chat

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}
]


@pytest.fixture
async def user(both: Double) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=both.url + "/v1", api_key="x", max_retries=0) as user:
        yield user


async def test_openai_chat(user: openai.AsyncOpenAI, client: Client, both: Double) -> None:
    answer = await user.chat.completions.create(model="m", messages=MESSAGES, max_tokens=8)
    assert answer.choices[0].message.content == await client.say(both, chat("hi", 8))
    assert answer.usage and answer.usage.completion_tokens == 8


async def test_openai_chat_stream(user: openai.AsyncOpenAI, client: Client, both: Double) -> None:
    stream = await user.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    async for chunk in stream:
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usage = chunk.usage or usage
    assert text == await client.say(both, chat("hi", 8))
    assert usage and usage.completion_tokens == 8


async def test_openai_tools(user: openai.AsyncOpenAI) -> None:
    answer = await user.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS, tool_choice="required")
    call: Any = (answer.choices[0].message.tool_calls or [])[0]
    assert (call.function.name, answer.choices[0].finish_reason) == ("look", "tool_calls")
    async with user.chat.completions.stream(
        model="m", messages=MESSAGES, tools=TOOLS, tool_choice="required"
    ) as stream:
        final = await stream.get_final_completion()
    streamed: Any = (final.choices[0].message.tool_calls or [])[0]
    assert streamed.function.arguments == call.function.arguments


async def test_openai_completions_and_embeddings(user: openai.AsyncOpenAI) -> None:
    answer = await user.completions.create(model="m", prompt="once", max_tokens=4)
    assert answer.choices[0].text
    vectors = await user.embeddings.create(model="m", input=["a", "b"], encoding_format="float")
    assert len(vectors.data) == 2
    assert [model.id async for model in await user.models.list()] == ["m"]


async def test_openai_responses(user: openai.AsyncOpenAI, client: Client, both: Double) -> None:
    answer = await user.responses.create(model="m", input="hi", max_output_tokens=8)
    assert answer.output_text == await client.say(both, chat("hi", 8))
    stream = await user.responses.create(model="m", input="hi", stream=True, max_output_tokens=9)
    kinds = [event.type async for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    tool: Any = {"type": "function", **TOOLS[0]["function"]}
    called = await user.responses.create(model="m", input="hi", tools=[tool], tool_choice="required")
    assert called.output[0].type == "function_call"


async def test_openai_errors(user: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await user.chat.completions.create(model="zz", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1"):
        await user.chat.completions.create(model="m", messages=MESSAGES, max_tokens=0)


async def test_anthropic_messages(both: Double, client: Client) -> None:
    async with anthropic.AsyncAnthropic(base_url=both.url, api_key="x", max_retries=0) as user:
        answer = await user.messages.create(model="m", max_tokens=8, messages=MESSAGES)
        block: Any = answer.content[0]
        assert block.text == await client.say(both, chat("hi", 8))
        async with user.messages.stream(model="m", max_tokens=8, messages=MESSAGES) as stream:
            final = await stream.get_final_message()
        last: Any = final.content[0]
        assert last.text == block.text and final.stop_reason == "max_tokens"
        tools: list[Any] = [{"name": "look", "input_schema": TOOLS[0]["function"]["parameters"]}]
        called = await user.messages.create(
            model="m", max_tokens=80, messages=MESSAGES, tools=tools, tool_choice={"type": "any"}
        )
        assert (called.content[0].type, called.stop_reason) == ("tool_use", "tool_use")


async def test_the_blocking_openai_client(both: Double) -> None:
    said: list[str] = []

    def ask() -> None:
        with openai.OpenAI(base_url=both.url + "/v1", api_key="x", max_retries=0) as user:
            parts: Iterator[Any] = iter(
                user.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4, stream=True)
            )
            said.extend(part.choices[0].delta.content or "" for part in parts)

    thread = Thread(target=ask)
    thread.start()
    await both.until(lambda stats: stats.finished["length"] == 1)
    await both.idle()
    while thread.is_alive():
        await both.request()
        thread.join(0.01)
    assert "".join(said)

"""Answers, field for field and in vLLM's order."""

from typing import Any

import httpx
import pytest
from msgspec import json

from engines.double import Double, tokens
from tests.double.conftest import TEXT, Client, chat

WEATHER = {
    "name": "get_weather",
    "description": "d",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}


def data(event: str) -> Any:
    assert event.startswith("data: ")
    return json.decode(event.removeprefix("data: "))


async def test_a_whole_chat_answer(client: Client, both: Double) -> None:
    response = await client.post(both, chat("hi", 3), **{"x-request-id": "abc"})
    answer = response.json()
    assert list(response.headers) == ["date", "server", "content-length", "content-type", "vary"]
    text = answer["choices"][0]["message"]["content"]
    created = answer["created"]
    assert response.text == (
        f'{{"id":"chatcmpl-abc","object":"chat.completion","created":{created},"model":"m","choices":[{{"index":0,'
        f'"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":null,"audio":null,'
        '"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,'
        '"token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-double",'
        f'"usage":{{"prompt_tokens":{answer["usage"]["prompt_tokens"]},"total_tokens":'
        f'{answer["usage"]["total_tokens"]},"completion_tokens":3,"prompt_tokens_details":{{"cached_tokens":0,'
        '"created_cache_tokens":0,"multimodal_tokens":null},"completion_tokens_details":null},'
        '"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,'
        '"ec_transfer_params":null,"metrics":null}'
    )


async def test_a_chat_stream(client: Client, both: Double) -> None:
    whole = await client.say(both, chat("hi", 3))
    events = await client.events(both, chat("hi", 3, stream_options={"include_usage": True}))
    first = data(events[0])
    head = f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk","created":{first["created"]},"model":"m",'
    assert events[0] == (
        head + '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        '"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}'
    )
    texts = [data(event)["choices"][0]["delta"]["content"] for event in events[1:-2]]
    assert "".join(texts) == whole
    for event, text in zip(events[1:-3], texts, strict=False):
        assert event == head + (
            f'"choices":[{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":null,'
            '"token_ids":null}]}'
        )
    assert events[-3].endswith('"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}')
    count = data(events[-2])["usage"]["prompt_tokens"]
    assert events[-2] == head + (
        f'"choices":[],"usage":{{"prompt_tokens":{count},"total_tokens":{count + 3},"completion_tokens":3,'
        '"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":0}},'
        '"system_fingerprint":"vllm-0.32.0-double"}'
    )
    assert events[-1] == "data: [DONE]"


async def test_ids_and_usage_in_every_chunk(client: Client, both: Double) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await client.events(both, chat("hi", 4, return_token_ids=True, stream_options=options))
    chunks = [data(event) for event in events[:-1]]
    prompt = chunks[0]["prompt_token_ids"]
    assert prompt == tokens.render([{"role": "user", "content": "hi"}])
    ids = [token for chunk in chunks[1:-1] for token in chunk["choices"][0]["token_ids"]]
    assert len(ids) == 4
    assert chunks[0]["usage"]["total_tokens"] == len(prompt)
    assert chunks[-2]["usage"]["completion_tokens"] == 4
    whole = (await client.post(both, chat("hi", 4, return_token_ids=True))).json()
    assert whole["choices"][0]["token_ids"] == ids and whole["prompt_token_ids"] == prompt
    assert tokens.decode(ids) == whole["choices"][0]["message"]["content"]


async def test_without_usage_the_last_chunk_has_the_fingerprint(client: Client, both: Double) -> None:
    events = await client.events(both, chat("hi", 2))
    assert events[-2].endswith('"token_ids":null}],"system_fingerprint":"vllm-0.32.0-double"}')


async def test_completions_of_text_ids_and_lists(client: Client, both: Double) -> None:
    path = "/v1/completions"
    text = await client.post(both, {"model": "m", "prompt": TEXT, "max_tokens": 5}, path, **{"x-request-id": "abc"})
    answer = text.json()
    assert answer["id"] == "cmpl-abc"
    assert list(answer) == [
        "id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage",
        "kv_transfer_params", "ec_transfer_params", "metrics",
    ]  # fmt: skip
    assert list(answer["choices"][0]) == [
        "index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids", "prompt_logprobs",
        "prompt_token_ids", "routed_experts",
    ]  # fmt: skip
    said = answer["choices"][0]["text"]
    ids = await client.post(both, {"model": "m", "prompt": tokens.encode(TEXT), "max_tokens": 5}, path)
    assert ids.json()["choices"][0]["text"] == said
    many = await client.post(both, {"model": "m", "prompt": ["x", TEXT], "max_tokens": 5, "n": 2}, path)
    choices = many.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert choices[2]["text"] == said != choices[3]["text"]
    assert many.json()["usage"]["completion_tokens"] == 20


async def test_a_completion_stream_of_a_list(client: Client, both: Double) -> None:
    body = {"model": "m", "prompt": ["one", "two"], "max_tokens": 3}
    whole = (await client.post(both, body, "/v1/completions")).json()["choices"]
    events = await client.events(both, body, "/v1/completions")
    first = data(events[0])
    assert list(first["choices"][0]) == [
        "index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids",
    ]  # fmt: skip
    texts = ["", ""]
    for event in events[:-1]:
        choice = data(event)["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole]


async def test_echo(client: Client, both: Double) -> None:
    body = {"model": "m", "prompt": "say this", "max_tokens": 3, "echo": True}
    whole = (await client.post(both, body, "/v1/completions")).json()["choices"][0]["text"]
    assert whole.startswith("say this")
    events = await client.events(both, body, "/v1/completions")
    assert "".join(data(event)["choices"][0]["text"] for event in events[:-1]) == whole


async def test_a_stop_string_ends_the_answer_before_it(client: Client, both: Double) -> None:
    said = await client.say(both, chat(max_tokens=40))
    stop = said[17:20]
    response = await client.post(both, chat(max_tokens=40, stop=[stop]))
    choice = response.json()["choices"][0]
    assert choice["message"]["content"] == said[: said.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    events = await client.events(both, chat(max_tokens=40, stop=stop))
    streamed = "".join(data(event)["choices"][0]["delta"]["content"] for event in events[:-1])
    assert streamed == said[: said.index(stop)]
    await both.idle()
    assert both.stats.usage == 0


async def test_a_stop_token_ends_the_answer_with_it(client: Client, both: Double) -> None:
    ids = (await client.post(both, chat(max_tokens=20, return_token_ids=True))).json()["choices"][0]["token_ids"]
    response = await client.post(both, chat(max_tokens=20, return_token_ids=True, stop_token_ids=[ids[5]]))
    choice = response.json()["choices"][0]
    assert choice["token_ids"] == ids[: ids.index(ids[5]) + 1]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[5])


async def test_an_answer_may_end_by_itself(client: Client) -> None:
    async with Double(eos_one_in=10) as double:
        response = await client.post(double, chat(max_tokens=2000))
        answer = response.json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] < 2000
        ignoring = await client.post(double, chat(max_tokens=300, ignore_eos=True))
        assert ignoring.json()["usage"]["completion_tokens"] == 300


async def test_log_probabilities(client: Client, both: Double) -> None:
    response = await client.post(both, chat("hi", 2, logprobs=True, top_logprobs=1))
    entries = response.json()["choices"][0]["logprobs"]["content"]
    assert list(entries[0]) == ["token", "logprob", "bytes", "top_logprobs"]
    response = await client.post(both, {"model": "m", "prompt": "a", "max_tokens": 2, "logprobs": 1}, "/v1/completions")
    assert list(response.json()["choices"][0]["logprobs"]) == [
        "text_offset", "token_logprobs", "tokens", "top_logprobs",
    ]  # fmt: skip


async def test_a_messages_answer_and_stream(client: Client, both: Double) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    response = await client.post(both, body, "/v1/messages", **{"x-request-id": "abc"})
    answer = response.json()
    prompt, text = answer["usage"]["input_tokens"], answer["content"][0]["text"]
    assert response.text == (
        f'{{"id":"chatcmpl-abc","type":"message","role":"assistant","content":[{{"type":"text","text":"{text}"}}],'
        f'"model":"m","stop_reason":"max_tokens","usage":{{"input_tokens":{prompt},"output_tokens":3,'
        '"cache_creation_input_tokens":0,"cache_read_input_tokens":0}}'
    )
    events = await client.events(both, body, "/v1/messages")
    names = [event.split("\n")[0].removeprefix("event: ") for event in events]
    assert names == [
        "message_start", "content_block_start", *["content_block_delta"] * 3,
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert events[1].endswith(
        '\ndata: {"type":"content_block_start","content_block":{"type":"text","text":""},"index":0}'
    )
    deltas = [data(event.split("\n")[1])["delta"]["text"] for event in events[2:5]]
    assert "".join(deltas) == text
    assert events[6].endswith(
        'data: {"type":"message_delta","delta":{"stop_reason":"max_tokens","stop_sequence":null},"usage":'
        f'{{"input_tokens":{prompt},"output_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":0}}}}'
    )
    count = await client.post(both, body, "/v1/messages/count_tokens")
    assert count.json() == {"input_tokens": prompt, "context_management": {"original_input_tokens": prompt}}


async def test_a_responses_answer_and_stream(client: Client, both: Double) -> None:
    body = {"model": "m", "input": "hi", "max_output_tokens": 3}
    answer = (await client.post(both, body, "/v1/responses")).json()
    assert answer["id"].startswith("resp_") and answer["status"] == "incomplete"
    text = answer["output"][0]["content"][0]["text"]
    assert text == await client.say(both, chat("hi", 3))
    events = await client.events(both, body, "/v1/responses")
    names = [event.split("\n")[0].removeprefix("event: response.") for event in events]
    assert names == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 3,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    payloads = [data(event.split("\n")[1]) for event in events]
    assert [payload["sequence_number"] for payload in payloads] == list(range(11))
    assert list(payloads[4]) == [
        "content_index", "delta", "item_id", "logprobs", "output_index", "sequence_number", "type",
    ]  # fmt: skip
    assert list(payloads[-1]["response"]) == list(answer)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_tool_call(client: Client, both: Double, choice: Any) -> None:
    tools = [{"type": "function", "function": WEATHER}]
    body = chat("hi", 60, tools=tools, tool_choice=choice)
    answer = (await client.post(both, body)).json()["choices"][0]
    call = answer["message"]["tool_calls"][0]
    assert list(call) == ["id", "type", "function"]
    assert set(json.decode(call["function"]["arguments"])) == {"city", "days"}
    finish = "tool_calls" if choice == "required" else "stop"
    assert answer["finish_reason"] == finish
    chunks = [data(event) for event in (await client.events(both, body))[:-1]]
    first = chunks[1]["choices"][0]["delta"]
    assert first["tool_calls"][0]["function"] == {"name": "get_weather"} and first["content"] is None
    arguments = "".join(
        part["function"].get("arguments", "")
        for chunk in chunks[1:]
        for part in chunk["choices"][0]["delta"].get("tool_calls", [])
    )
    assert arguments == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == finish


async def test_structured_answers(client: Client, both: Double) -> None:
    schema = {"type": "object", "properties": {"who": {"enum": ["a", "b"]}, "ok": {"type": "boolean"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = json.decode(await client.say(both, chat(max_tokens=100, response_format=wanted)))
    assert answer["who"] in ("a", "b") and isinstance(answer["ok"], bool)
    assert json.decode(await client.say(both, chat(max_tokens=100, response_format={"type": "json_object"})))
    assert await client.say(both, chat(max_tokens=9, structured_outputs={"choice": ["no"]})) == "no"


async def test_embeddings_depend_on_the_text_alone(client: Client, both: Double) -> None:
    response = await client.post(both, {"model": "m", "input": ["a", "b", "a"]}, "/v1/embeddings")
    vectors = [entry["embedding"] for entry in response.json()["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(value**2 for value in vectors[0]) == pytest.approx(1)


async def test_tokenize_and_back(client: Client, both: Double) -> None:
    answer = (await client.post(both, {"model": "m", "prompt": TEXT}, "/tokenize")).json()
    assert list(answer) == ["count", "max_model_len", "tokens", "token_strs"]
    back = await client.post(both, {"model": "m", "tokens": answer["tokens"]}, "/detokenize")
    assert back.json() == {"prompt": TEXT}
    messages = [{"role": "user", "content": "hi"}]
    said = (await client.post(both, {"model": "m", "messages": messages}, "/tokenize")).json()
    asked = (await client.post(both, chat("hi", 1))).json()
    assert said["count"] == asked["usage"]["prompt_tokens"]


async def test_the_small_routes(client: Client, both: Double) -> None:
    async def get(path: str) -> httpx.Response:
        return await client.http.get(both.url + path)

    for path in ("/health", "/ping"):
        response = await get(path)
        assert (response.status_code, response.content) == (200, b"")
        assert "content-type" not in response.headers
    assert (await get("/version")).json() == {"version": "0.32.0"}
    card = (await get("/v1/models")).json()["data"][0]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == ("m", "vllm", 32768)
    assert (await get("/load")).json() == {"server_load": 0}
    assert (await get("/kv_event_sources")).json() == {}
    assert both.requests[-1].path == "/kv_event_sources"


async def test_what_was_received_can_be_seen(client: Client, both: Double) -> None:
    await client.post(both, chat("hi", 1), **{"X-Request-Id": "r1"})
    seen = await both.request()
    assert (seen.method, seen.path, seen.headers["x-request-id"]) == ("POST", "/v1/chat/completions", "r1")
    assert seen.json() == chat("hi", 1)

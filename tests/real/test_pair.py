"""On real engines, KV over NIXL: the answer through the gateway is the aggregated engine's, byte for byte."""

import json
import random
from itertools import groupby
from typing import Any

import openai
import pytest

from engines.surface import KV_EXPIRED, READ_AFTER_EXPIRY, total
from gateway.prompt.apis import APIS
from gateway.prompt.body import parse
from gateway.prompt.split import RULES, whole
from tests.real.conftest import BLOCK, BLOCK_BYTES, Real

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
WORDS = "river stone engine letter window garden number winter summer bread copper signal paper north lantern".split()


def text(seed: int, words: int) -> str:
    """Prose of its own from its first word on, so that nothing of it is cached."""
    chosen = random.Random(seed)
    return f"{seed} " + " ".join(chosen.choice(WORDS) for _ in range(words))


def prompts() -> list[tuple[str, dict[str, Any]]]:
    """40 requests: 20 to 1500 tokens, completion and chat, streamed and not."""
    found = []
    for number in range(40):
        words = [12, 40, 100, 250, 600, 16, 31, 33, 64, 500][number % 10]
        body: dict[str, Any] = {"max_tokens": 16, "temperature": 0}
        if number % 4 >= 2:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if number % 2:
            found.append((CHAT, {**body, "messages": [{"role": "user", "content": text(number, words)}]}))
        else:
            found.append((COMPLETIONS, {**body, "prompt": text(number, words)}))
    return found


def substance(raw: str, streamed: bool) -> list[Any]:
    """What must be equal of an answer: text, reason to finish, usage, and how a stream ends.

    Not where a stream is divided: an engine that is behind puts several tokens into one event.
    """
    if not streamed:
        answer = json.loads(raw)
        usage = answer["usage"]
        return [answer["choices"], usage["prompt_tokens"], usage["completion_tokens"]]
    datas = [line[6:] for line in raw.splitlines() if line.startswith("data: ")]
    events = [json.loads(data) for data in datas[:-1]]
    choices = [choice for event in events for choice in event["choices"]]
    written = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    finish = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    usage = events[-1]["usage"]
    return [written, finish, usage["prompt_tokens"], usage["completion_tokens"], datas[-1]]


async def test_forty_prompts_equal_the_aggregated_engine_byte_for_byte(real: Real) -> None:
    before = await real.pulled()
    tokens = blocks = 0
    lengths = []
    for path, body in prompts():
        body = {"model": real.model, **body}
        answer = await real.gateway.post(path, json=body, headers={"x-baton-facts": "1"})
        assert answer.status_code == 200, answer.text
        assert (answer.headers["x-baton-prefill"], answer.headers["x-baton-decode"]) == ("p0", "d0")
        right = await real.judge.post(path, json=body)
        streamed = "stream" in body
        assert substance(answer.text, streamed) == substance(right.text, streamed)
        length = int(answer.headers["x-baton-prompt-tokens"])
        lengths.append(length)
        tokens += length
        blocks += -(-length // BLOCK)
    assert min(lengths) <= 30
    assert max(lengths) >= 900
    pulled = await real.pulled_since(before, tokens)
    assert (pulled.tokens, pulled.bytes) == (tokens, blocks * BLOCK_BYTES)


async def test_a_partial_prefix_hit_pulls_only_what_is_missing(real: Real) -> None:
    start = text(1001, 300)

    async def ask(end: str) -> tuple[int, float]:
        before = await real.pulled()
        body = {"model": real.model, "prompt": start + end, "max_tokens": 4, "temperature": 0}
        answer = await real.gateway.post(COMPLETIONS, json=body, headers={"x-baton-facts": "1"})
        right = await real.judge.post(COMPLETIONS, json=body)
        assert answer.json()["choices"] == right.json()["choices"]
        length = int(answer.headers["x-baton-prompt-tokens"])
        pulled = await real.pulled_since(before, 1)
        return length, pulled.tokens

    first, all_of_it = await ask(" alpha beta gamma")
    assert all_of_it == first
    second, rest = await ask(" something else entirely, at the end")
    assert 0 < rest < 3 * BLOCK
    assert (second - rest) % BLOCK == 0
    assert second - rest <= first


HI = [{"role": "user", "content": text(2000, 40)}]
ONE_ENGINE: list[tuple[str, str, dict[str, Any]]] = [
    ("n", CHAT, {"messages": HI, "n": 2, "temperature": 1, "seed": 7, "max_tokens": 6}),
    ("n", CHAT, {"messages": HI, "n": 2, "temperature": 0, "max_tokens": 6}),
    ("best_of", COMPLETIONS, {"prompt": text(2001, 40), "best_of": 2, "temperature": 0, "max_tokens": 6}),
    ("several prompts", COMPLETIONS, {"prompt": [text(2002, 40), text(2003, 50)], "temperature": 0, "max_tokens": 6}),
    (
        "prompt_logprobs",
        COMPLETIONS,
        {"prompt": text(2004, 40), "prompt_logprobs": 0, "temperature": 0, "max_tokens": 4},
    ),
    (
        "echo with logprobs",
        COMPLETIONS,
        {"prompt": text(2005, 40), "echo": True, "logprobs": 0, "temperature": 0, "max_tokens": 4},
    ),
    (
        "use_beam_search",
        COMPLETIONS,
        {"prompt": text(2006, 40), "use_beam_search": True, "n": 2, "temperature": 0, "max_tokens": 4},
    ),
    ("prompt_embeds", COMPLETIONS, {"prompt": "x", "prompt_embeds": "AAAA", "max_tokens": 4}),
    ("suffix", COMPLETIONS, {"prompt": text(2007, 40), "suffix": "end", "max_tokens": 4, "temperature": 0}),
    (
        "media",
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
    ),
    ("state in one engine", RESPONSES, {"input": "x", "previous_response_id": "resp_none"}),
    ("one token", COMPLETIONS, {"prompt": text(2008, 40), "max_tokens": 1, "temperature": 0}),
    ("no prompt", "/v1/embeddings", {"input": "x"}),
    ("no prompt", "/tokenize", {"prompt": text(2009, 10)}),
]


async def test_every_rule_is_tried_on_a_real_engine() -> None:
    assert {rule for rule, _, _ in ONE_ENGINE} == {rule.name for rule in RULES}


@pytest.mark.parametrize(
    ("rule", "path", "body"), ONE_ENGINE, ids=[f"{r} {i}" for i, (r, _, _) in enumerate(ONE_ENGINE)]
)
async def test_what_may_not_be_split_is_answered_as_by_one_engine(
    real: Real, rule: str, path: str, body: dict[str, Any]
) -> None:
    body = {"model": real.model, **body}
    applied = whole(APIS[path], parse(json.dumps(body).encode()))
    assert applied == rule or {applied, rule} == {"n", "use_beam_search"}
    before = await real.pulled()
    answer = await real.gateway.post(path, json=body)
    right = await real.judge.post(path, json=body)
    assert answer.status_code == right.status_code, (answer.text, right.text)
    for field in ("choices", "tokens", "error"):
        assert answer.json().get(field) == right.json().get(field)
    assert (await real.pulled() - before).tokens == 0
    await real.well()


SPLIT: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": [text(3000, 40)]}),
    (COMPLETIONS, {"prompt": [[5, 6, 7, 8] * 20]}),
    (COMPLETIONS, {"prompt": [9, 10, 11, 12] * 20}),
    (COMPLETIONS, {"prompt": text(3001, 40), "echo": True}),
    (COMPLETIONS, {"prompt": text(3002, 40), "logprobs": 2}),
    (COMPLETIONS, {"prompt": text(3003, 40), "min_tokens": 5, "stop": ["e"]}),
    (COMPLETIONS, {"prompt": text(3004, 40), "ignore_eos": True, "presence_penalty": 1.0}),
    (COMPLETIONS, {"prompt": text(3005, 40), "temperature": 1.0, "seed": 3, "top_p": 0.9}),
    (CHAT, {"messages": [{"role": "user", "content": text(3006, 40)}], "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": [{"role": "user", "content": text(3007, 40)}], "max_completion_tokens": 6}),
    (CHAT, {"messages": [{"role": "user", "content": text(3008, 40)}], "response_format": {"type": "json_object"}}),
]


@pytest.mark.parametrize(("path", "body"), SPLIT, ids=range(len(SPLIT)))
async def test_ordinary_fields_survive_the_split(real: Real, path: str, body: dict[str, Any]) -> None:
    body = {"model": real.model, "max_tokens": 8, "temperature": 0, **body}
    before = await real.pulled()
    answer = await real.gateway.post(path, json=body)
    right = await real.judge.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == right.json()["choices"]
    assert (await real.pulled_since(before, 1)).tokens > 0


def steps(stream: str) -> list[str]:
    """The kinds of events of a stream in their order, repeated ones once: the engine divides text as it likes."""
    return [kind for kind, _ in groupby(line for line in stream.splitlines() if line.startswith("event:"))]


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_and_messages(real: Real, stream: bool) -> None:
    """The two younger APIs are split too, and say the same as one engine."""
    asks = [
        (RESPONSES, {"input": text(4000 + stream, 60), "max_output_tokens": 8, "temperature": 0}),
        (
            MESSAGES,
            {"messages": [{"role": "user", "content": text(4002 + stream, 60)}], "max_tokens": 8, "temperature": 0},
        ),
    ]
    for path, body in asks:
        body = {"model": real.model, "stream": stream, **body}
        before = await real.pulled()
        answer, right = await real.gateway.post(path, json=body), await real.judge.post(path, json=body)
        assert answer.status_code == 200, answer.text
        if not stream:
            field = "content" if path == MESSAGES else "output"
            ours, theirs = answer.json()[field], right.json()[field]
            for part in (*ours, *theirs):
                part.pop("id", None)
            assert ours == theirs
        else:
            assert steps(answer.text) == steps(right.text)
        assert (await real.pulled_since(before, 1)).tokens > 0


TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


async def test_the_openai_client_streams_and_calls_tools(real: Real) -> None:
    """Unmodified, against the gateway and against the judge: the same answers."""
    said = []
    for url in (real.gateway.base_url, real.judge.base_url):
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1".replace("//v1", "/v1"), api_key="none", max_retries=0
        ) as client:
            ask: Any = [{"role": "user", "content": text(6000, 60)}]
            common: Any = {"model": real.model, "messages": ask, "max_tokens": 24, "temperature": 0}
            stream = await client.chat.completions.create(**common, stream=True)
            pieces = [event.choices[0].delta.content or "" async for event in stream if event.choices]
            tools = await client.chat.completions.create(**common, tools=[TOOL], tool_choice="auto")
            said.append(("".join(pieces), tools.choices[0].message.model_dump(), tools.choices[0].finish_reason))
    assert said[0] == said[1]
    assert said[0][0]


STOLEN = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[0, 1]],
    "remote_engine_id": "x",
    "remote_request_id": "y",
    "remote_host": "127.0.0.1",
    "remote_port": 9,
    "tp_size": 1,
    "prompt_token_ids": [1, 2, 3],
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_hostile_bodies_leave_the_engines_unharmed(real: Real, path: str) -> None:
    prompt: dict[str, Any] = {
        CHAT: {"messages": HI, "max_tokens": 4},
        COMPLETIONS: {"prompt": text(5000, 30), "max_tokens": 4},
        RESPONSES: {"input": text(5001, 30), "max_output_tokens": 4},
        MESSAGES: {"messages": HI, "max_tokens": 4},
    }[path]
    body = {"model": real.model, **prompt}
    for steering in (
        {"kv_transfer_params": STOLEN},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
        {"ec_transfer_params": STOLEN},
    ):
        answer = await real.gateway.post(path, json={**body, **steering})
        assert answer.status_code == 200, answer.text
    field = APIS[path].limits[0]
    for wrong in (
        {field: 10**12},
        {field: "many"},
        {"temperature": "hot"},
        {APIS[path].prompt: 7},
        {"model": "nobody"},
    ):
        answer = await real.gateway.post(path, json={**body, **wrong})
        assert answer.status_code in (200, 400, 404, 422), answer.text
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
    for raw in (b"", b"{", b"[]", b'{"model": NaN}', b"\xff"):
        answer = await real.gateway.post(path, content=raw)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
    await real.well()


async def test_fifty_megabytes(real: Real) -> None:
    answer = await real.gateway.post(COMPLETIONS, content=b'{"prompt":"' + b"x" * 50_000_000 + b'"}')
    assert answer.status_code == 413
    await real.well()


async def test_the_counters_that_the_gateway_relies_on_exist_from_the_start(real: Real) -> None:
    metrics = (await real.gateway.get(f"{real.prefill_url}/metrics")).text
    assert total(metrics, KV_EXPIRED) is not None
    assert total(metrics, READ_AFTER_EXPIRY) is not None

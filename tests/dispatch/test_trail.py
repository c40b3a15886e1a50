"""The client gets what it would have got, whatever the pieces; and what is remembered of a stream is right."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dispatch.relay import Tally, relay
from gateway.dispatch.trail import Trail
from gateway.prompt.apis import CHAT, COMPLETIONS, Api
from gateway.settings import Settings
from tests.gateway.test_decisions import Source, Taker

TOKEN = st.tuples(
    st.text(max_size=6) | st.sampled_from((',"token_ids":[1,2]', '"},"logprobs":null', "\\", '"', "\n\n", "[DONE]")),
    st.lists(st.integers(0, 200_000), min_size=1, max_size=3),
)
HEAD = {"id": "x-1", "object": "chunk", "created": 7, "model": "m"}


def encode(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def events(api: Api, tokens: list[tuple[str, list[int]]], prompt: list[int], ids: bool) -> list[bytes]:
    """As vLLM writes them, with ids or without."""
    made = []
    if api is CHAT:
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        made.append({**HEAD, "choices": [role], "prompt_token_ids": prompt if ids else None, "prompt_text": None})
    for number, (text, token_ids) in enumerate(tokens):
        last = number == len(tokens) - 1
        finish: dict[str, Any] = {"logprobs": None, "finish_reason": "length" if last else None}
        given_ids = {"token_ids": token_ids if ids else None}
        if api is CHAT:
            stop = {"stop_reason": None} if last else {}
            choice = {"index": 0, "delta": {"content": text}, **finish, **stop, **given_ids}
        else:
            listed = prompt if ids and not number else None
            choice = {"index": 0, "text": text, **finish, "stop_reason": None, "prompt_token_ids": listed, **given_ids}
        made.append({**HEAD, "choices": [choice]})
    made.append({**HEAD, "choices": [], "usage": {"prompt_tokens": 3, "total_tokens": 9, "completion_tokens": 6}})
    return [*map(encode, made), b"data: [DONE]\n\n"]


@given(
    api=st.sampled_from((CHAT, COMPLETIONS)),
    tokens=st.lists(TOKEN, min_size=1, max_size=8),
    prompt=st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    at=st.lists(st.integers(0, 4000)),
    wants=st.booleans(),
)
async def test_the_client_gets_what_it_asked_for(
    api: Api, tokens: list[tuple[str, list[int]]], prompt: list[int], at: list[int], wants: bool
) -> None:
    stream = events(api, tokens, prompt, ids=True)
    data = b"".join(stream)
    edges = sorted({0, len(data), *(i % (len(data) + 1) for i in at)})
    first, *rest = [data[a:b] for a, b in itertools.pairwise(edges)]
    trail, taker = Trail(api, wants, True), Taker()
    await relay(Source(rest), first, taker, Settings(), Tally(), trail)
    assert b"".join(taker.sent) == b"".join(events(api, tokens, prompt, ids=wants))
    assert not trail.lost
    assert trail.text == "".join(text for text, _ in tokens)
    assert trail.ids == [token for _, ids in tokens for token in ids]
    assert [int(token) for token in trail.prompt.split(b",")] == prompt
    assert (trail.finished, trail.usage, trail.done) == (True, True, True)


def test_what_a_parser_took_cannot_go_on() -> None:
    for delta in ({"reasoning": "hm"}, {"tool_calls": [{"index": 0}]}):
        trail = Trail(CHAT, False, False)
        trail(events(CHAT, [("a", [1]), ("b", [2])], [1], ids=True)[0], 1)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": [5]}
        trail(encode({**HEAD, "choices": [choice]}), 1)
        assert trail.lost


def test_an_event_that_is_there_for_its_ids_only_is_not_shown() -> None:
    trail = Trail(CHAT, False, False)
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None, "token_ids": [5]}
    assert trail(encode({**HEAD, "choices": [choice]}), 1) == b""
    assert trail.ids == [5]


def test_text_without_ids_cannot_go_on() -> None:
    trail = Trail(COMPLETIONS, False, False)
    for event in events(COMPLETIONS, [("a", [1]), ("b", [2])], [1], ids=False)[:2]:
        assert trail(event, 1) == event
    assert trail.lost


@pytest.mark.parametrize("wants", [False, True])
async def test_what_is_not_followed_any_more_loses_its_ids_all_the_same(wants: bool) -> None:
    tokens = [(f" w{i}", [i, i + 1]) for i in range(40)]
    with_ids, asked = (events(CHAT, tokens, [1, 2], ids=ids) for ids in (True, wants))
    reasoning = {"index": 0, "delta": {"reasoning": "hm"}, "logprobs": None, "finish_reason": None, "token_ids": [5]}
    with_ids.insert(5, encode({**HEAD, "choices": [reasoning]}))
    asked.insert(5, encode({**HEAD, "choices": [{**reasoning, "token_ids": [5] if wants else None}]}))
    trail, taker = Trail(CHAT, wants, False), Taker()
    rest = [*with_ids[1:9], b"".join(with_ids[9:20]), *with_ids[20:]]
    await relay(Source(rest), with_ids[0], taker, Settings(), Tally(), trail)
    assert trail.lost
    assert b"".join(taker.sent) == b"".join(asked)

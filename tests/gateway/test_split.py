"""Which requests stay whole, each by its rule; everything ordinary may be split."""

import json
from typing import Any

import pytest

from gateway.prompt.apis import APIS
from gateway.prompt.body import parse
from gateway.prompt.split import RULES, whole

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]

WHOLE: list[tuple[str, str, dict[str, Any]]] = [
    ("no prompt", CHAT, {}),
    ("no prompt", "/v1/embeddings", {"input": "x"}),
    ("no prompt", "/tokenize", {"prompt": "x"}),
    ("n", CHAT, {"messages": HI, "n": 2}),
    ("n", CHAT, {"messages": HI, "n": "2"}),
    ("n", COMPLETIONS, {"prompt": "x", "n": 3}),
    ("best_of", COMPLETIONS, {"prompt": "x", "best_of": 2}),
    ("several prompts", COMPLETIONS, {"prompt": ["a", "b"]}),
    ("several prompts", COMPLETIONS, {"prompt": [[1, 2], [3]]}),
    ("several prompts", COMPLETIONS, {"prompt": []}),
    ("prompt_logprobs", CHAT, {"messages": HI, "prompt_logprobs": 0}),
    ("echo with logprobs", COMPLETIONS, {"prompt": "x", "echo": True, "logprobs": 0}),
    ("echo with logprobs", CHAT, {"messages": HI, "echo": True}),
    ("use_beam_search", COMPLETIONS, {"prompt": "x", "use_beam_search": True}),
    ("prompt_embeds", COMPLETIONS, {"prompt": "x", "prompt_embeds": "AAAA"}),
    ("suffix", COMPLETIONS, {"prompt": "x", "suffix": "y"}),
    ("media", CHAT, {"messages": IMAGE}),
    ("state in one engine", RESPONSES, {"input": "x", "previous_response_id": "resp_1"}),
    ("state in one engine", RESPONSES, {"input": "x", "background": True}),
    ("one token", CHAT, {"messages": HI, "max_tokens": 1}),
    ("one token", CHAT, {"messages": HI, "max_completion_tokens": 0, "max_tokens": 9}),
    ("one token", RESPONSES, {"input": "x", "max_output_tokens": 1}),
]

SPLIT: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HI}),
    (CHAT, {"messages": HI, "n": 1, "max_tokens": 1, "max_completion_tokens": 9}),
    (CHAT, {"messages": [{"role": "user", "content": 'say "image_url"'}], "prompt_logprobs": None}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 2}),
    (COMPLETIONS, {"prompt": "x", "echo": True}),
    (COMPLETIONS, {"prompt": "x", "logprobs": 1}),
    (COMPLETIONS, {"prompt": "x", "echo": False, "logprobs": 1, "suffix": None, "best_of": 1}),
    (COMPLETIONS, {"prompt": ["one"]}),
    (COMPLETIONS, {"prompt": [1, 2, 3]}),
    (COMPLETIONS, {"prompt": [[1, 2, 3]]}),
    (RESPONSES, {"input": "x", "background": False, "previous_response_id": None}),
    (MESSAGES, {"messages": HI, "max_tokens": 9}),
]


@pytest.mark.parametrize(("rule", "path", "body"), WHOLE)
def test_stays_whole(rule: str, path: str, body: dict[str, Any]) -> None:
    assert whole(APIS[path], parse(json.dumps(body).encode())) == rule


@pytest.mark.parametrize(("path", "body"), SPLIT)
def test_may_be_split(path: str, body: dict[str, Any]) -> None:
    assert whole(APIS[path], parse(json.dumps(body).encode())) == ""


def test_every_rule_is_proven_and_says_why() -> None:
    assert {rule for rule, _, _ in WHOLE} == {rule.name for rule in RULES}
    assert all(rule.reason for rule in RULES)

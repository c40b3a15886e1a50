"""Asks an engine whether it reads prompts as we do, and whether it takes token ids from us.

transformers rebuilds a tokenizer when `tokenizer_config.json` names a model-specific class, so the same
`tokenizer.json` can give other ids inside the engine. Ids of our own are trusted only after this.
"""

from array import array
from typing import Any

import httpx
import msgspec
from msgspec import Raw

from gateway.prompt.apis import CHAT, COMPLETIONS, Api
from gateway.prompt.prompts import PromptReader

_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  leading and   inner    spaces\tand\ttabs\r\n\r\nand lines \n",
    "1234567890 3.14159 1,000,000 0x1F 2026-11-21T05:32:00Z",
    "def f(x: int) -> str:\n    return f\"{x!r}\"  # don't, we've, I'LL\n",
    "naïve café Ünïcødé ﬁ ① Å A\u030a e\u0301 ½",
    "漢字かな交じり文 한국어 العربية עברית हिन्दी ไทย",
    "🙂👩‍👩‍👧‍👦🇺🇳 \u200b\u00a0\u2028",
    "<s></s> [INST] <|im_end|> <|endoftext|> <unk>",
    '{"a": [1, 2.5e-3, null], "b": "\\u00e9"}',
    "a" * 64,
)
_CHATS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "x"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, wörld!\n 12 + 34?"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}, {"type": "text", "text": "four"}]},
    ],
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Now & here",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
_FEW_IDS = [5, 6, 7, 8, 9]


def _questions() -> list[tuple[Api, dict[str, Any]]]:
    asked: list[tuple[Api, dict[str, Any]]] = [(COMPLETIONS, {"prompt": text}) for text in _TEXTS]
    asked += [(CHAT, {"messages": [{"role": "user", "content": text}]}) for text in _TEXTS[:6]]
    asked += [(CHAT, {"messages": messages}) for messages in _CHATS]
    asked.append((CHAT, {"messages": _CHATS[1], "tools": _TOOLS}))
    return asked


async def disagreement(http: httpx.AsyncClient, model: str, reader: PromptReader) -> str:
    """Compare ids with the engine's `/tokenize`. Returns what differs, in words; empty if nothing does.

    Raises `httpx.HTTPError`.
    """
    same = 0
    for api, body in _questions():
        ours = reader.read(api, {name: Raw(msgspec.json.encode(value)) for name, value in body.items()})
        if ours.ids is None:
            continue
        answer = await http.post("/tokenize", json={"model": model, **body})
        if answer.status_code == 404:
            return "the engine has no /tokenize to compare with"
        if answer.status_code != 200:
            continue  # a template may refuse a shape; then both legs will
        theirs = array("I", answer.json()["tokens"])
        if theirs.tobytes() != ours.ids:
            return f"{len(theirs)} tokens in the engine, {ours.tokens} here, or other ids, for {str(body)[:80]}"
        same += 1
    return "" if same else "no prompt could be compared"


async def takes_ids(http: httpx.AsyncClient, model: str) -> bool:
    """Whether the engine replaces messages by our ids (vLLM 0.32 on; an older one ignores the key).

    Source: `kv_transfer_params["prompt_token_ids"]` in vLLM's chat serving. Raises `httpx.HTTPError`.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 1,
        "kv_transfer_params": {"prompt_token_ids": _FEW_IDS},
    }
    answer = await http.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return False
    usage = answer.json().get("usage") or {}
    return bool(usage.get("prompt_tokens") == len(_FEW_IDS))

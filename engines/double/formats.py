"""What the four generating APIs have in common on the way out."""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import json

from engines.double import tokens
from engines.double.answer import Choice, Delta, Usage
from engines.double.ask import Ask

FINGERPRINT = "vllm-0.32.0-double"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    """Unix time, seconds"""
    model: str
    ids: "Ids"


class Ids:
    """Deterministic stand-ins for vLLM's random ids: 16 hex digits from a seed and a count."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0

    def next(self, digits: int = 16) -> str:
        self._count += 1
        return f"{hash((self._seed, self._count)) & (1 << 64) - 1:016x}"[:digits]


class Format(Protocol):
    """Writes one answer, whole or as SSE events (complete, with their blank line)."""

    def opening(self) -> list[bytes]:
        """Events before the engine has done anything."""

    def begin(self) -> list[bytes]:
        """Events that come with the first token."""

    def delta(self, delta: Delta) -> list[bytes]:
        """Events for what one choice got."""

    def end(self, usage: Usage, choices: Many[Choice]) -> list[bytes]:
        """Events after the last token."""

    def failed(self) -> list[bytes] | None:
        """Events of a request that failed in mid-stream; None: the connection just breaks."""

    def whole(self, usage: Usage, choices: Many[Choice], params: dict[str, Any] | None) -> bytes:
        """The answer as one JSON body; `params` are the transfer parameters of a prefill answer."""


def sse(value: Any) -> bytes:
    """One unnamed SSE event."""
    return b"data: " + json.encode(value) + b"\n\n"


def named_sse(value: dict[str, Any]) -> bytes:
    """One SSE event named by its `type`."""
    name: str = value["type"]
    return b"event: " + name.encode() + b"\ndata: " + json.encode(value) + b"\n\n"


def usage_object(usage: Usage, created: int | None) -> dict[str, Any]:
    """`usage` of a whole OpenAI answer."""
    return {
        "prompt_tokens": usage.prompt,
        "total_tokens": usage.prompt + usage.completion,
        "completion_tokens": usage.completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "created_cache_tokens": created,
            "multimodal_tokens": None,
        },
        "completion_tokens_details": None,
    }


def last_usage_object(usage: Usage, created: int | None) -> dict[str, Any]:
    """`usage` of a stream's last chunk: without what is null."""
    details = {"cached_tokens": usage.cached} | ({} if created is None else {"created_cache_tokens": created})
    return {
        "prompt_tokens": usage.prompt,
        "total_tokens": usage.prompt + usage.completion,
        "completion_tokens": usage.completion,
        "prompt_tokens_details": details,
    }


def prompt_ids(ask: Ask) -> list[int] | None:
    return ask.prompts[0] if ask.return_ids else None


def logprob(token: int) -> dict[str, Any]:
    """A token's log probability, invented: minus one, give or take, by its id."""
    raw = tokens.piece(token)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": -1.0 - token % 64 / 64,
        "bytes": list(raw),
    }


def calls_tool(ask: Ask, choice: Choice) -> bool:
    """Whether the choice is a finished tool call (a cut one is shown as text)."""
    return ask.tool is not None and choice.finish == "stop"

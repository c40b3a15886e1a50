"""One measured request, as a client of the OpenAI API sees it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec


class RequestFailed(Exception):
    """The request did not end in an answer; the message says what came instead."""


@dataclass(slots=True)
class Measured:
    """What came back, and when. Times in seconds from sending."""

    text: str = ""
    ttft_s: float | None = None
    """First event that carries text; None if not streamed."""
    e2e_s: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    """Prompt tokens that were cached, if the engine says so."""
    headers: Mapping[str, str] = field(default_factory=dict)
    sent_s: float = 0.0
    """`time.perf_counter()` of sending."""
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Of a stream with `continuous_usage_stats`: when each event came, and how many tokens there were then."""
    ids: list[int] = field(default_factory=list)
    """The answer's token ids, if asked for with `return_token_ids`."""

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first."""
        if self.ttft_s is None or self.tokens_out < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.tokens_out - 1)

    def stage_s(self, name: str) -> float | None:
        """A stage's duration from the gateway's `Server-Timing` header."""
        for part in self.headers.get("server-timing", "").split(","):
            stage, _, rest = part.strip().partition(";dur=")
            if stage == name and rest:
                return float(rest) / 1e3
        return None


async def send(
    http: httpx.AsyncClient, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Measured:
    """Send one chat or completion request. Raises `RequestFailed`."""
    body = dict(body)
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True, **body.get("stream_options", {})}
    start = time.perf_counter()
    measured = Measured(sent_s=start)
    try:
        async with http.stream("POST", path, json=body, headers={"x-baton-facts": "1", **(headers or {})}) as answer:
            measured.headers = answer.headers
            if answer.status_code != 200:
                detail = (await answer.aread()).decode(errors="replace")
                raise RequestFailed(f"{path} answered {answer.status_code}: {detail}")
            if body.get("stream"):
                await _read_stream(answer, measured, start)
            else:
                _read_answer(msgspec.json.decode(await answer.aread()), measured)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        raise RequestFailed(f"{path}: {type(error).__name__}: {error}") from error
    measured.e2e_s = time.perf_counter() - start
    return measured


async def _read_stream(answer: httpx.Response, measured: Measured, start: float) -> None:
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            return
        now = time.perf_counter()
        event = msgspec.json.decode(line.removeprefix("data: "))
        if "error" in event:
            raise RequestFailed(f"the stream broke off: {event['error'].get('message')}")
        if piece := _text(event):
            if measured.ttft_s is None:
                measured.ttft_s = now - start
            measured.text += piece
        _count(event, measured)
        for choice in event.get("choices", ()):
            measured.ids += choice.get("token_ids") or ()
            if event.get("usage"):
                measured.arrivals.append((now - start, measured.tokens_out))
    raise RequestFailed("the stream ended without [DONE]")


def _read_answer(answer: dict[str, Any], measured: Measured) -> None:
    measured.text = _text(answer)
    _count(answer, measured)


def _text(part: dict[str, Any]) -> str:
    """The text of an answer or event of either API."""
    texts = []
    for choice in part.get("choices", ()):
        message = choice.get("delta") or choice.get("message") or {}
        texts.append(choice.get("text") or message.get("content") or message.get("reasoning") or "")
    return "".join(texts)


def _count(part: dict[str, Any], measured: Measured) -> None:
    if usage := part.get("usage"):
        measured.tokens_in = usage.get("prompt_tokens", 0)
        measured.tokens_out = usage.get("completion_tokens", 0)
        measured.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or measured.cached

"""Asks for streams and notes when each token came, over our own HTTP client: a tenth of what httpx takes for an event.

What measures shares its machine with what is measured, so it must be light.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import httpx
import msgspec

from gateway.wire.answer import Answer
from gateway.wire.errors import WireError
from gateway.wire.pool import Limits, Pool
from load.client import Measured, RequestFailed

PATH = b"/v1/completions"
_END = b"data: [DONE]"
_DATA = b"data: "
_MOST_BYTES = 1 << 20


class Asker(Protocol):
    """Whoever asks for one stream."""

    def body(self, prompt: str | list[int], answer: int) -> bytes:
        """A request for exactly so many tokens; made before it is due."""
        ...

    async def ask(self, raw: bytes, session: str) -> Measured:
        """Send it. Raises `RequestFailed`."""
        ...


def body(model: str, prompt: str | Sequence[int], answer: int) -> dict[str, Any]:
    """A request whose stream says how many tokens it has brought so far, where the server is vLLM."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": answer,
        "min_tokens": answer,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "return_token_ids": True,
    }


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    token_ids: list[int] | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_decoder = msgspec.json.Decoder(_Event)


class WireAsker:
    """Asks one URL; `close` when done. Raises `ValueError` for a URL that has more than scheme, host and port."""

    def __init__(self, url: str, model: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self._model = model
        self._timeout_s = timeout_s
        self._pool = Pool(url, limits=Limits(connections=1 << 16, idle_connections=1 << 16))
        fixed = {"content-type": "application/json", "x-baton-facts": "1", **headers}
        self._headers = [(name.encode(), value.encode()) for name, value in fixed.items()]

    def close(self) -> None:
        self._pool.close()

    def body(self, prompt: str | list[int], answer: int) -> bytes:
        """A request for a stream of exactly so many tokens."""
        return msgspec.json.encode(body(self._model, prompt, answer))

    async def ask(self, raw: bytes, session: str) -> Measured:
        """Send it, and read its stream to the end. Raises `RequestFailed`."""
        headers = [*self._headers, (b"x-session-id", session.encode())] if session else self._headers
        measured = Measured(sent_s=time.perf_counter())
        try:
            got = await self._pool.request("POST", PATH, headers, raw, first_byte_s=self._timeout_s)
            try:
                measured.headers = httpx.Headers(got.headers)
                if got.status != 200:
                    said = (await got.read(_MOST_BYTES, self._timeout_s)).decode(errors="replace")
                    raise RequestFailed(f"answered {got.status}: {said[:300]}")
                await self._read(got, measured)
            finally:
                got.close()
        except (WireError, msgspec.DecodeError) as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from error
        if not measured.arrivals:
            raise RequestFailed("the stream brought no token")
        return measured

    async def _read(self, got: Answer, measured: Measured) -> None:
        held, ended = b"", False
        while piece := await got.chunk(self._timeout_s):
            measured.e2e_s = now_s = time.perf_counter() - measured.sent_s
            *events, held = (held + piece).split(b"\n\n")
            for event in events:
                if event.startswith(_END):
                    ended = True
                elif event.startswith(_DATA):
                    _note(_decoder.decode(event[len(_DATA) :]), measured, now_s)
        if not ended:
            raise RequestFailed("the stream ended without [DONE]")


def _note(event: _Event, measured: Measured, now_s: float) -> None:
    """What one event brought. A server that does not count for us is taken to bring a token an event."""
    if event.error is not None:
        raise RequestFailed(f"the stream broke off: {bytes(event.error).decode(errors='replace')[:300]}")
    for choice in event.choices:
        measured.text += choice.text or ""
        measured.ids += choice.token_ids or ()
    usage = event.usage
    if usage is not None:
        measured.tokens_in, measured.tokens_out = usage.prompt_tokens, usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            measured.cached = usage.prompt_tokens_details.cached_tokens or measured.cached
    elif event.choices and (event.choices[0].text or event.choices[0].token_ids):
        measured.tokens_out += len(event.choices[0].token_ids or ".")
    if event.choices and measured.tokens_out > (measured.arrivals[-1][1] if measured.arrivals else 0):
        if measured.ttft_s is None:
            measured.ttft_s = now_s
        measured.arrivals.append((now_s, measured.tokens_out))

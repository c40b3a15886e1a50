"""One request on its way: what came in, where it went, how long each step took."""

import heapq
import re
import secrets
import time
from collections.abc import Mapping

import msgspec

from gateway.dispatch.trail import Trail
from gateway.fleet.engine import Engine
from gateway.index.sight import Sight
from gateway.prompt.apis import Api
from gateway.prompt.body import Fields
from gateway.telemetry.tracing import Span
from policies.contract import Placement, Request

Headers = list[tuple[bytes, bytes]]

SCORES = 8
"""Of the engines that did best: shown to those who ask."""
_ENGINE = re.compile(r"[\w.@:/#=\[\]-]{1,128}", re.ASCII)


class Exchange(msgspec.Struct):
    """The context of one request; times are `time.perf_counter()` seconds."""

    api: Api
    fields: Fields
    request: Request
    sight: Sight
    """What the index knows of its prompt."""
    stream: bool
    request_id: bytes
    """The client's name for it, or ours; echoed."""
    engine_id: bytes
    """The name that both legs carry: unguessable, so that no client can meet another's request in an engine."""
    headers: tuple[tuple[bytes, bytes], ...]
    """What of the client's headers goes to the engines."""
    span: Span
    deadline: float = float("inf")
    """When it must have ended."""
    lasting: bool = False
    """What it asks for lives on in the engine when we leave: it is not asked for twice."""
    policy: str = ""
    """The built-in policy that the client chose, where it may."""
    elsewhere: bool = False
    """Another fleet may serve it, if none of our engines can."""
    explain: bool = False
    started: float = msgspec.field(default_factory=time.perf_counter)
    session: bytes = b""
    """The conversation it belongs to, as the client named it."""
    placement: Placement | None = None
    ids: msgspec.Raw | None = None
    """Token ids, a JSON list, that stand for the prompt on both legs of the current attempt."""
    ids_count: int = 0
    """How many."""
    original: Fields = msgspec.field(default_factory=dict)
    """The client's fields; `fields` asks for what is left of them."""
    given: bytes | None = None
    """Ids (uint32) of a prompt with the beginning of its answer: the request goes on with a stream."""
    stays: str = "it is not streamed"
    """Why its stream cannot go on at another engine; empty if it can."""
    trail: Trail | None = None
    """What was delivered of its stream."""
    ask_ids: bool = False
    """Whether the prefill engine shall return its own ids."""
    cached_tokens: int | None = None
    """Prompt tokens that the prefill engine did not have to compute, as it said."""
    prompt_tokens: int = 0
    """As the prefill engine counted them; 0 if none did."""
    predicted: dict[bytes, int] = msgspec.field(default_factory=dict)
    """Cached tokens that the index gave the chosen engines, by leg."""
    times: dict[str, float] = msgspec.field(default_factory=dict)
    """Seconds by step: look, route, prefill, decode (until the first byte)."""
    step: str = "wait"
    """What it is at now: wait, prefill, decode, stream."""
    attempts: int = 0
    """How often it was placed."""

    def left_s(self) -> float:
        """Seconds until its deadline; a little more than none when that has passed."""
        return max(self.deadline - time.perf_counter(), 0.001)

    def stays_whole(self, why: str) -> None:
        """From here on this request is not split."""
        self.request = msgspec.structs.replace(self.request, whole=why)

    def reads_apart(self) -> None:
        """From here on no engine serves it from what is cached: a late transfer may have left wrong KV there, under
        the name of this very prompt."""
        self.fields = {**self.fields, "cache_salt": msgspec.Raw(msgspec.json.encode(secrets.token_hex(16)))}

    @property
    def begun(self) -> bool:
        """Whether the client was sent a part of the answer."""
        return self.given is not None

    def engine_headers(self, span: Span, engine: Engine) -> Headers:
        """Headers of one leg."""
        return [
            (b"content-type", b"application/json"),
            (b"x-request-id", self.engine_id),
            *self.headers,
            *engine.headers,
            *span.context(),
        ]

    def facts(self) -> Headers:
        """The placement and the stage times, as response headers for those who asked."""
        if not self.explain or self.placement is None:
            return []
        facts = [
            (b"x-baton-decode", self.placement.decode.encode()),
            (b"x-baton-reason", self.placement.reason.encode("ascii", "replace")),
            (b"server-timing", ", ".join(f"{step};dur={s * 1e3:.3f}" for step, s in self.times.items()).encode()),
        ]
        if scores := shown(self.placement.scores):
            facts.append((b"x-baton-scores", scores))
        if self.placement.prefill:
            facts.append((b"x-baton-prefill", self.placement.prefill.encode()))
        if self.attempts > 1:
            facts.append((b"x-baton-attempts", str(self.attempts).encode()))
        if self.prompt_tokens:
            facts.append((b"x-baton-prompt-tokens", str(self.prompt_tokens).encode()))
        if self.cached_tokens is not None:
            facts.append((b"x-baton-cached-tokens", str(self.cached_tokens).encode()))
        facts += [(b"x-baton-predicted-" + leg, str(tokens).encode()) for leg, tokens in self.predicted.items()]
        return facts


def shown(scores: object) -> bytes:
    """The best scores, as a header's value. A plugin may have written anything: what is none is left out."""
    if not isinstance(scores, Mapping):
        return b""
    found = [
        (float(score), name)
        for name, score in scores.items()
        if isinstance(name, str) and isinstance(score, int | float) and abs(score) < 1e15 and _ENGINE.fullmatch(name)
    ]
    return ", ".join([f"{name}={score:.4g}" for score, name in heapq.nlargest(SCORES, found)]).encode()

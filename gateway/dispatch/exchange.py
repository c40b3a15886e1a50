"""One request on its way: what came in, where it went, how long each step took."""

import time
from dataclasses import dataclass, field

import msgspec

from gateway.prompt.apis import Api
from gateway.prompt.body import Fields
from gateway.telemetry.tracing import Span
from policies.contract import Placement, Request

Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Exchange:
    """The context of one request; times are `time.perf_counter()` seconds."""

    api: Api
    fields: Fields
    request: Request
    stream: bool
    request_id: bytes
    """The client's name for it, or ours; echoed."""
    engine_id: bytes
    """The name that both legs carry: unguessable, so that no client can meet another's request in an engine."""
    headers: tuple[tuple[bytes, bytes], ...]
    """What of the client's headers goes to the engines."""
    span: Span
    explain: bool = False
    started: float = field(default_factory=time.perf_counter)
    placement: Placement | None = None
    prompt_tokens: int = 0
    """As the prefill engine counted them; 0 if none did."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds by step: route, prefill, decode (until the first byte)."""

    def stays_whole(self, why: str) -> None:
        """From here on this request is not split."""
        self.request = msgspec.structs.replace(self.request, whole=why)

    def engine_headers(self, span: Span) -> Headers:
        """Headers of one leg."""
        return [
            (b"content-type", b"application/json"),
            (b"x-request-id", self.engine_id),
            *self.headers,
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
        if self.placement.prefill:
            facts.append((b"x-baton-prefill", self.placement.prefill.encode()))
        if self.prompt_tokens:
            facts.append((b"x-baton-prompt-tokens", str(self.prompt_tokens).encode()))
        return facts

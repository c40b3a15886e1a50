"""What traffic that was played came to: the figures of a replay, measured."""

from collections.abc import Sequence

import httpx
import msgspec

from engines.surface import KV_BYTES_PULLED, PROMPT_TOKENS_BY_SOURCE, total
from load.live.play import Played
from load.replay.outcome import Spread, spread, weighted
from load.replay.slo import Slo


class Figures(msgspec.Struct, frozen=True):
    """Times in ms, shares between 0 and 1. Latency counts from when a request was due, as in a replay."""

    requests: int
    failed: int
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    e2e_ms: Spread
    slo_met: float
    """Share of all requests, failed ones included, with TTFT and TPOT both in time."""
    goodput_rps: float
    """Requests a second that met both."""
    hit_rate: float | None
    """Share of prompt tokens that no engine computed, as engines count; None if one does not."""
    local_share: float | None
    """Share of requests that one engine did alone; None if the gateway does not say."""
    pulled_tb: float | None
    """KV that moved between engines."""
    stages_ms: dict[str, float]
    """Means of what the gateway says that each step took, over all requests."""
    late_ms: Spread
    """How much later than due requests were sent: what is long here is this machine's."""
    span_s: float


class Counted(msgspec.Struct, frozen=True):
    """What engines have counted so far."""

    computed: float
    """Prompt tokens."""
    pulled_bytes: float

    @classmethod
    async def read(cls, http: httpx.AsyncClient, urls: Sequence[str]) -> "Counted | None":
        """Of all of these; None if there is none, or one does not say."""
        computed = pulled = 0.0
        for url in urls:
            try:
                page = (await http.get(f"{url}/metrics")).text
            except httpx.HTTPError:
                return None
            tokens = total(page, PROMPT_TOKENS_BY_SOURCE, {"source": "local_compute"})
            if tokens is None:
                return None
            computed += tokens
            pulled += total(page, KV_BYTES_PULLED) or 0.0
        return cls(computed, pulled) if urls else None


def figures(
    played: Sequence[Played], failed: int, before: Counted | None, after: Counted | None, gateway: bool, slo: Slo
) -> Figures:
    """Sum up. `gateway`: the target says which engines it chose. Needs `numpy`."""
    import numpy as np

    times = np.array([(one.due_s, one.arrived_s, one.first_s, one.last_s) for one in played]).reshape(-1, 4)
    due, sent, first, last = times.T
    more = np.array([one.answer - 1 for one in played])
    met = sum(slo.met(one.first_s - one.due_s, one.last_s - one.first_s, one.answer) for one in played)
    span_s = float(last.max() - due.min()) if len(played) else 0.0
    prompt = sum(one.prompt for one in played)
    computed = pulled = None
    if before is not None and after is not None:
        computed, pulled = after.computed - before.computed, after.pulled_bytes - before.pulled_bytes
    return Figures(
        requests=len(played),
        failed=failed,
        ttft_ms=spread(first - due),
        itl_ms=weighted([gap for one in played for gap in one.gaps]),
        tpot_ms=spread((last - first)[more > 0] / more[more > 0]),
        e2e_ms=spread(last - due),
        slo_met=met / max(1, len(played) + failed),
        goodput_rps=met / span_s if span_s else 0.0,
        hit_rate=None if computed is None else 1 - computed / max(1, prompt),
        local_share=sum(not one.prefill for one in played) / max(1, len(played)) if gateway else None,
        pulled_tb=None if pulled is None else pulled / 1e12,
        stages_ms={
            name: sum(one.stages_ms.get(name, 0.0) for one in played) / len(played)
            for name in dict.fromkeys(name for one in played for name in one.stages_ms)
        },
        late_ms=spread(sent - due),
        span_s=span_s,
    )

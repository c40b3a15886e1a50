"""What traffic that was played came to: the figures of a replay, measured."""

from collections.abc import Sequence

import httpx
import msgspec

from engines.surface import KV_BYTES_PULLED, PROMPT_TOKENS_BY_SOURCE, total
from load.latencies import Latencies, Spread, spread
from load.live.play import Played
from load.slo import Slo


class Figures(Latencies, frozen=True, kw_only=True):
    """Shares are between 0 and 1."""

    failed: int
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

    computed = pulled = None
    if before is not None and after is not None:
        computed, pulled = after.computed - before.computed, after.pulled_bytes - before.pulled_bytes
    return Figures.of(
        [(one.due_s, one.first_s, one.last_s, one.answer) for one in played],
        [gap for one in played for gap in one.gaps],
        slo,
        missed=failed,
        failed=failed,
        hit_rate=None if computed is None else 1 - computed / max(1, sum(one.prompt for one in played)),
        local_share=sum(not one.prefill for one in played) / max(1, len(played)) if gateway else None,
        pulled_tb=None if pulled is None else pulled / 1e12,
        stages_ms={
            name: sum(one.stages_ms.get(name, 0.0) for one in played) / len(played)
            for name in dict.fromkeys(name for one in played for name in one.stages_ms)
        },
        late_ms=spread(np.array([one.arrived_s - one.due_s for one in played])),
    )

"""What a run came to: latencies, goodput, hits, balance."""

from collections.abc import Sequence
from typing import Any

import msgspec

from load.replay.simulate import Simulation
from load.replay.slo import Slo

_POINTS = (50, 90, 99)


class Spread(msgspec.Struct, frozen=True):
    """Mean and percentiles, ms."""

    mean: float
    p50: float
    p90: float
    p99: float


class Outcome(msgspec.Struct, frozen=True):
    """One policy on one trace."""

    requests: int
    refused: int
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    e2e_ms: Spread
    slo_met: float
    """Share of requests with TTFT and TPOT both in time."""
    goodput_rps: float
    """Requests a second that met both."""
    hit_rate: float
    """Share of prompt tokens that the engine that prefilled had cached."""
    local_share: float
    """Share of requests that were prefilled where they were decoded."""
    transferred_tb: float
    balance: float
    """Busiest engine's busy time over the mean, within a role; the worst role's."""
    span_s: float
    saturated_share: float = 0.0
    """Share of requests of which the policy said that no engine serves them as it should."""
    blocks_looked_up: int = 0
    """Of all prompts: what the prefix index is asked, a lookup for each request."""
    block_events: int = 0
    """Blocks that engines stored or dropped: what it is told."""
    bookings: int = 0
    """Changes of an engine's load that gateways tell each other."""


def outcome(simulation: Simulation, slo: Slo = Slo()) -> Outcome:  # noqa: B008  frozen
    """Sum up a run, whole or broken off. Needs `numpy`."""
    import numpy as np

    jobs = [job for job in simulation.jobs if job.last_s == job.last_s]
    ttft = np.array([job.first_s - job.arrived_s for job in jobs])
    e2e = np.array([job.last_s - job.arrived_s for job in jobs])
    more = np.array([job.ask.answer - 1 for job in jobs])
    rest = np.array([job.last_s - job.first_s for job in jobs])
    tpot = rest[more > 0] / more[more > 0]
    met = np.array([slo.met(first, after, job.ask.answer) for first, after, job in zip(ttft, rest, jobs, strict=True)])
    nodes = simulation.nodes.values()
    gaps = [gap for node in nodes for gap in node.core.gaps]
    span_s = max((job.last_s for job in jobs), default=0.0) - min((job.arrived_s for job in jobs), default=0.0)
    prompt = sum(job.ask.prompt for job in jobs)
    moved = sum(job.transferred for job in jobs) * simulation.kv_bytes_per_token
    return Outcome(
        requests=len(jobs),
        refused=simulation.refused,
        ttft_ms=spread(ttft),
        itl_ms=weighted(gaps),
        tpot_ms=spread(tpot),
        e2e_ms=spread(e2e),
        slo_met=float(met.mean()) if jobs else 0.0,
        goodput_rps=float(met.sum()) / span_s if span_s else 0.0,
        hit_rate=sum(job.cached for job in jobs) / prompt if prompt else 0.0,
        local_share=sum(job.prefill is None for job in jobs) / max(1, len(jobs)),
        transferred_tb=moved / 1e12,
        balance=_balance(simulation),
        span_s=span_s,
        saturated_share=simulation.saturated / max(1, len(simulation.jobs)),
        blocks_looked_up=simulation.known.blocks_looked_up,
        block_events=simulation.known.events,
        bookings=simulation.known.bookings,
    )


def spread(seconds: Any) -> Spread:
    """Of an array of seconds."""
    import numpy as np

    if not len(seconds):
        return Spread(0.0, 0.0, 0.0, 0.0)
    points = np.percentile(seconds, _POINTS)
    return Spread(*(float(1e3 * value) for value in (seconds.mean(), *points)))


def weighted(gaps: Sequence[tuple[float, int]]) -> Spread:
    """Of values that occurred several times each."""
    import numpy as np

    if not gaps:
        return Spread(0.0, 0.0, 0.0, 0.0)
    values = np.array([value for value, _ in gaps])
    weights = np.array([weight for _, weight in gaps], dtype=float)
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    below = np.cumsum(weights)
    points = values[np.searchsorted(below, np.array(_POINTS) / 100 * below[-1])]
    mean = float((values * weights).sum() / below[-1])
    return Spread(*(float(1e3 * value) for value in (mean, *points)))


def _balance(simulation: Simulation) -> float:
    roles: dict[str, list[float]] = {}
    for node in simulation.nodes.values():
        roles.setdefault(node.member.role.value, []).append(node.core.busy_s)
    return max(max(busy) * len(busy) / sum(busy) if sum(busy) else 1.0 for busy in roles.values())

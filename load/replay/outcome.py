"""What a run came to: latencies, goodput, hits, balance."""

from load.latencies import Latencies
from load.replay.simulate import Simulation
from load.slo import Slo


class Outcome(Latencies, frozen=True, kw_only=True):
    """One policy on one trace. A request arrives when it is due."""

    refused: int
    hit_rate: float
    """Share of prompt tokens that the engine that prefilled had cached."""
    local_share: float
    """Share of requests that were prefilled where they were decoded."""
    transferred_tb: float
    balance: float
    """Busiest engine's busy time over the mean, within a role; the worst role's."""
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
    jobs = [job for job in simulation.jobs if job.last_s == job.last_s]
    prompt = sum(job.ask.prompt for job in jobs)
    return Outcome.of(
        [(job.arrived_s, job.first_s, job.last_s, job.ask.answer) for job in jobs],
        [gap for node in simulation.nodes.values() for gap in node.core.gaps],
        slo,
        refused=simulation.refused,
        hit_rate=sum(job.cached for job in jobs) / prompt if prompt else 0.0,
        local_share=sum(job.prefill is None for job in jobs) / max(1, len(jobs)),
        transferred_tb=sum(job.transferred for job in jobs) * simulation.kv_bytes_per_token / 1e12,
        balance=_balance(simulation),
        saturated_share=simulation.saturated / max(1, len(simulation.jobs)),
        blocks_looked_up=simulation.known.blocks_looked_up,
        block_events=simulation.known.events,
        bookings=simulation.known.bookings,
    )


def _balance(simulation: Simulation) -> float:
    roles: dict[str, list[float]] = {}
    for node in simulation.nodes.values():
        roles.setdefault(node.member.role.value, []).append(node.core.busy_s)
    return max(max(busy) * len(busy) / sum(busy) if sum(busy) else 1.0 for busy in roles.values())

"""Closed-loop runs of modelled engines: so many clients, each sends its next request as soon as its last has ended.

All clients begin at once, and engines are drawn at random. In the model, requests that were prefilled in one step also
end in one step; a placement that keeps them together (in turn, least loaded) lets them queue behind each other for
ever, which no measured run shows, since nothing real is that even.
"""

import statistics
from collections.abc import Iterable, Mapping

from msgspec.structs import astuple

from engines.fleet import Role
from engines.model.profile import Profile
from load.fit.table import Figures, Row, Setup
from load.replay.fleet import Member, Shape
from load.replay.simulate import Simulation
from load.replay.trace import Ask
from policies.contract import Link
from policies.random_ import Random

SEARCHED = range(1)
"""Draws of the placement that a search looks at."""
UNSEEN = range(1, 6)
"""Others, for telling how good what it found is."""

_PREFILL_HOST, _HOST = "h1", "h0"


def shape(setup: Setup, profiles: Mapping[int, Profile], gbps: Mapping[str, float]) -> Shape:
    """The engines of a configuration: a profile for each tensor-parallel size, a speed for each network by its name."""
    count, size = setup.decode
    role, letter = (Role.DECODE, "d") if setup.prefill else (Role.BOTH, "c")
    members = [Member(f"{letter}{at}", role, _HOST, profiles[size]) for at in range(count)]
    near = Link(gbps=profiles[size].link_gbps, latency_us=profiles[size].link_latency_us)
    far = Link(gbps=gbps[setup.network], latency_us=near.latency_us) if setup.network else near
    if setup.prefill:
        count, size = setup.prefill
        host = _PREFILL_HOST if setup.network else _HOST
        members += [Member(f"p{at}", Role.PREFILL, host, profiles[size]) for at in range(count)]
    return Shape(tuple(members), {(_HOST, _HOST): near, (_HOST, _PREFILL_HOST): far})


def workload(row: Row) -> list[Ask]:
    """Its requests; no two share a prefix."""
    return [Ask(0.0, row.prompt, row.answer, (), after=max(-1, at - row.clients)) for at in range(row.requests)]


def run(
    row: Row, profiles: Mapping[int, Profile], gbps: Mapping[str, float], draws: Iterable[int] = SEARCHED
) -> Figures:
    """What the model says of a measured run: of several draws of the placement, the median of each figure."""
    fleet = shape(row.setup, profiles, gbps)
    if len(fleet.members) <= (2 if row.setup.prefill else 1):
        draws = (0,)
    figures = [_draw(row, fleet, draw) for draw in draws]
    return Figures(*(statistics.median(column) for column in zip(*map(astuple, figures), strict=True)))


def _draw(row: Row, fleet: Shape, draw: int) -> Figures:
    # One block holds a whole request: no measured run was short of KV memory, and nothing is shared.
    simulation = Simulation(
        workload(row),
        fleet,
        Random(seed=1000 * row.line + draw),
        kv_blocks=2 * row.clients,
        block_tokens=row.prompt + row.answer,
    )
    simulation.run()
    jobs = simulation.jobs
    gaps = [gap for node in simulation.nodes.values() for gap in node.core.gaps]
    return Figures(
        ttft_p50_ms=1e3 * statistics.median(job.first_s - job.arrived_s for job in jobs),
        tpot_p50_ms=1e3 * statistics.median((job.last_s - job.first_s) / (row.answer - 1) for job in jobs),
        itl_p99_ms=1e3 * _p99(gaps),
        rps=len(jobs) / max(job.last_s for job in jobs),
    )


def _p99(gaps: list[tuple[float, int]]) -> float:
    """Of values that occurred several times each."""
    left = 0.01 * sum(count for _, count in gaps)
    for value, count in sorted(gaps, reverse=True):
        left -= count
        if left < 0:
            return value
    return 0.0

"""Closed-loop runs of modelled engines: so many clients, each sends its next request as soon as its last has ended.

As `vllm bench serve` does it: all clients begin at once, prompts are random tokens, and each run of an experiment has
the same seed, so one with more clients sends the prompts of those with fewer again, shuffled among its own; engines
have them cached then, as far as a prompt meets one that had it. Engines are chosen by the power of two choices, Ray
Serve's default.
"""

import random
import statistics
from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import astuple

from engines.fleet import Role
from engines.model.profile import Profile
from load.fit.table import Figures, Row, Setup
from load.replay.fleet import Member, Shape
from load.replay.simulate import Simulation
from load.replay.trace import Ask
from policies.contract import Link
from policies.power_of_two import PowerOfTwo

SEARCHED = range(1)
"""Draws of the placement that a search looks at."""
UNSEEN = range(1, 6)
"""Others, for telling how good what it found is."""

BLOCK = 16
"""Tokens of a block of vLLM's prefix cache."""

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
    """Its requests, in the order of a shuffle with seed 0, the tool's default. No two share a prefix."""
    prompts = list(range(row.requests))
    random.Random(0).shuffle(prompts)
    return [
        Ask(0.0, row.prompt, row.answer, (1 + prompt,), after=max(-1, at - row.clients))
        for at, prompt in enumerate(prompts)
    ]


class Modelled(msgspec.Struct, frozen=True):
    """What the model says of a measured run."""

    figures: Figures
    computed: float
    """Share of the prompts' tokens that was not cached where they were prefilled."""


def run(
    row: Row, profiles: Mapping[int, Profile], gbps: Mapping[str, float], draws: Iterable[int] = SEARCHED
) -> Figures:
    """The figures of `model`."""
    return model(row, profiles, gbps, draws).figures


def model(row: Row, profiles: Mapping[int, Profile], gbps: Mapping[str, float], draws: Iterable[int]) -> Modelled:
    """Of several draws of the placement, the median of each figure."""
    fleet = shape(row.setup, profiles, gbps)
    if len(fleet.members) <= (2 if row.setup.prefill else 1):
        draws = (0,)
    every = [_draw(row, fleet, draw) for draw in draws]
    columns = zip(*(astuple(one.figures) for one in every), strict=True)
    return Modelled(Figures(*map(statistics.median, columns)), statistics.median(one.computed for one in every))


def _draw(row: Row, fleet: Shape, draw: int) -> Modelled:
    seed = 1000 * row.line + draw
    simulation = Simulation(
        workload(row),
        fleet,
        PowerOfTwo(seed=seed),
        # A block holds what can be cached of a prompt, and no measured run is taken to be short of them.
        kv_blocks=4 * row.clients + max(row.requests, *row.earlier, 0),
        block_tokens=max(1, (row.prompt - 1) // BLOCK * BLOCK),
    )
    _warm(simulation, row, random.Random(seed))
    simulation.run()
    jobs = simulation.jobs
    gaps = [gap for node in simulation.nodes.values() for gap in node.core.gaps]
    figures = Figures(
        ttft_p50_ms=1e3 * statistics.median(job.first_s - job.arrived_s for job in jobs),
        tpot_p50_ms=1e3 * statistics.median((job.last_s - job.first_s) / (row.answer - 1) for job in jobs),
        itl_p99_ms=1e3 * _p99(gaps),
        rps=len(jobs) / max(job.last_s for job in jobs),
    )
    return Modelled(figures, 1.0 - sum(job.cached for job in jobs) / (row.prompt * len(jobs)))


def _warm(simulation: Simulation, row: Row, chance: random.Random) -> None:
    """Engines hold the prompts that they were given in earlier runs."""
    nodes = list(simulation.nodes.values())
    pools = [[n for n in nodes if n.member.role.prefills], [n for n in nodes if n.member.role is Role.DECODE]]
    for requests in row.earlier:
        for prompt in range(min(requests, row.requests)):
            for pool in filter(None, pools):
                chance.choice(pool).core.blocks.know((1 + prompt,))


def _p99(gaps: list[tuple[float, int]]) -> float:
    """Of values that occurred several times each."""
    left = 0.01 * sum(count for _, count in gaps)
    for value, count in sorted(gaps, reverse=True):
        left -= count
        if left < 0:
            return value
    return 0.0

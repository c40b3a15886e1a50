"""What a profile foretells against what happens: the same traffic in virtual time and in real time."""

from collections.abc import Sequence
from typing import Any

import msgspec

from engines.model.profile import Profile
from load.latencies import Spread, spread, weighted
from load.live.play import Played
from load.live.target import Target
from load.replay.fleet import Member, Shape
from load.replay.simulate import Simulation
from load.replay.trace import Ask, faster
from load.replay.workload import generate
from policies.contract import Link
from policies.registry import create

WITHIN = 0.2
"""A figure is met if measured and foretold differ by no more than this share of what was measured."""
JUDGED = ("ttft_ms.mean", "ttft_ms.p50", "ttft_ms.p90", "itl_ms.mean", "itl_ms.p50", "e2e_ms.mean")
"""The tails are shown and not judged: they hang on single events."""

_KV_TOKENS = 1 << 20
"""Of an engine that does not say."""


class Side(msgspec.Struct, frozen=True):
    """One of the two: times in ms."""

    ttft_ms: Spread
    itl_ms: Spread
    e2e_ms: Spread
    requests: int
    cached: float
    """Share of prompt tokens that the engine which prefilled had."""
    local: float
    """Share of requests that one engine did alone."""


class Run(msgspec.Struct, frozen=True):
    """One of the two in full, for a plot: seconds."""

    side: Side
    ttft_s: dict[int, float]
    """By the request's index."""
    gaps: list[tuple[float, int]]


class Verdict(msgspec.Struct, frozen=True):
    """Both, side by side."""

    workload: str
    policy: str
    measured: Run
    foretold: Run
    failed: int

    @property
    def errors(self) -> dict[str, float]:
        """Foretold over measured, less one, of every figure."""
        found = {}
        for name in ("ttft_ms", "itl_ms", "e2e_ms"):
            ours, theirs = getattr(self.foretold.side, name), getattr(self.measured.side, name)
            for point in Spread.__struct_fields__:
                real = getattr(theirs, point)
                found[f"{name}.{point}"] = getattr(ours, point) / real - 1 if real else 0.0
        return found

    @property
    def met(self) -> bool:
        return not self.failed and all(abs(self.errors[name]) <= WITHIN for name in JUDGED)

    def as_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "policy": self.policy,
            "measured": msgspec.to_builtins(self.measured.side),
            "foretold": msgspec.to_builtins(self.foretold.side),
            "errors": {name: round(error, 4) for name, error in self.errors.items()},
            "within": WITHIN,
            "judged": JUDGED,
            "met": self.met,
            "failed": self.failed,
        }


def usual(target: Target) -> str:
    """Mixed traffic of lengths that the target can take: chats, agents and documents for about a minute."""
    unit = max(16, min(1024, target.longest // 32))
    return f"mixed:rate=1,minutes=1,prompt={2 * unit},shared={2 * unit},answer=40,turns=3,think=2"


def traffic(text: str, target: Target, seed: int) -> list[Ask]:
    """A workload, without the requests that are too long for the target and those that follow them."""
    asks = generate(text, target.block_tokens, seed)
    place: dict[int, int] = {}
    kept: list[Ask] = []
    for index, ask in enumerate(asks):
        if ask.prompt + ask.answer < target.longest and (ask.after < 0 or ask.after in place):
            place[index] = len(kept)
            kept.append(msgspec.structs.replace(ask, after=place[ask.after] if ask.after >= 0 else -1))
    return kept


def busy(asks: Sequence[Ask], wanted: float, target: Target, profile: Profile, policy: str) -> list[Ask]:
    """The traffic so much faster or slower that about so many requests are under way at a time."""
    times = 1.0
    for _ in range(3):
        one = foretell(faster(asks, times), target, profile, policy)
        span_s = max(job.last_s for job in one.jobs) - min(job.arrived_s for job in one.jobs)
        under_way = sum(job.last_s - job.arrived_s for job in one.jobs) / span_s
        times = min(1e3, max(1e-2, times * wanted / under_way))
    return faster(asks, times)


def shape(target: Target, profile: Profile) -> Shape:
    """The target's engines, all of that profile."""
    members = tuple(Member(e.name, e.role, e.host, profile) for e in target.engines)
    hosts = {member.host for member in members}
    link = Link(gbps=profile.link_gbps, latency_us=profile.link_latency_us)
    return Shape(members, {(a, b): link for a in hosts for b in hosts})


def foretell(asks: Sequence[Ask], target: Target, profile: Profile, policy: str) -> Simulation:
    """The traffic in virtual time."""
    kv_tokens = target.kv_tokens or profile.kv_tokens or _KV_TOKENS
    simulation = Simulation(
        asks,
        shape(target, profile),
        create(policy, 1),
        kv_blocks=kv_tokens // target.block_tokens,
        block_tokens=target.block_tokens,
    )
    simulation.run()
    return simulation


def compare(
    asks: Sequence[Ask],
    played: Sequence[Played],
    failed: int,
    target: Target,
    profile: Profile,
    policy: str,
    workload: str,
) -> Verdict:
    """What was played, whole or broken off, beside what the profile foretells of the same requests. Needs `numpy`."""
    simulation = foretell(asks, target, profile, policy)
    ended = {one.index for one in played}
    jobs = [job for job in simulation.jobs if job.index in ended and job.last_s == job.last_s]
    prompt = max(1, sum(job.ask.prompt for job in jobs))
    foretold = Run(
        side=_side(
            [(job.arrived_s, job.first_s, job.last_s) for job in jobs],
            gaps := [gap for node in simulation.nodes.values() for gap in node.core.gaps],
            sum(job.cached for job in jobs) / prompt,
            sum(job.prefill is None for job in jobs) / max(1, len(jobs)),
        ),
        ttft_s={job.index: job.first_s - job.arrived_s for job in jobs},
        gaps=gaps,
    )
    measured = Run(
        side=_side(
            [(one.arrived_s, one.first_s, one.last_s) for one in played],
            gaps := [gap for one in played for gap in one.gaps],
            sum(one.cached for one in played) / max(1, sum(one.prompt for one in played)),
            sum(not one.prefill for one in played) / max(1, len(played)),
        ),
        ttft_s={one.index: one.first_s - one.arrived_s for one in played},
        gaps=gaps,
    )
    return Verdict(workload, policy, measured, foretold, failed)


def _side(
    times: Sequence[tuple[float, float, float]], gaps: Sequence[tuple[float, int]], cached: float, local: float
) -> Side:
    import numpy as np

    whole = np.array(times, dtype=float).reshape(-1, 3)
    return Side(
        ttft_ms=spread(whole[:, 1] - whole[:, 0]),
        itl_ms=weighted(gaps),
        e2e_ms=spread(whole[:, 2] - whole[:, 0]),
        requests=len(times),
        cached=cached,
        local=local,
    )

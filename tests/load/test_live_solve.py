"""From probes to a profile: the coefficients that made them are found, whatever some of them say."""

import random

import pytest
from msgspec.structs import replace

from engines.fleet import Role
from engines.model.profile import Profile
from load.live.check import compare, foretell, traffic, usual
from load.live.play import Played
from load.live.seen import Beside, Join, Journey, Prefill, Seen, Step
from load.live.solve import line, parts, solve
from load.live.target import Engine, Target

TRUE = Profile(
    token_s=2e-5,
    context_s=3e-9,
    step_s=0.008,
    sequence_s=1e-4,
    kv_s=8e-9,
    mix=1.4,
    join_s=0.002,
    leg_s=0.005,
    second_leg_s=0.012,
    chunk_tokens=2048,
    kv_bytes_per_token=1024,
    link_gbps=0.5,
    link_latency_us=0.0,
)
START = replace(TRUE, token_s=1.0, context_s=1.0, step_s=1.0, sequence_s=1.0, kv_s=1.0, mix=9.0, link_gbps=9.0)


def probes(profile: Profile = TRUE, *, noise: float = 0.0, outliers: float = 0.0, gateway: bool = True) -> Seen:
    """What engines that are exactly so would show, with noise, and with some probes that something held up."""
    chance = random.Random(1)

    def shown(seconds: float) -> float:
        held_up = 5.0 if chance.random() < outliers else 1.0
        return seconds * chance.gauss(1.0, noise) * held_up

    seen = Seen(chunk_tokens=profile.chunk_tokens, kv_bytes_per_token=profile.kv_bytes_per_token, splits=gateway)
    for _ in range(6):
        for new, cached in ((64, 0), (200, 0), (600, 0), (1900, 0), (4000, 0), (64, 3000), (500, 3000), (1000, 3000)):
            steps = -(-new // profile.chunk_tokens)
            took_s = profile.leg_s + steps * profile.step_s + profile.prefill_s(new, cached)
            seen.prefills.append(Prefill(new, cached, shown(took_s)))
        for batch in (1, 4, 16):
            for length in (64, 2000):
                kv = batch * length
                seen.steps.append(Step(batch, kv, shown(profile.decode_s(batch, kv))))
        for new in (1000, 4000):
            seen.beside.append(Beside(new, shown(profile.mix * profile.prefill_s(new))))
        for new in (64, 500, 2000, 4000) if gateway else ():
            for beside in (0, 4):
                prefill_s, rest_s = parts(profile, Journey(new, 0.0, 0.0, True, beside))
                seen.journeys.append(Journey(new, shown(prefill_s), shown(rest_s), True, beside))
        if gateway:
            seen.joins.append(Join(64, shown(profile.join_s + profile.mix * profile.token_s)))
    return seen


def test_the_profile_that_made_the_probes_is_found() -> None:
    found = solve(probes(), START).profile
    for name in TRUE.__struct_fields__:
        if name != "source":
            assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.01), name


@pytest.mark.parametrize("outliers", [0.0, 0.15])
def test_probes_that_something_held_up_do_not_count(outliers: float) -> None:
    solved = solve(probes(noise=0.03, outliers=outliers), START)
    for new, cached in ((300, 0), (3000, 0), (500, 2000)):
        assert solved.profile.prefill_s(new, cached) == pytest.approx(TRUE.prefill_s(new, cached), rel=0.12)
    assert solved.profile.decode_s(8, 8000) == pytest.approx(TRUE.decode_s(8, 8000), rel=0.05)
    assert solved.profile.mix == pytest.approx(TRUE.mix, rel=0.2)
    for journey in (Journey(1000, 0, 0, True, 4), Journey(3000, 0, 0, True, 0)):
        assert sum(parts(solved.profile, journey)) == pytest.approx(sum(parts(TRUE, journey)), rel=0.1)
    assert all(error.median < 0.15 for error in solved.errors)


def test_least_squares_would_have_followed_the_outlier() -> None:
    rows = [((1.0, x), 10.0 + x, 10.0 + x) for x in map(float, range(1, 20))]
    rows.append(((1.0, 20.0), 900.0, 30.0))
    assert line(rows) == pytest.approx([10.0, 1.0], rel=1e-3)


def test_no_coefficient_is_below_zero() -> None:
    rows = [((1.0, x), 10.0 - 0.1 * x, 10.0) for x in map(float, range(1, 20))]
    constant, slope = line(rows)
    assert slope == 0.0 and 8 < constant < 10


def test_what_was_not_seen_is_said() -> None:
    seen = probes(gateway=False)
    seen.beside, seen.chunk_tokens, seen.splits = [], 0, True
    seen.journeys = [Journey(64, 0.02, 0.0, False)]
    notes = " ".join(solve(seen, START).notes)
    assert "mix is 1" in notes and "chunk_tokens is 4000" in notes and "split no request" in notes


def test_too_few_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        solve(Seen(), START)


# What a check compares.

TARGET = Target(
    url="http://x",
    model="m",
    engines=(Engine("p0", Role.PREFILL, "http://h:1", True), Engine("d0", Role.DECODE, "http://h:2", True)),
    gateway=True,
    longest=4096,
    block_tokens=32,
    kv_tokens=1 << 20,
    policy="lmetric",
)


def test_a_world_that_is_as_the_model_says_is_foretold_without_error() -> None:
    asks = traffic(usual(TARGET), TARGET, 1)
    assert all(ask.prompt + ask.answer < TARGET.longest for ask in asks)
    assert all(asks[ask.after].session == ask.session for ask in asks if ask.after >= 0)
    run = foretell(asks, TARGET, TRUE, "lmetric")
    gaps = [gap for node in run.nodes.values() for gap in node.core.gaps]
    played = [
        Played(
            job.index,
            job.arrived_s,
            job.arrived_s,
            job.first_s,
            job.last_s,
            tuple(gaps) if at == 0 else (),
            job.ask.prompt,
            job.ask.answer,
            job.cached,
            "p0",
            "d0",
            {},
        )
        for at, job in enumerate(run.jobs)
    ]
    verdict = compare(asks, played, 0, TARGET, TRUE, "lmetric", "w")
    assert verdict.met and max(map(abs, verdict.errors.values())) < 1e-9
    assert verdict.measured.side.cached == pytest.approx(verdict.foretold.side.cached)
    slower = replace(TRUE, second_leg_s=TRUE.second_leg_s + 0.1)
    wrong = compare(asks, played, 0, TARGET, slower, "lmetric", "w")
    assert not wrong.met and wrong.errors["ttft_ms.mean"] > 0.2
    assert not compare(asks, played, 1, TARGET, TRUE, "lmetric", "w").met

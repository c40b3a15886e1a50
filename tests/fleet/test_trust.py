"""Ejection among engines: who is out, who stays because others are, and who is merely slow."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.fleet import Role
from gateway.fleet.breaker import Breaker, Phase, Rules
from gateway.fleet.engine import Leg, State
from gateway.fleet.fleet import OK, Fleet
from gateway.fleet.pace import Pace
from gateway.fleet.vitals import Drift, vitals
from gateway.fleet.wanted import Wanted

RULES = Rules(row=3, least=6, slow_s=10.0, rest_s=5.0, trials=1)


class World:
    """A fleet of engines that are up, and its clock."""

    def __init__(self, roles: str) -> None:
        self.now = 1000.0
        names = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}
        wanted = [Wanted(f"{c}{i}", f"http://127.0.0.1:{i + 1}", names[c], "m") for i, c in enumerate(roles)]
        self.fleet = Fleet(wanted)
        self.engines = list(self.fleet)
        for engine in self.engines:
            engine.breakers = {leg: Breaker(RULES, lambda: self.now) for leg in engine.breakers}
            engine.pace = Pace(clock=lambda: self.now)
            self.fleet.mark(engine, State.UP)

    def fail(self, at: int, leg: Leg, cause: str = "error", times: int = 3) -> None:
        for _ in range(times):
            self.fleet.observe(self.engines[at], leg, cause)

    def offers(self) -> list[str | None]:
        return [engine.offers for engine in self.engines]


def test_an_engine_that_fails_rests_and_is_tried_with_single_requests() -> None:
    world = World("ppd")
    world.fail(0, "prefill")
    assert world.offers() == [None, "prefill", "decode"]
    first = world.engines[0]
    assert world.fleet.trust.rested(first) == []
    world.now += 5.0
    assert world.fleet.trust.rested(first) == ["prefill"]
    world.fleet.trust.attempt(first, "prefill", "still no token")
    assert world.offers()[0] is None
    world.now += 10.0
    world.fleet.trust.attempt(first, "prefill", "")
    assert first.offers == first.on_trial() == "prefill"
    first.prefill_requests += 1
    assert not first.on_trial(), "one at a time"
    first.prefill_requests -= 1
    world.fleet.observe(first, "prefill", OK)
    assert first.breakers["prefill"].phase is Phase.CLOSED and not first.tried


@pytest.mark.parametrize("cause", ["rejected", "overloaded", "stale", "late", "transfer"])
def test_what_says_nothing_about_the_engine_never_counts(cause: str) -> None:
    world = World("ppdd")
    world.fail(0, "prefill", cause, times=200)
    world.fail(2, "decode", cause, times=200)
    assert world.offers() == ["prefill", "prefill", "decode", "decode"]


def test_an_engine_that_does_both_loses_only_the_leg_that_fails() -> None:
    world = World("bbb")
    world.fail(0, "prefill")
    world.fail(1, "decode")
    assert world.offers() == ["decode", "prefill", "both"]


@given(st.integers(1, 9), st.integers(0, 2**32))
def test_no_role_is_ever_without_engines(count: int, seed: int) -> None:
    """Whatever fails, goes down, comes back or is drained: who is up and wanted serves, at least half of them."""
    world, pick = World("p" * count + "d" * count), random.Random(seed)
    for _ in range(60):
        engine = pick.choice(world.engines)
        match pick.randrange(5):
            case 0:
                world.fleet.mark(engine, pick.choice((State.UP, State.DOWN)), "x")
            case 1:
                engine.draining = pick.random() < 0.3
                world.fleet.reconsider(engine)
            case 2:
                world.now += pick.uniform(0, 10)
                for leg in world.fleet.trust.rested(engine):
                    world.fleet.trust.attempt(engine, leg, pick.choice(("", "no token")))
            case _:
                for leg in engine.legs:
                    world.fail(world.engines.index(engine), leg)
        for role in (Role.PREFILL, Role.DECODE):
            able = [e for e in world.engines if e.role is role and e.state is State.UP and not e.draining]
            offered = [e for e in able if e.offers]
            assert len(offered) >= len(able) // 2
            assert bool(offered) == bool(able)
        assert not any(e.offers for e in world.engines if e.draining or e.state is not State.UP)


def test_when_the_good_ones_go_down_the_ejected_serve_again() -> None:
    world = World("ppppd")
    for at in range(4):
        world.fail(at, "prefill", times=9)
    assert world.offers() == [None, None, "prefill", "prefill", "decode"]
    assert world.engines[2].spared > 0
    for at in (2, 3):
        world.fleet.mark(world.engines[at], State.DOWN, "gone")
    assert world.offers() == ["prefill", "prefill", None, None, "decode"]
    for at in (2, 3):
        world.fleet.mark(world.engines[at], State.UP)
    assert world.offers() == [None, None, "prefill", "prefill", "decode"]


def test_a_restarted_engine_is_trusted() -> None:
    world = World("ppd")
    world.fail(0, "prefill")
    world.fleet.trust.reset(world.engines[0])
    assert world.offers() == ["prefill", "prefill", "decode"]


def test_a_slow_engine_looks_slow_first_and_is_ejected_when_that_lasts() -> None:
    world = World("pppd")
    slow = world.engines[0]

    def second(times: float) -> None:
        for _ in range(5):
            for engine in world.engines[:3]:
                took_s = engine.pace.prior.prefill_s(2000) * (times if engine is slow else 1.0)
                engine.pace.prefilled(2000, 0, 0.0, took_s + 0.02, 0, True)
                world.fleet.observe(engine, "prefill", OK)
            world.now += 0.2
        for engine in world.engines[:3]:
            world.fleet.trust.compare(engine)

    for _ in range(5):
        second(15.0)
    usual_s = world.engines[1].pace.speed.prefill_s(2000)
    assert slow.pace.speed.prefill_s(2000) > 5 * usual_s, "placement sees it"
    assert slow.offers == "prefill", "and has some time to heed it"
    for _ in range(10):
        second(15.0)
    assert world.offers() == [None, "prefill", "prefill", "decode"]
    assert "slower than the other engines" in slow.breakers["prefill"].why


def test_an_engine_that_is_slow_like_all_others_stays() -> None:
    world = World("ppd")
    for _ in range(30):
        for engine in world.engines[:2]:
            engine.pace.prefilled(2000, 0, 0.0, 3.0, 0, True)
            world.fleet.observe(engine, "prefill", OK)
            world.fleet.trust.compare(engine)
        world.now += 1.0
    assert world.offers() == ["prefill", "prefill", "decode"]


PAGE = """
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 2.0
vllm:num_requests_waiting{engine="0"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:prompt_tokens_total{engine="0"} 100.0
vllm:generation_tokens_total{engine="0"} 7.0
vllm:iteration_tokens_total_count{engine="0"} 5.0
"""


def test_vitals_are_read_from_all_ranks() -> None:
    found = vitals(PAGE)
    assert found is not None
    assert (found.requests, found.kv_usage, found.work) == (6, 0.25, 112.0)
    assert vitals("nothing of it 1.0\n") is None


def test_drift_alarms_only_where_one_side_has_requests_and_the_other_none() -> None:
    now = 0.0
    drift = Drift(lambda: now)
    for theirs, low, high, value, odd in (
        (0, 0, 0, 0, False),
        (3, 2, 4, 0, False),
        (5, 2, 4, 1, False),
        (1, 2, 4, -1, False),
        (2, 0, 0, 2, True),
        (2, 0, 0, 2, True),
        (0, 1, 1, -1, True),
        (0, 0, 0, 0, False),
        (0, 0, 3, 0, False),
    ):
        drift.see(theirs, low, high)
        assert drift.value == value
        now += 1.0
        drift.see(theirs, low, high)
        assert bool(drift.lasts_s) == odd

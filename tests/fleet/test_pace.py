"""Fitted speeds: they come to the truth, one stall does not undo them, and what has passed is forgotten."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet.line import Line
from gateway.fleet.links import Links
from gateway.fleet.pace import Pace
from gateway.fleet.traffic import WINDOW_S, Traffic
from policies.contract import Link, Speed


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


TRUE = Speed(token_s=4e-5, context_s=1e-9, step_s=0.012, sequence_s=2e-4, kv_s=2e-8)
OVERHEAD_S = 0.05


def prefills(pace: Pace, clock: Clock, count: int, slow: float = 1.0, seed: int = 1) -> None:
    """Prefills that meet nobody, with a tenth of noise, one a second."""
    pick = random.Random(seed)
    for _ in range(count):
        clock.now += 1.0
        new, cached = pick.randrange(200, 20_000), pick.randrange(0, 20_000)
        took = OVERHEAD_S + slow * TRUE.prefill_s(new, cached)
        pace.prefilled(new, cached, 0.0, took * pick.uniform(0.95, 1.05), 0, True)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_a_fit_comes_to_the_truth(seed: int) -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    prefills(pace, clock, 300, seed=seed)
    for new, cached in ((1000, 0), (10_000, 0), (5000, 15_000)):
        assert pace.base.prefill_s(new, cached) == pytest.approx(TRUE.prefill_s(new, cached), rel=0.15)
    pick = random.Random(seed)
    for _ in range(300):
        clock.now += 1.0
        batch, tokens = pick.randrange(1, 100), pick.randrange(1000, 800_000)
        pace.streamed(batch, tokens, TRUE.decode_s(batch, tokens) * pick.uniform(0.95, 1.05))
    for batch, tokens in ((1, 5000), (60, 400_000)):
        assert pace.speed.decode_s(batch, tokens) == pytest.approx(TRUE.decode_s(batch, tokens), rel=0.15)


@pytest.mark.parametrize("told", [True, False])
def test_prefills_between_tokens_are_not_taken_for_slow_steps(told: bool) -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    pick = random.Random(7)
    for _ in range(600):
        clock.now += 1.0
        batch, tokens, stalled_s = pick.randrange(1, 100), pick.randrange(1000, 800_000), pick.uniform(0.0, 0.01)
        gap_s = TRUE.decode_s(batch, tokens) + pace.base.mix * stalled_s
        pace.streamed(batch, tokens, gap_s, stalled_s if told else 0.0)
    off = [pace.base.decode_s(*at) / TRUE.decode_s(*at) - 1.0 for at in ((1, 5000), (60, 400_000))]
    assert (max(map(abs, off)) < 0.05) is told


def test_one_stall_does_not_undo_a_fit() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    prefills(pace, clock, 300)
    before = pace.base.prefill_s(5000)
    pace.prefilled(5000, 0, 0.0, 60.0, 0, True)
    assert pace.base.prefill_s(5000) < 1.5 * before


def test_lateness_is_seen_within_a_few_prefills_and_goes_with_time() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    prefills(pace, clock, 300)
    usual = pace.speed.prefill_s(8000)
    assert pace.lateness == 1.0
    prefills(pace, clock, 6, slow=5.0)
    assert pace.speed.prefill_s(8000) > 2.5 * usual
    clock.now += 120.0
    pace.rest()
    assert pace.lateness == 1.0


def test_an_engine_that_nobody_has_seen_is_like_its_kind() -> None:
    """And one that is unlike shows it: the others are not slower for that."""
    clock = Clock()
    kind = Pace(clock=clock)
    one, other, unlike = (Pace(clock=clock, kind=kind) for _ in range(3))
    prefills(one, clock, 300)
    for pace in (other, unlike):
        assert pace.base == pace.prior
        pace.rest()
        assert pace.base.prefill_s(8000) == pytest.approx(TRUE.prefill_s(8000), rel=0.1)
    prefills(unlike, clock, 300, slow=3.0)
    assert unlike.speed.prefill_s(8000) == pytest.approx(3 * TRUE.prefill_s(8000), rel=0.25)
    prefills(one, clock, 1)
    assert one.speed.prefill_s(8000) == pytest.approx(TRUE.prefill_s(8000), rel=0.15)


def test_another_process_starts_from_the_prior() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    prior = pace.speed
    prefills(pace, clock, 50, slow=4.0)
    pace.reset()
    assert (pace.speed, pace.lateness) == (prior, 1.0)


def test_a_queue_is_not_taken_for_slowness() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    prefills(pace, clock, 300)
    pick = random.Random(2)
    for _ in range(100):
        clock.now += 1.0
        waits = pick.uniform(0.1, 2.0)
        pace.prefilled(4000, 0, waits, max(OVERHEAD_S, waits) + TRUE.prefill_s(4000), 0, False)
    assert pace.lateness == 1.0


def test_company_is_not_taken_for_slowness() -> None:
    """Who comes while another is on its way shares its steps: in a burst short prompts take as long as long ones."""
    clock = Clock()
    pace = Pace(clock=clock)
    pick = random.Random(3)
    for at in range(600):
        clock.now += 1.0
        new, joined = pick.randrange(100, 8000), pick.randrange(0, 8000) if at % 2 else 0
        took_s = OVERHEAD_S + TRUE.prefill_s(new) + TRUE.prefill_s(joined)
        pace.prefilled(new, 0, 0.0, took_s, 0, not joined)
    assert pace.lateness == 1.0
    assert pace.overhead_s == pytest.approx(OVERHEAD_S, rel=0.1)
    for new in (500, 2000, 8000):
        assert pace.base.prefill_s(new) == pytest.approx(TRUE.prefill_s(new), rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e9), st.floats(0, 1e4)), max_size=60))
def test_a_line_never_goes_below_zero_or_mad(rows: list[tuple[float, float, float]]) -> None:
    line = Line((0.02, 1e-5, 2e-10), (1.0, 1e3, 1e7))
    for new, context, took in rows:
        line.learn((1.0, new, context), took)
        assert all(0.0 <= weight < 1e6 for weight in line.weights)


def test_links_are_fitted_by_pair_and_either_way_round() -> None:
    clock = Clock()
    links = Links({("a", "b"): Link(gbps=100.0)}, clock)
    assert links["a", "b"] == links["b", "a"]
    pick = random.Random(1)
    for _ in range(300):
        clock.now += 1.0
        tokens = pick.randrange(100, 50_000)
        links.pulled("b", "a", tokens, 0.03 + tokens * 2e-5)
    link = links["a", "b"]
    assert link.latency_us == pytest.approx(30_000, rel=0.1)
    assert 100_000 * 8e-9 / link.gbps == pytest.approx(2e-5, rel=0.1)
    assert links["a", "a"].gbps > link.gbps
    links.keep({"b", "c"})
    assert list(links) == []
    assert links["a", "b"].gbps == 100.0


def test_hosts_that_have_left_leave_no_links_behind() -> None:
    clock = Clock()
    links = Links({}, clock)
    for number in range(1000):
        clock.now += 1.0
        links.pulled(f"pod{number}", "d", 1000, 0.05)
        assert links[f"pod{number}", f"pod{number}"]
        links.keep({f"pod{number}", "d"})
    assert len(links) == 2


def test_traffic_is_counted_over_half_a_minute_and_objectives_set_a_price() -> None:
    clock = Clock()
    traffic = Traffic(2.0, 0.05, clock)
    for _ in range(int(8 * WINDOW_S)):
        clock.now += 0.25
        traffic.arrived(0.1)
    arrivals, work = traffic.rates()
    assert arrivals == pytest.approx(4.0, rel=0.1)
    assert work == pytest.approx(0.4, rel=0.1)
    for _ in range(200):
        traffic.ended(0.5, 0.2)
    assert 3.0 < traffic.itl_price <= 4.0
    for _ in range(400):
        traffic.ended(9.0, 0.01)
    assert 0.1 <= traffic.itl_price < 0.2
    clock.now += 10 * WINDOW_S
    assert traffic.rates()[0] < 0.01


@pytest.mark.parametrize("waits", [(0.0, 0.0, 0.02, 0.1, 0.5), (0.0, 0.0, 0.0, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_a_fit_does_not_run_away(seed: int, waits: tuple[float, ...]) -> None:
    """Thousands of pulls, many of which met a wait that is none of the link's."""
    pick = random.Random(seed)
    line = Line((0.05, 2e-6), (1.0, 1e4))
    for at in range(4000):
        tokens = int(pick.lognormvariate(8.5, 1.2))
        line.learn((1.0, float(tokens)), 0.1 + tokens * 1.5e-6 + pick.choice(waits))
        if at > 200:
            for usual in (100, 5000, 50_000):
                assert 0.3 < line.expect((1.0, float(usual))) / (0.1 + usual * 1.5e-6) < 4


def test_late_starts_lower_the_price_only_where_they_are_many() -> None:
    traffic = Traffic(2.0, 0.05, Clock())
    for at in range(1000):
        traffic.ended(3.0 if at % 20 == 0 else 0.3, 0.01)
    assert traffic.itl_price == pytest.approx(1.0)
    for at in range(1000):
        traffic.ended(3.0 if at % 4 == 0 else 0.3, 0.01)
    assert traffic.itl_price < 0.5
    for _ in range(1000):
        traffic.ended(0.3, 0.08)
    assert traffic.itl_price == pytest.approx(4.0)

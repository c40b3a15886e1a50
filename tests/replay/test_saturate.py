"""The highest load that is borne is found, wherever it is."""

import pytest

from load.latencies import Spread
from load.replay.outcome import Outcome
from load.replay.saturate import limit


def _outcome(met: float, span_s: float, refused: int = 0) -> Outcome:
    none = Spread(0, 0, 0, 0)
    return Outcome(
        requests=100,
        refused=refused,
        ttft_ms=none,
        itl_ms=none,
        tpot_ms=none,
        e2e_ms=none,
        slo_met=met,
        goodput_rps=0,
        hit_rate=0,
        local_share=0,
        transferred_tb=0,
        balance=1,
        span_s=span_s,
    )


@pytest.mark.parametrize("breaks_at", [0.02, 0.7, 1.0, 3.3, 40.0, 900.0])
def test_it_is_found_within_a_percent(breaks_at: float) -> None:
    calls = []

    def run(speed: float) -> Outcome:
        calls.append(speed)
        return _outcome(1.0 if speed <= breaks_at else 0.5, 100 / speed)

    found = limit(run, 0.95, 4, 2048)
    assert found.speed <= breaks_at <= found.speed * 1.01
    assert found.per_gpu == pytest.approx(found.speed / 4)
    assert len(calls) < 25


def test_a_fleet_that_bears_nothing_says_so() -> None:
    def run(speed: float) -> Outcome:
        return _outcome(0.0, 1.0, refused=100)

    assert limit(run, 0.95, 4, 64).speed == 0


def test_traffic_that_is_too_short_is_not_taken_for_a_limit() -> None:
    def run(speed: float) -> Outcome:
        assert speed <= 5
        return _outcome(1.0, 1.0)

    found = limit(run, 0.95, 4, 5)
    assert (found.speed, found.more) == (4, True)

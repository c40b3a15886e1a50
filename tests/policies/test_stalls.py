"""The price of pauses: it rises with those that are too many, falls with time to spare, and knows where they were."""

import math

import pytest

from policies.contract import Engine
from policies.stalls import MEMORY, Stalls


def engine(name: str = "d0", busy: int = 20) -> Engine:
    return Engine(name=name, role="decode", decode_requests=busy, decode_tokens=busy * 1000)


def test_stalls_beyond_their_share_cost_more_each_time_and_calm_costs_less() -> None:
    stalls = Stalls(0.01, 0.05, 1.5)
    first = stalls.price
    for _ in range(20):
        stalls.placed(engine(), 9000, 0.1, 300, 0.0)
    dear = stalls.price
    assert dear > first
    for _ in range(400):
        stalls.placed(None, 9000, 0.1, 300, 0.0)
    assert stalls.price == 0.05
    for _ in range(400):
        stalls.placed(engine(busy=200), 90_000, 2.0, 300, 0.0)
    assert stalls.price == 1.5


def test_a_prefill_within_a_step_is_no_stall() -> None:
    stalls, calm = Stalls(0.01, 0.05, 1.5), Stalls(0.01, 0.05, 1.5)
    stalls.placed(engine(), 100, 0.001, 300, 0.0)
    calm.placed(None, 100, 0.001, 300, 0.0)
    assert stalls.price == calm.price


def test_short_pauses_count_for_less_than_they_take_and_long_ones_for_all() -> None:
    stalls = Stalls(0.01, 0.05, 1.5)
    assert stalls.stalled_s(engine(), 0.01) < 0.005
    assert stalls.stalled_s(engine(), 1.0) == 1.0


def test_where_stalls_were_is_remembered_for_so_many_decode_steps() -> None:
    stalls, busy = Stalls(0.01, 0.05, 1.5), engine("d1")
    memory_s = MEMORY * busy.speed.decode_s(20, 20_000)
    stalls.placed(busy, 9000, 0.5, 300, 100.0)
    soon, later = stalls.rate("d1", 100.0), stalls.rate("d1", 100.0 + memory_s)
    assert soon == pytest.approx(0.5 / memory_s)
    assert later == pytest.approx(soon / math.e)
    assert stalls.rate("d0", 100.0) == 0.0

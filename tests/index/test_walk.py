"""Every implementation against the naive model, over random walks that hypothesis chooses and shrinks."""

import asyncio
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.index.conftest import Maker
from tests.index.walk import Walk

BURST = 40
"""Changes and their checks under one seed; shrinking drops whole bursts."""

BURSTS = 25


@pytest.mark.timeout(300)
@pytest.mark.parametrize("width", [4, 8, 32])
def test_a_random_walk_answers_as_the_naive_model_does(maker: Maker, width: int) -> None:
    walked = 0

    async def walk(seeds: list[int]) -> None:
        nonlocal walked
        made = await maker.make(width)
        try:
            walk = Walk(made.index, made.faults)
            for seed in seeds:
                pick = Random(seed)
                for _ in range(BURST):
                    await walk.step(pick)
            walked += walk.steps
        finally:
            await made.close()

    seeds = st.lists(st.integers(0, 2**32), min_size=BURSTS, max_size=BURSTS)

    @settings(max_examples=maker.walks, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(seeds)
    def walks(seeds: list[int]) -> None:
        asyncio.run(walk(seeds))

    walks()
    assert walked > 3000 * maker.walks

"""The fleet files that come with compose.yaml."""

from pathlib import Path

import pytest

from engines.fleet import Fleet

FLEETS = Path(__file__).parents[2] / "docker" / "fleets"


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_all_gpus_of_a_node_are_used(gpus: int) -> None:
    fleet = Fleet.load(FLEETS / f"{gpus}.toml")
    assert sorted({gpu for engine in fleet.engines for gpu in engine.gpus}) == list(range(gpus))
    assert {engine.role for engine in fleet.engines[: len(fleet.engines) // 2]} == {"prefill"}


@pytest.mark.parametrize("name", ["cpu", "sim"])
def test_the_others_need_none(name: str) -> None:
    fleet = Fleet.load(FLEETS / f"{name}.toml")
    assert not any(engine.gpus for engine in fleet.engines)

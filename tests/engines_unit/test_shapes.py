"""Layouts as data: presets, shapes, several hosts, near GPUs together; every one is a fleet that can be started."""

import tomllib

import pytest
from typer.testing import CliRunner

from engines.command import app
from engines.fleet import Fleet, FleetError
from engines.shapes import lay, places
from engines.topology import Topology, parse
from engines.vllm import launch
from tests.engines_unit.test_topology import PAIRS

SHAPES = {
    "packed": [("prefill", 1)] * 4 + [("decode", 1)] * 4,
    "collocated": [("both", 1)] * 8,
    "1P-TP4+1D-TP4": [("prefill", 4), ("decode", 4)],
    "2P-TP2+1D-TP4": [("decode", 4), ("prefill", 2), ("prefill", 2)],
    "2p+1d-tp2": [("decode", 2), ("prefill", 1), ("prefill", 1)],
}


def laid(preset: str, *hosts: str, gpus: int = 8, topology: Topology | None = None) -> Fleet:
    return lay("m", places(hosts, preset, gpus), topology)


@pytest.mark.parametrize(("preset", "engines"), SHAPES.items())
def test_on_one_host(preset: str, engines: list[tuple[str, int]]) -> None:
    fleet = laid(preset)
    assert [(engine.role, engine.tp) for engine in fleet.engines] == engines
    used = [gpu for engine in fleet.engines for gpu in engine.gpus]
    assert len(used) == len(set(used)) <= 8
    for engine in fleet.engines:
        command, env = launch(fleet, engine)
        assert len(env["CUDA_VISIBLE_DEVICES"].split(",")) == engine.tp
        assert ("--tensor-parallel-size" in command) == (engine.tp > 1)
    assert Fleet.parse(tomllib.loads(fleet.to_toml())) == fleet


def test_near_gpus_make_an_engine() -> None:
    fleet = laid("1P-TP2+1D-TP2", gpus=4, topology=parse(PAIRS))
    assert [engine.gpus for engine in fleet.engines] == [(0, 2), (1, 3)]


def test_over_hosts() -> None:
    fleet = laid("spread", "a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3", gpus=2)
    where = {(engine.host, engine.role) for engine in fleet.engines}
    assert where == {("a", "prefill"), ("b", "decode"), ("c", "decode")}
    assert len({engine.name for engine in fleet.engines}) == 6
    assert fleet.url(fleet.engines[2]) == "http://10.0.0.2:8101"


def test_unlike_hosts() -> None:
    fleet = laid("packed", "a=10.0.0.1/4P-TP2", "b=10.0.0.2/2D-TP4", "c=10.0.0.3")
    assert [sum(e.host == host for e in fleet.engines) for host in "abc"] == [4, 2, 8]


@pytest.mark.parametrize(
    ("preset", "hosts", "gpus", "mend"),
    [
        ("9P", (), 8, "needs 9 GPUs, localhost has 8: give another --preset"),
        ("4Q", (), 8, "or a shape like 2P-TP2"),
        ("packed", (), 1, "give --gpus 2 or more"),
        ("spread", (), 8, "name the hosts"),
        ("spread", ("a=1.2.3.4",), 8, "two hosts or more"),
        ("packed", ("a",), 8, "give NAME=ADDRESS"),
        ("4P", (), 8, "no engine with role 'decode'"),
    ],
)
def test_what_cannot_be(preset: str, hosts: tuple[str, ...], gpus: int, mend: str) -> None:
    with pytest.raises(FleetError, match=mend):
        laid(preset, *hosts, gpus=gpus)


def test_printed() -> None:
    shown = CliRunner().invoke(app, ["layout", "--preset", "2P-TP2+1D-TP4", "--model", "org/m"])
    assert shown.exit_code == 0
    assert len(Fleet.parse(tomllib.loads(shown.stdout)).engines) == 3
    assert CliRunner().invoke(app, ["layout", "--preset", "9P"]).exit_code == 2

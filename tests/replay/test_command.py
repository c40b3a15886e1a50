"""`baton replay`: what it prints and writes, what it refuses, and what Ctrl-C leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import build
from load.replay.simulate import Simulation

TRAFFIC = ("--workload", "chat:rate=3,minutes=0.5,prompt=600")


def replay(*arguments: str) -> Result:
    return CliRunner().invoke(build("replay"), ["replay", *arguments])


def figures(*arguments: str) -> dict[str, Any]:
    result = replay(*TRAFFIC, "--json", "-", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_figures_have_the_names_that_were_promised() -> None:
    found = figures("--policy", "joint,kv_cost", "--fleet", "2P2D")["policies"]
    assert set(found) == {"joint", "kv_cost"}
    for one in found.values():
        for times in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
            assert 0 < one[times]["p50"] <= one[times]["p90"] <= one[times]["p99"] and one[times]["mean"] > 0
        assert one["requests"] > 50 and one["refused"] == 0
        assert 0 <= one["slo_met"] <= 1 and one["goodput_rps"] > 0 and 0 <= one["local_share"] <= 1
        assert 0 < one["hit_rate"] <= one["ideal_hit_rate"]
        assert one["pooled_lru_hit_rate"] <= one["oracle_hit_rate"] <= one["ideal_hit_rate"]
        assert one["transferred_tb"] >= 0 and one["balance"] >= 1


def test_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    found = figures("--policy", "kv_cost", "--fleet", "1P1D,2C", "--speed", "x1,x2", "--kv-blocks", "256,512")
    assert "kv_cost 1P1D/256 x1" in found["policies"] and len(found["policies"]) == 8


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    assert replay(*TRAFFIC, "--policy", "joint", "--fleet", "1P1D", "--plot", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_stricter_objective_is_met_by_fewer() -> None:
    loose = figures("--policy", "joint", "--fleet", "1P1D")["policies"]["joint"]
    strict = figures("--policy", "joint", "--fleet", "1P1D", "--ttft-slo-s", "0.06")["policies"]["joint"]
    assert strict["slo_met"] < loose["slo_met"] and strict["goodput_rps"] < loose["goodput_rps"]


def test_the_cheapest_fleet_that_bears_a_load_is_found(tmp_path: Path) -> None:
    """Engines on two GPUs are half as fast; all splits of three are tried."""
    path = tmp_path / "l.json"
    arguments = ("--policy", "joint", "--bears", "0.9", "--json", str(path), "--ttft-slo-s", "1")
    result = replay(
        "--workload", "chat:rate=2,minutes=2,prompt=4000,turns=2", "--fleet", "3PD,1C@gpt-oss-120b-h100-tp2", *arguments
    )
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert [(one["fleet"], one["gpus"]) for one in found["limits"]] == [
        ("1P2D", 12),
        ("2P1D", 12),
        ("1C@gpt-oss-120b-h100-tp2", 2),
    ]
    able = [one for one in found["limits"] if one["speed"] >= 1]
    assert found["cheapest"]["gpus"] == min(one["gpus"] for one in able)
    for one in able:
        assert one["outcome"]["slo_met"] >= 0.9
    assert f"bears x1: {found['cheapest']['fleet']}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--trace FILE or --workload"),
        ([*TRAFFIC, "--trace", "x"], "one of them"),
        (["--trace", "/nowhere/x.jsonl"], "No such file"),
        (["--workload", "chat:rate=0"], "$.rate"),
        (["--workload", "chat:rate=1,minutes=-1"], "$.minutes"),
        (["--workload", "burst:rate=nan"], "$.rate"),
        (["--workload", "chat:minutes=inf"], "$.minutes"),
        (["--workload", "chat:turns=0"], "$.turns"),
        ([*TRAFFIC, "--fleet", "4X"], "4X"),
        ([*TRAFFIC, "--fleet", ","], "names no fleet"),
        ([*TRAFFIC, "--fleet", "1PD"], "names no fleet"),
        ([*TRAFFIC, "--fleet", "2C@nothing"], "no profile"),
        ([*TRAFFIC, "--fleet", "nowhere.toml"], "nowhere.toml"),
        ([*TRAFFIC, "--profile", "nothing"], "no profile"),
        ([*TRAFFIC, "--policy", "nothing"], "nothing"),
        ([*TRAFFIC, "--speed", "fast"], "write x2"),
        ([*TRAFFIC, "--speed", "x0"], "write x2"),
        ([*TRAFFIC, "--kv-blocks", "many"], "--kv-blocks"),
        ([*TRAFFIC, "--slow", "p0"], "NAME=FACTOR@FROM-TO"),
        ([*TRAFFIC, "--slow", "x9=2@0-1"], "no engine x9"),
        ([*TRAFFIC, "--bears", "0.9", "--speed", "x1,x2"], "give one --speed"),
        ([*TRAFFIC, "--plot", "x.gif"], ".png or .svg"),
        ([*TRAFFIC, "--json", "/nowhere/x.json"], "there is no folder"),
    ],
)
def test_mistakes_are_named_with_their_mend(arguments: list[str], said: str) -> None:
    result = replay(*arguments)
    assert result.exit_code == 2 and said in result.stderr, result.output


def test_ctrl_c_shows_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    left = Simulation._left

    def broken_off(self: Simulation, job: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 40:
            raise KeyboardInterrupt
        left(self, job)

    monkeypatch.setattr(Simulation, "_left", broken_off)
    result = replay(*TRAFFIC, "--policy", "joint,kv_cost", "--json", "-")
    assert result.exit_code == 130
    assert list(json.loads(result.stdout)["policies"]) == ["joint"]
    assert json.loads(result.stdout)["policies"]["joint"]["requests"] == 40
    first = json.loads(replay(*TRAFFIC, "--requests", "40", "--policy", "joint", "--json", "-").stdout)
    assert json.loads(result.stdout)["ideal_hit_rate"] == first["ideal_hit_rate"], "bounds are of what was replayed"
    assert "stopped" in result.stderr

"""Fitting finds the coefficients that a table was made with, reads names by their grammar, and says what is wrong."""

import json
import math
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import typer
from msgspec.structs import astuple, replace
from typer.testing import CliRunner

from engines.model import profile
from engines.model.profile import Profile
from load.fit.closed import SEARCHED, UNSEEN, model, run
from load.fit.coefficients import bounded, concerns, profiles, speeds, start
from load.fit.command import fit
from load.fit.doubts import doubts
from load.fit.kinds import Kind, held_out, kinds
from load.fit.search import Search, errors, loss
from load.fit.table import COLUMNS, BadTable, Figures, Row, Setup, Table, parse, setup

BASE = profile.load("gpt-oss-120b-h100-tp4")
PROMPT, ANSWER = 2000, 60
HEADER = ",".join(COLUMNS)
EXPERIMENTS = ("mixed_baseline_2xtp4", "mixed_pack_p1xtp4-d1xtp4", "mixed_spread_tcp_1xtp4-1xtp4")


def line(
    experiment: str,
    clients: int,
    figures: Figures,
    itl_p50_ms: float = 6.0,
    ttft_p99_ms: float = 900.0,
    rounds: int = 4,
) -> str:
    """A measured run, of 2000 tokens in and 60 out."""
    requests, rps = rounds * clients, figures.rps
    output = f"{rps * ANSWER:.6f},{rps * (PROMPT + ANSWER):.6f}"
    times = (figures.ttft_p50_ms, ttft_p99_ms, figures.tpot_p50_ms, itl_p50_ms, figures.itl_p99_ms)
    return f"{experiment},{clients},{requests},{requests / rps:.6f},{rps},{output}," + ",".join(map(str, times))


def table(*lines: str) -> Table:
    return parse([HEADER, *lines], "t.csv")


def measured(true: Profile, gbps: float, experiments: Iterable[str] = EXPERIMENTS) -> list[str]:
    """Runs of engines that are exactly as the model says."""
    blank = table(*(line(name, n, Figures(1, 1, 1, 1)) for name in experiments for n in (2, 4, 8)))
    rows = [(row, run(row, {4: true}, {"tcp": gbps})) for row in blank.rows]
    return [line(row.experiment, row.clients, figures) for row, figures in rows]


def invoke(*arguments: str, code: int = 0) -> str:
    app = typer.Typer()
    app.command()(fit)
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


# Names.


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("mixed_baseline_2xtp4", Setup(None, (2, 4))),
        ("mixed_pd_p1xtp2-d3xtp2", Setup((1, 2), (3, 2))),
        ("mixed_pd_p2xtp2-d1xtp4", Setup((2, 2), (1, 4))),
        ("mixed_pack_p1xtp4-d1xtp4", Setup((1, 4), (1, 4))),
        ("mixed_spread_srd_1xtp4-1xtp4", Setup((1, 4), (1, 4), "srd")),
        ("mixed_spread_tcp_p1xtp4-d1xtp4", Setup((1, 4), (1, 4), "tcp")),
    ],
)
def test_a_name_says_which_engines(name: str, means: Setup) -> None:
    assert setup(name) == means


@pytest.mark.parametrize(
    "name", ["", "baseline_2xtp4", "mixed_pd_p1xtp2", "mixed_baseline_0xtp4", "mixed_pd_p1xtp0-d1xtp2"]
)
def test_a_name_that_says_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"mixed_baseline_2xtp4|no engine"):
        setup(name)


# Tables.


def test_a_row_is_read_with_the_lengths_that_its_throughputs_tell() -> None:
    row = table(line("mixed_baseline_2xtp4", 4, Figures(150.0, 6.0, 70.0, 3.0))).rows[0]
    assert (row.prompt, row.answer, row.clients, row.requests) == (PROMPT, ANSWER, 4, 16)
    assert row.measured == Figures(150.0, 6.0, 70.0, 3.0)


def test_rows_that_cannot_be_placed_are_named_and_left_out() -> None:
    figures = Figures(150.0, 6.0, 7.0, 3.0)
    known = line("mixed_pd_p1xtp4-d1xtp4", 4, figures)
    found = table(known, line("prefill_only", 4, figures), line("mixed_pack_p1xtp4-d1xtp4", 4, figures))
    assert [row.line for row in found.rows] == [2]
    assert "line 3: 'prefill_only'" in found.left_out[0]
    assert "line 4" in found.left_out[1] and "is the run of line 2" in found.left_out[1]


def test_a_wrong_table_is_refused_with_line_and_mend() -> None:
    good = line("mixed_baseline_2xtp4", 4, Figures(150.0, 6.0, 70.0, 3.0))
    for lines, said in (
        (["experiment,concurrency"], "t.csv:1: no column requests"),
        ([HEADER], "there is no row below the header"),
        ([HEADER, good.replace(",150.0,", ",fast,")], "t.csv:2: median_ttft_ms is fast: write a number above 0"),
        ([HEADER, good, good.replace(",4,16,", ",4.5,16,")], "t.csv:3: concurrency is 4.5: write a whole number"),
        ([HEADER, "mixed_baseline_2xtp4,4"], "t.csv:2: duration_s is empty"),
        ([HEADER, good.replace(f",{3.0 * ANSWER:.6f},", ",0.1,")], "t.csv:2: its throughputs tell of 2060 tokens in"),
    ):
        with pytest.raises(BadTable, match=said):
            parse(lines, "t.csv")


# Kinds of rows, and doubts.


def sorted_out(*lines: str) -> dict[str, Kind]:
    return {row.label: kind for row, kind in kinds(table(*lines).rows).items()}


def test_what_the_model_cannot_explain_is_not_fitted() -> None:
    fine, stalled = Figures(200.0, 6.0, 9.0, 3.0), Figures(201.0, 6.0, 90.0, 3.0)
    found = sorted_out(
        line("mixed_baseline_2xtp4", 4, stalled),
        line("mixed_pd_p1xtp4-d1xtp4", 4, fine),
        line("mixed_pd_p1xtp4-d1xtp4", 8, stalled),
        line("mixed_pd_p1xtp2-d1xtp4", 4, fine),
        line("mixed_spread_tcp_p1xtp4-d1xtp4", 4, replace(fine, ttft_p50_ms=16_000.0)),
        line("mixed_spread_srd_p1xtp4-d1xtp4", 4, replace(fine, ttft_p50_ms=220.0)),
    )
    assert list(found.values()) == [
        Kind.COLLOCATED,
        Kind.SPLIT,
        Kind.STALLED,
        Kind.UNLIKE,
        Kind.SLOW,
        Kind.SPLIT,
    ]


def test_another_row_of_each_experiment_is_held_out() -> None:
    rows = table(*(line(name, n, Figures(n, 6, 9, 3)) for name in EXPERIMENTS for n in range(1, 7))).rows
    held = held_out(rows)
    assert [[row.clients for row in rows if row in held and row.experiment == name] for name in EXPERIMENTS] == [
        [3, 6],
        [2, 5],
        [1, 4],
    ]


def test_contradictions_are_named() -> None:
    long, short = Figures(300.0, 12.0, 140.0, 20.0), Figures(300.0, 8.0, 9.0, 30.0)
    found = table(
        line("mixed_baseline_1xtp4", 32, long),
        line("mixed_pd_p1xtp4-d1xtp4", 32, short),
        line("mixed_pd_p2xtp4-d1xtp4", 32, Figures(300.0, 12.0, 13.0, 20.0)),
        line("mixed_pd_p1xtp4-d2xtp4", 32, replace(short, itl_p99_ms=90.0)),
        line("mixed_pd_p1xtp4-d3xtp4", 4, replace(short, rps=3.1), ttft_p99_ms=4000.0),
        line("mixed_pd_p1xtp4-d3xtp4", 8, replace(short, rps=6.1), ttft_p99_ms=600.0),
    )
    said = doubts(kinds(found.rows), chunk_tokens=2048)
    assert len(said) == 4
    for text, wanted in zip(
        said, ("ITL p99 90 ms", "a prefill of 2000 tokens", "TPOT 12 ms", "TTFT p99 4000"), strict=True
    ):
        assert wanted in text


# The closed loop.


def test_in_a_closed_loop_each_client_waits_for_its_answer() -> None:
    """One client: every request finds the engine empty, and the figures can be told in closed form."""
    row = table(line("mixed_baseline_1xtp4", 1, Figures(1, 1, 1, 1))).rows[0]
    ttft_s = BASE.leg_s + BASE.step_s + BASE.prefill_s(PROMPT)
    tpot_s = BASE.decode_s(1, PROMPT + (ANSWER - 1) / 2 + 0.5)
    found = run(row, {4: BASE}, {})
    assert found.ttft_p50_ms == pytest.approx(1e3 * ttft_s)
    assert found.tpot_p50_ms == pytest.approx(1e3 * tpot_s, rel=1e-3)
    assert found.rps == pytest.approx(1 / (ttft_s + (ANSWER - 1) * tpot_s), rel=1e-3)


def test_a_slow_network_is_waited_for() -> None:
    near, far = (
        table(line(f"mixed_{kind}_p1xtp4-d1xtp4", 1, Figures(1, 1, 1, 1))).rows[0] for kind in ("pd", "spread_tcp")
    )
    more_ms = run(far, {4: BASE}, {"tcp": 1.0}).ttft_p50_ms - run(near, {4: BASE}, {}).ttft_p50_ms
    bits = PROMPT * BASE.kv_bytes_per_token * 8
    assert more_ms == pytest.approx(1e3 * bits * (1e-9 - 1e-9 / BASE.link_gbps))


def test_disaggregation_takes_the_prefills_out_of_the_pauses() -> None:
    """As measured: 134 ms collocated, 25 split."""
    rows = table(*(line(name, 64, Figures(1, 1, 1, 1)) for name in EXPERIMENTS[:2])).rows
    collocated, split = (run(row, {4: BASE}, {}) for row in rows)
    assert collocated.itl_p99_ms > 3 * split.itl_p99_ms


def test_a_run_meets_prompts_of_those_before_it() -> None:
    """Twice as many clients send the same prompts and as many new ones; of four engines not each had them all."""
    lines = [line("mixed_pd_p1xtp4-d1xtp4", clients, Figures(clients, 1, 1, 1)) for clients in (4, 8)]
    first, second = table(*lines).rows
    assert (first.earlier, second.earlier) == ((), (16,))
    assert model(first, {4: BASE}, {}, [0]).computed == 1.0
    cached = (PROMPT - 1) // 16 * 16 / PROMPT
    assert model(second, {4: BASE}, {}, [0]).computed == pytest.approx(1 - cached / 2)
    alone = replace(second, earlier=())
    assert run(second, {4: BASE}, {}).ttft_p50_ms < run(alone, {4: BASE}, {}).ttft_p50_ms
    spread = replace(second, setup=Setup((4, 4), (1, 4)))
    assert 1 - cached / 2 < model(spread, {4: BASE}, {}, [0]).computed < 1


# The search.


def test_the_search_finds_what_a_table_was_made_with() -> None:
    true = replace(BASE, token_s=14e-6, step_s=9e-3, sequence_s=2e-4, mix=1.6, leg_s=0.03, second_leg_s=0.06)
    rows = table(*measured(true, 2.0)).rows
    held = held_out(rows)
    search = Search(
        [row for row in rows if row not in held],
        BASE,
        {**start(BASE, 4, rows), "tcp.gbps": 5.0},
        ("tp4.token_s", "tp4.step_s", "tp4.sequence_s", "mix", "leg_s", "second_leg_s", "tcp.gbps"),
        seed=3,
    )
    before = search.loss
    search.run(lambda: search.tries < 900)
    assert search.loss < 0.03 < 0.15 < before
    engines, networks = profiles(search.values, BASE), speeds(search.values)
    unseen = list(held)
    assert loss(unseen, [errors(row, run(row, engines, networks)) for row in unseen]) < 0.06
    assert search.values["tp4.step_s"] == pytest.approx(true.step_s, rel=0.1)
    assert search.values["tcp.gbps"] == pytest.approx(2.0, rel=0.1)


def test_the_seed_decides_the_search() -> None:
    rows = table(*measured(BASE, 100.0, EXPERIMENTS[:1])).rows
    found = []
    for seed in (1, 1, 2):
        search = Search(rows, BASE, start(BASE, 2, rows), start(BASE, 2, rows), seed)
        search.run(lambda search=search: search.tries < 25)  # type: ignore[misc]
        found.append((search.values, search.loss))
    assert found[0] == found[1] != found[2]


def test_a_number_touches_only_runs_that_depend_on_it() -> None:
    rows = table(
        *(
            line(name, 2, Figures(n + 1, 1, 1, 1))
            for n, name in enumerate(("mixed_baseline_2xtp4", "mixed_pd_p1xtp2-d1xtp4", "mixed_spread_x_1xtp2-1xtp2"))
        )
    ).rows
    touched = {name: [concerns(name, row) for row in rows] for name in start(BASE, 4, rows)}
    assert touched["tp4.token_s"] == [True, True, False]
    assert touched["tp2.token_s"] == [False, True, True]
    assert touched["x.gbps"] == [False, False, True]
    assert touched["second_leg_s"] == [False, True, True]
    assert touched["mix"] == [True, False, False]
    assert touched["leg_s"] == [True, True, True]


def test_a_start_is_scaled_to_other_sizes_and_kept_within_reason() -> None:
    rows = table(line("mixed_baseline_4xtp2", 2, Figures(1, 1, 1, 1))).rows
    assert start(BASE, 4, rows)["tp2.token_s"] == pytest.approx(2 * BASE.token_s)
    assert start(replace(BASE, join_s=0.0), 4, rows)["join_s"] > 0
    assert bounded("mix", 9.0) == 4.0 and bounded("mix", 0.5) == 1.0


# The command.


def test_the_command_writes_profiles_that_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([HEADER, *measured(BASE, 2.0)]))
    out = tmp_path / "profiles"
    result = json.loads(invoke("--table", str(path), "--out", str(out), "--tries", "20", "--json"))
    made = profile.load(str(out / "tp4.toml"))
    assert "fitted to runs.csv, TP4" in made.source and "held out" in made.source
    assert made.kv_bytes_per_token == BASE.kv_bytes_per_token
    assert len(result["points"]) == 9 and {point["use"] for point in result["points"]} >= {"fitted", "held out"}
    assert math.isclose(result["profiles"]["tp4"]["step_s"], made.step_s)
    again = json.loads(invoke("--table", str(path), "--tries", "20", "--json"))
    assert again["profiles"] == result["profiles"]


def test_the_command_shows_every_run(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([HEADER, *measured(BASE, 2.0, EXPERIMENTS[:1])]))
    shown = invoke("--table", str(path), "--tries", "2")
    assert "TTFT p50" in shown and "held out" in shown and "tp4.token_s" in shown


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(HEADER)
    assert "nothing to fit" in invoke("--table", str(path), code=2)
    path.write_text("\n".join([HEADER, line("mixed_pd_p1xtp2-d1xtp4", 2, Figures(9, 9, 9, 9))]))
    assert "can be fitted" in invoke("--table", str(path), code=2)
    assert "does not end in tp" in invoke("--table", str(path), "--start", "x", code=2)
    assert "no profile" in invoke("--table", str(path), "--start", "x-tp4", code=2)
    assert "No such file" in invoke("--table", str(tmp_path / "none.csv"), code=2)


def test_ctrl_c_gives_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(search: Search, more: object) -> None:
        search.values["leg_s"] = 0.0123456
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", broken_off)
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([HEADER, *measured(BASE, 2.0, EXPERIMENTS[:1])]))
    invoke("--table", str(path), "--out", str(tmp_path))
    assert tomllib.loads((tmp_path / "tp4.toml").read_text())["leg_s"] == 0.0123


def test_reports_use_placements_that_the_search_has_not_seen() -> None:
    assert not set(SEARCHED) & set(UNSEEN)
    row: Row = table(line("mixed_baseline_4xtp4", 9, Figures(1, 1, 1, 1))).rows[0]
    assert astuple(run(row, {4: BASE}, {}, [1])) != astuple(run(row, {4: BASE}, {}, [2]))

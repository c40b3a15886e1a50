"""Policies come and go while requests run; a bad one is refused, stopped or rolled back, and no request fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engines.double import Double
from gateway.app import App
from gateway.dispatch.exchange import shown
from gateway.fleet.fleet import Fleet as Engines
from gateway.routing import folder
from gateway.routing.slot import IN_A_ROW
from gateway.settings import Settings, SettingsError
from policies.command import app as policies
from tests.gateway.conftest import Gateway, until

BODY: dict[str, Any] = {"model": "m", "prompt": "tell me", "max_tokens": 2}
INF = float("inf")
MOST = 20_000
"""Requests of one test, at most."""
WITHIN_S = 40.0

HEAD = """import os, time
from policies.contract import Fleet, Placement, Request

class Mine:
    def place(self, request: Request, fleet: Fleet) -> Placement:
        decode = fleet.decoders[0].name
        live = any(engine.name == "dora" for engine in fleet.engines)
"""
GOOD = HEAD + '        return Placement(decode=decode, reason="first")\n'
"""What follows is good for as long as it is examined."""
RAISES = HEAD + '        return Placement(decode=decode, reason=["first"][live])\n'
LOOPS = HEAD + '        while live: pass\n        return Placement(decode=decode, reason="first")\n'
NOBODYS = HEAD + '        return Placement(decode="nobody" if live else decode, reason="first")\n'
EXITS = HEAD + '        if live: raise SystemExit(1)\n        return Placement(decode=decode, reason="first")\n'
NOT_GOOD = HEAD + '        return Placement(decode="nobody", reason="first")\n'


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "POLL_S", 0.02)


@asynccontextmanager
async def gateway(path: Path | str = "", **settings: Any) -> AsyncIterator[Gateway]:
    settings = {"policy": "round_robin", "policies_folder": str(path), "policy_budget_ms": 1000.0, **settings}
    async with Double("prefill", "paul") as p, Double("decode", "dora") as d0, Double("decode", "dirk") as d1:
        async with Gateway.over(p, d0, d1, **settings) as made:
            yield made


@asynccontextmanager
async def requests(of: Gateway) -> AsyncIterator[list[int]]:
    """Requests one after the other on two connections, while the block lasts; their statuses."""
    statuses: list[int] = []
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set() and len(statuses) < MOST:
            statuses.append((await of.http.post("/v1/completions", json=BODY)).status_code)

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(ask())
        yield statuses
        done.set()
    assert set(statuses) == {200}


def live(of: Gateway, use: str = "live") -> str:
    """The policy in use, by its metric."""
    text = of.app.metrics.render().decode()
    lines = [line for line in text.splitlines() if line.startswith("baton_policy_info") and f'use="{use}"' in line]
    return lines[0].partition('policy="')[2].partition('"')[0] if lines else ""


def swaps(of: Gateway, policy: str, outcome: str) -> float:
    return of.metric("baton_policy_swaps_total", policy=policy, outcome=outcome)


def placed(of: Gateway, policy: str) -> float:
    return of.metric("baton_decision_seconds_count", policy=policy)


async def warnings(of: Gateway) -> list[str]:
    """What it says of policy files that are not in use."""
    report = (await of.http.get("/readyz?verbose")).json()
    return [text for text in report["warnings"] if text.startswith("policy file")]


def new(name: str, path: Path) -> None:
    """`baton policies new`, and the file alone is dropped in, in one step."""
    aside = path.parent / "aside"
    assert CliRunner().invoke(policies, ["new", name, "--folder", str(aside)]).exit_code == 0
    (aside / f"{name}.py").rename(path / f"{name}.py")


def drop(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.rename(path)


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    made = tmp_path / "policies"
    made.mkdir()
    return made


async def test_a_new_policy_goes_live_and_bad_ones_go_back(watched: Path) -> None:
    async with gateway(watched) as g, requests(g) as statuses:
        await until(lambda: len(statuses) > 20, WITHIN_S)
        assert live(g) == "round_robin"
        new("short_queue", watched)
        await until(lambda: placed(g, "short_queue") > 20, WITHIN_S)
        assert live(g) == "short_queue"
        assert placed(g, "round_robin") > 20, "the old one's figures stay beside the new one's"
        for name, text, cause in (
            ("raises", RAISES, "raised"),
            ("loops", LOOPS, "stopped"),
            ("nobodys", NOBODYS, "nonsense"),
            ("exits", EXITS, "raised"),
        ):
            drop(watched / f"{name}.py", text)
            await until(lambda name=name: swaps(g, name, "rolled_back") == 1, WITHIN_S)  # type: ignore[misc]
            assert live(g) == "short_queue"
            assert swaps(g, name, "live") == 1
            assert g.metric("baton_policy_errors_total", policy=name, cause=cause) == IN_A_ROW
            assert placed(g, name) == IN_A_ROW
        asked, served = len(statuses), placed(g, "short_queue")
        await until(lambda: len(statuses) > asked + 20, WITHIN_S)
        assert placed(g, "short_queue") > served
        assert len([text for text in await warnings(g) if "rolled back after 3 failures in a row" in text]) == 4
    assert g.booked() == 0


async def test_a_file_that_fails_its_examination_is_refused(watched: Path) -> None:
    async with gateway(watched) as g, requests(g):
        drop(watched / "bad.py", NOT_GOOD)
        await until(lambda: swaps(g, "bad", "refused") == 1, WITHIN_S)
        assert live(g) == "round_robin"
        assert swaps(g, "bad", "live") == 0
        assert "'nobody' is not one of the decoders" in (await warnings(g))[0]
        drop(watched / "bad.py", GOOD)
        await until(lambda: live(g) == "bad", WITHIN_S)
        assert await warnings(g) == []


async def test_a_bad_edit_leaves_what_was_good(watched: Path) -> None:
    async with gateway(watched) as g, requests(g):
        drop(watched / "mine.py", GOOD)
        await until(lambda: live(g) == "mine", WITHIN_S)
        drop(watched / "mine.py", GOOD + "x = (\n")
        await until(lambda: swaps(g, "mine", "refused") == 1, WITHIN_S)
        before = placed(g, "mine")
        await until(lambda: placed(g, "mine") > before + 5, WITHIN_S)
        assert live(g) == "mine"


async def test_removed_files_give_way(watched: Path) -> None:
    async with gateway(watched) as g:
        drop(watched / "one.py", GOOD)
        await until(lambda: live(g) == "one", WITHIN_S)
        drop(watched / "two.py", GOOD)
        await until(lambda: live(g) == "two", WITHIN_S)
        (watched / "two.py").unlink()
        await until(lambda: live(g) == "one", WITHIN_S)
        (watched / "one.py").unlink()
        await until(lambda: live(g) == "round_robin", WITHIN_S)
        assert swaps(g, "one", "removed") == 1


async def test_what_is_there_at_the_start_is_used(watched: Path) -> None:
    drop(watched / "old.py", GOOD)
    drop(watched / "test_old.py", "1 / 0")
    async with gateway(watched) as g:
        await until(lambda: live(g) == "old", WITHIN_S)


async def test_the_shadow_is_asked_and_never_obeyed(watched: Path) -> None:
    def agreement(of: Gateway, leg: str, agrees: str) -> float:
        return of.metric("baton_shadow_agreement_total", policy="mine", leg=leg, agrees=agrees)

    (watched / "shadow").mkdir()
    async with gateway(watched) as g, requests(g):
        drop(watched / "shadow" / "mine.py", GOOD)
        await until(lambda: live(g, "shadow") == "mine", WITHIN_S)
        await until(lambda: agreement(g, "decode", "no") > 5 and agreement(g, "decode", "yes") > 5, WITHIN_S)
        assert live(g) == "round_robin"
        assert placed(g, "mine") == 0
        assert agreement(g, "prefill", "yes") == 0
        assert g.metric("baton_shadow_decision_seconds_count", policy="mine") >= agreement(g, "prefill", "no") > 0
        ttft_s = [
            g.metric("baton_shadow_predicted_ttft_seconds_total", policy="mine", of=of) for of in ("live", "shadow")
        ]
        assert 0 < ttft_s[1] < ttft_s[0], "it prefills where it decodes, which spares a leg"
        drop(watched / "shadow" / "loops.py", LOOPS)
        await until(lambda: swaps(g, "loops", "rolled_back") == 1, WITHIN_S)
        assert live(g, "shadow") == "mine"
        assert g.metric("baton_shadow_errors_total", policy="loops", cause="stopped") == IN_A_ROW
        assert g.metric("baton_policy_errors_total", policy="loops", cause="stopped") == 0


async def test_a_shadow_of_the_settings_that_fails_is_asked_no_more(tmp_path: Path) -> None:
    drop(tmp_path / "mine.py", RAISES)
    async with gateway(shadow_policy=str(tmp_path / "mine.py")) as g, requests(g):
        await until(lambda: swaps(g, "mine", "rolled_back") == 1, WITHIN_S)
        assert live(g, "shadow") == ""
        assert live(g) == "round_robin"


async def test_a_share_of_requests_is_shadowed() -> None:
    async with gateway(shadow_policy="least_loaded", shadow_ratio=0.0) as g, requests(g) as statuses:
        await until(lambda: len(statuses) > 20, WITHIN_S)
        assert g.metric("baton_shadow_decision_seconds_count", policy="least_loaded") == 0


async def test_a_policy_of_the_settings_that_stalls_is_given_up(tmp_path: Path) -> None:
    drop(tmp_path / "mine.py", LOOPS)
    async with gateway(policy=str(tmp_path / "mine.py")) as g, requests(g):
        await until(lambda: swaps(g, "mine", "rolled_back") == 1, WITHIN_S)
        assert live(g) == "least_loaded"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"d0": -0.25, "p0": 3, "d1": -1234.5678}, b"p0=3, d0=-0.25, d1=-1235"),
        ({f"e{n}": float(n) for n in range(1000)}, b", ".join(b"e%d=%d" % (n, n) for n in range(999, 991, -1))),
        ({"d0": float("nan"), "a\r\nb": 1.0, "d1": "high", 3: 1.0, "d2": 10**400, "d3": -INF, "d4": 1.0}, b"d4=1"),
        ([1.0], b""),
        (None, b""),
    ],
)
def test_scores_are_shown_whatever_a_policy_says_they_are(scores: object, expected: bytes) -> None:
    assert shown(scores) == expected


async def test_scores_are_shown_to_those_who_ask() -> None:
    async with gateway(policy="least_loaded") as g:
        answer = await g.http.post("/v1/completions", json=BODY, headers={"x-baton-facts": "1"})
        scores = dict(one.split("=") for one in answer.headers["x-baton-scores"].split(", "))
        assert scores.keys() == {"paul", "dora", "dirk"}
        assert "x-baton-scores" not in (await g.http.post("/v1/completions", json=BODY)).headers


FULL = """from policies.contract import Fleet, Placement, Request

class Full:
    def place(self, request: Request, fleet: Fleet) -> Placement:
        wanted = (request.ttft_slo_s, request.itl_slo_s)
        cause = {(0.25, 0.03): "queues", (2.0, 0.001): "memory"}.get(wanted, "")
        return Placement(decode=fleet.decoders[0].name, reason="first", saturated=cause)
"""
LATE = {"x-baton-ttft-slo-ms": "250", "x-baton-itl-slo-ms": "30"}
SLOW = {"x-baton-itl-slo-ms": "1"}


@pytest.mark.parametrize("refuse", [True, False])
async def test_what_no_engine_can_serve_in_time_is_refused_where_that_is_wanted(tmp_path: Path, refuse: bool) -> None:
    drop(tmp_path / "full.py", FULL)
    async with gateway(policy=str(tmp_path / "full.py"), refuse_saturated=refuse) as g:
        assert (await g.http.post("/v1/completions", json=BODY)).status_code == 200
        for cause, headers in (("queues", LATE), ("memory", SLOW)):
            answer = await g.http.post("/v1/completions", json=BODY, headers=headers)
            assert answer.status_code == (429 if refuse else 200)
            assert g.metric("baton_saturated_total", policy="full", cause=cause) == 1
            if refuse:
                assert answer.json()["error"]["code"] == "saturated"
                assert answer.headers["retry-after"] == "1"
    assert g.booked() == 0


@pytest.mark.parametrize("given", ["soon", "0", "-5", "nan", "inf"])
async def test_an_objective_that_is_none_is_said(given: str) -> None:
    async with gateway() as g:
        answer = await g.http.post("/v1/completions", json=BODY, headers={"x-baton-ttft-slo-ms": given})
        assert answer.status_code == 400
        assert "x-baton-ttft-slo-ms" in answer.json()["error"]["message"]


async def test_a_client_chooses_a_policy_where_it_may() -> None:
    chosen = {"x-baton-policy": "least_loaded"}
    async with gateway(policy_header=True) as g:
        assert (await g.http.post("/v1/completions", json=BODY, headers=chosen)).status_code == 200
        assert (await g.http.post("/v1/completions", json=BODY)).status_code == 200
        assert (placed(g, "least_loaded"), placed(g, "round_robin")) == (1, 1)
        refused = await g.http.post("/v1/completions", json=BODY, headers={"x-baton-policy": "os:system"})
        assert refused.status_code == 400
        assert "least_loaded" in refused.json()["error"]["message"]
    async with gateway() as g:
        assert (await g.http.post("/v1/completions", json=BODY, headers=chosen)).status_code == 200
        assert (placed(g, "least_loaded"), placed(g, "round_robin")) == (0, 1)


async def test_a_client_chooses_a_policy_if_its_key_allows_it(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\nsk-two  policy\n")
    async with gateway(api_keys_file=str(tmp_path / "keys")) as g:
        for key in ("sk-one", "sk-two"):
            headers = {"x-baton-policy": "least_loaded", "x-api-key": key}
            assert (await g.http.post("/v1/completions", json=BODY, headers=headers)).status_code == 200
            assert placed(g, "least_loaded") == (key == "sk-two")
        assert placed(g, "round_robin") == 1


def test_a_folder_that_is_none_is_said() -> None:
    with pytest.raises(SettingsError, match="create it"):
        App(Engines([]), Settings(policies_folder="/nowhere/at/all"))

"""Two fleets, each behind its gateway: what one cannot serve goes to the other whole, and never on from there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.double import Double
from engines.fleet import Fleet as FleetFile
from gateway.settings import Effective, SettingsError
from tests.gateway.conftest import Gateway, until
from tests.ports import fresh_port

BODY: dict[str, Any] = {"model": "m", "prompt": "From one region to another. " * 8, "max_tokens": 8, "unknown": [1.50]}


@asynccontextmanager
async def two(**settings: Any) -> AsyncIterator[tuple[Double, Gateway, Double, Gateway]]:
    """Ours and theirs: an engine and a gateway each, each the other's fallback."""
    port = fresh_port()
    back = {"url": f"http://127.0.0.1:{port}", "name": "near"}
    async with Double("both", "ours") as ours, Double("both", "theirs") as theirs:
        async with Gateway.over(theirs, fallback=[back]) as far:
            told = [{"url": far.url, "name": "far"}]
            async with Gateway.over(ours, port=port, fallback=told, engine_wait_s=5, **settings) as near:
                yield ours, near, theirs, far


async def down(gateway: Gateway, double: Double) -> None:
    await double.die()
    await until(lambda: not gateway.app.fleet.ready(), 5)


def generated(double: Double) -> list[Any]:
    return [request for request in double.requests if request.path == "/v1/completions"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fleet_that_is_down_has_its_requests_served_elsewhere(stream: bool) -> None:
    async with two() as (ours, near, _, _):
        body = {**BODY, "stream": stream}
        right = await near.http.post("/v1/completions", json=body)
        assert "x-baton-fallback" not in right.headers
        await down(near, ours)
        assert (await near.http.get("/readyz")).status_code == 200  # it serves, by the other
        answer = await near.http.post(
            "/v1/completions", json=body, headers={"x-request-id": "r1", "x-baton-facts": "1"}
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers.get_list("x-baton-fallback") == ["far"]
        assert answer.headers.get_list("x-request-id") == ["r1"]
        assert answer.headers["x-baton-decode"] == "theirs"
        assert text_of(answer, stream) == text_of(right, stream)
        assert near.metric("baton_fallback_total", fleet="far", reason="no_engine") == 1
        assert near.booked() == 0
        await ours.revive()
        await until(near.app.fleet.ready, 5)
        assert "x-baton-fallback" not in (await near.http.post("/v1/completions", json=body)).headers


def text_of(answer: httpx.Response, stream: bool) -> str:
    if not stream:
        text: str = answer.json()["choices"][0]["text"]
        return text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    return "".join(
        line.split('"text":"', 1)[1].split('"')[0] for line in answer.text.splitlines() if '"text":"' in line
    )


async def test_a_request_goes_on_once() -> None:
    """Both are down, and each is the other's fallback: the client gets the first one's own error, at once."""
    async with two() as (ours, near, theirs, far):
        await down(near, ours)
        await down(far, theirs)
        answer = await near.http.post("/v1/completions", json=BODY)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_engine"
        assert "x-baton-fallback" not in answer.headers
        assert near.metric("baton_fallback_failures_total", fleet="far") == 1
        assert far.metric("baton_fallback_failures_total", fleet="near") == 0
        assert far.metric("baton_requests_total", route="completions", model="m", outcome="failed") == 1
        assert near.metric("baton_requests_total", route="completions", model="m", outcome="failed") == 1
        assert any("fallback far failed: it answered with 503" in text for text in near.app._warnings())
        assert (await near.http.get("/readyz")).status_code == 503  # it rests: nobody serves


async def test_full_engines_are_a_reason_and_a_fallback_that_is_gone_changes_nothing() -> None:
    async with two(attempts=1) as (ours, near, theirs, _):
        ours.faults.set(error_next=2, error_status=503)
        answer = await near.http.post("/v1/completions", json=BODY)
        assert answer.headers["x-baton-fallback"] == "far"
        assert near.metric("baton_fallback_total", fleet="far", reason="engine_overloaded") == 1
        await theirs.die()
        near.app._fallbacks._fleets[0].pool.close()
        answer = await near.http.post("/v1/completions", json=BODY)
        assert answer.status_code == 503 and "injected fault" in answer.text  # the engine's own words
        assert near.app._fallbacks._fleets[0].why


async def test_what_is_wrong_with_a_request_is_not_sent_on() -> None:
    async with two() as (ours, near, theirs, _):
        assert (await near.http.post("/v1/completions", json={**BODY, "model": "x"})).status_code == 404
        ours.faults.set(error_next=9, error_status=500)
        assert (await near.http.post("/v1/completions", json=BODY)).status_code == 500
        assert not generated(theirs)


async def test_the_other_fleets_key_is_used_and_the_clients_is_not(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("theirs\n")
    async with Double("both", "ours") as ours, Double("both", "theirs") as theirs:
        async with Gateway.over(theirs, api_keys_file=str(keys)) as far:
            for key_file, status in ((str(keys), 200), ("", 503)):
                told = [{"url": far.url, "key_file": key_file}]
                async with Gateway.over(ours, fallback=told, engine_wait_s=0) as near:
                    if ours.alive:
                        await down(near, ours)
                    headers = {"authorization": "Bearer of-the-client"}
                    answer = await near.http.post("/v1/completions", json=BODY, headers=headers)
                    assert answer.status_code == status


def test_a_setting_that_is_wrong_is_named(tmp_path: Path) -> None:
    table = tmp_path / "fleet.toml"
    table.write_text(
        '[models.m]\n[[engines]]\nname = "b"\nrole = "both"\nurl = "http://x"\n[[gateway.fallback]]\nurl = "u"\n'
    )
    file = FleetFile.load(table)
    assert Effective.gather({}, file.gateway).settings.fallback[0].url == "u"
    with pytest.raises(SettingsError, match=r"fleet file gateway.fallback.0.kye: Extra inputs"):
        Effective.gather({}, {"fallback": [{"url": "http://x", "kye": "k"}]})

"""A transfer that comes after the lease: never a wrong token, not even from a cache that it has spoilt."""

import asyncio
from typing import Any

import httpx
import pytest

from engines.double import Double
from tests.gateway.conftest import Gateway, Pair

BODY: dict[str, Any] = {"model": "m", "prompt": "Never a wrong token, never a lost request. " * 12, "max_tokens": 8}
FEW: dict[str, Any] = {"num_blocks": 65, "max_model_len": 1024}
LEASE_S = 2.0


async def fill(double: Double) -> None:
    """Other prompts take all of an engine's blocks."""
    async with httpx.AsyncClient(trust_env=False) as http:
        for number in range(20):
            prompt = f"{number} filler text " * 60
            answer = await http.post(f"{double.url}/v1/completions", json={**BODY, "prompt": prompt, "max_tokens": 1})
            assert answer.status_code == 200


@pytest.mark.parametrize("slips_through", [False, True])
async def test_an_answer_that_is_not_streamed(slips_through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leg ends as soon as the blocks are given up; if they were fetched all the same, their traces are not read."""
    if slips_through:
        monkeypatch.setattr("gateway.dispatch.expiry.LOOKS", 0.01)
    async with (
        Double("prefill", "p0", lease_s=LEASE_S, **FEW) as p,
        Double("decode", "d0", **FEW) as d,
        Double("both", "j") as judge,
        Gateway.over(p, d, lease_margin_s=1.0) as gateway,
    ):
        pair = Pair(p, d, judge, gateway)
        right = (await pair.right("/v1/completions", BODY))["choices"]
        d.faults.mute_heartbeats = True
        d.timing.transfer_latency_s = 3 * LEASE_S
        asked = asyncio.create_task(gateway.http.post("/v1/completions", json=BODY))
        await d.until(lambda stats: stats.loading > 0)
        await p.until(lambda stats: stats.leases_expired > 0)
        await fill(p)
        assert (await asked).json()["choices"] == right
        assert gateway.metric("baton_retries_total", leg="decode", cause="late") == 1
        async with httpx.AsyncClient(trust_env=False) as http:
            alone = (await http.post(f"{d.url}/v1/completions", json=BODY)).json()["choices"]
        assert (alone == right) is not slips_through
        assert gateway.booked() == 0

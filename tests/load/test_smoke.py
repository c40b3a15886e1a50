"""`baton smoke` says what happened to a request, and fails where that is not what should."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from engines.double import Double
from gateway.cli import build
from gateway.fleet.engine import State
from load.live.target import Target, Unreachable
from tests.gateway.conftest import Gateway, until


async def smoke(url: str, *arguments: str) -> tuple[int, str, str]:
    """In a thread: it has an event loop of its own."""
    command = ["smoke", "--url", url, *arguments]
    result = await asyncio.to_thread(CliRunner().invoke, build("smoke"), command)
    return result.exit_code, result.stdout, result.stderr


async def test_kv_that_moved_is_shown() -> None:
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d, Gateway.over(p, d) as gateway:
        status, said, wrong = await smoke(gateway.url)
        assert not status, wrong
        assert "p0 -> d0" in said and "of KV" in said
        status, said, wrong = await smoke(gateway.url, "--demo", "--json")
        assert not status, wrong
        facts = [json.loads(line) for line in said.splitlines()]
        assert len(facts) == 5
        assert all(one["prefill"] == "p0" and one["decode"] == "d0" and not one["wrong"] for one in facts)
        assert facts[0]["tokens_pulled"] > 0 and facts[0]["bytes_pulled"] > 0


async def test_a_policy_may_prefill_where_it_decodes_unless_asked_to_split() -> None:
    whole: dict[str, Any] = {"policy": "lmetric+never", "policy_header": True}
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d, Gateway.over(p, d, **whole) as gateway:
        status, said, wrong = await smoke(gateway.url)
        assert not status, wrong
        assert "no KV moves" in said
        status, said, wrong = await smoke(gateway.url, "--split")
        assert not status, wrong
        assert "p0 -> d0" in said


async def test_a_split_fleet_without_prefill_engines_fails() -> None:
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d, Gateway.over(p, d) as gateway:
        await p.die()
        await until(lambda: gateway.app.fleet.engines["p0"].state is not State.UP, 10)
        status, _, wrong = await smoke(gateway.url)
        assert status == 1
        assert "no prefill engine is up" in wrong


async def test_a_key_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-good\n")
    async with Double("both", "b0") as b, Gateway.over(b, api_keys_file=str(keys)) as gateway:
        for given in ([], ["--api-key", "sk-bad"]):
            status, _, wrong = await smoke(gateway.url, *given)
            assert status == 1 and wrong.endswith("it wants a key: give one that it knows with --api-key\n")
        async with httpx.AsyncClient() as http:
            with pytest.raises(Unreachable, match="it wants a key"):
                await Target.find(http, gateway.url)
        status, _, wrong = await smoke(gateway.url, "--api-key", "sk-good")
        assert not status, wrong


async def test_what_is_in_the_way_is_named() -> None:
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d:
        async with Gateway.over(p, d, policy="lmetric+never") as gateway:
            status, _, wrong = await smoke(gateway.url, "--split")
            assert status == 1 and "policy_header" in wrong
        status, _, wrong = await smoke(gateway.url)
        assert status == 1 and "is a gateway there?" in wrong


async def test_a_prefill_that_failed_is_no_choice_of_a_policy() -> None:
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d, Gateway.over(p, d) as gateway:
        p.faults.drop_params = True
        status, _, wrong = await smoke(gateway.url)
        assert status == 1 and "its prefill failed" in wrong


async def test_engines_that_do_both_have_nothing_to_split() -> None:
    async with Double("both", "b0") as b, Gateway.over(b) as gateway:
        status, _, wrong = await smoke(gateway.url)
        assert not status, wrong

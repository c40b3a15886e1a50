"""What the gateway is for, proven on thousands of requests: nothing wrong, lost, doubled or hung, whatever fails."""

from pathlib import Path
from typing import Any

import pytest

from load.chaos.plan import Plan
from tests.chaos.outcome import outcome

pytestmark = pytest.mark.storm


async def test_ten_thousand_requests_in_a_storm(tmp_path: Path) -> None:
    found = await outcome(Plan(requests=10_000, rate=100.0, every_s=1.2), tmp_path)
    assert found["requests"] == 10_000
    assert found["good"], found
    assert found["client_errors"] <= 10
    assert found["left"] > 100
    assert sum(found["blows"].values()) >= 50


async def test_one_of_two_prefill_engines_is_killed(tmp_path: Path) -> None:
    assert_none_failed(await outcome(Plan("kill-prefill", requests=1000, rate=100.0, prefill=2, decode=2), tmp_path))


async def test_one_of_two_decode_engines_is_killed(tmp_path: Path) -> None:
    found = await outcome(Plan("kill-decode", requests=1000, rate=100.0, prefill=2, decode=2), tmp_path)
    assert_none_failed(found)
    assert sum(count for what, count in found["counts"].items() if what.startswith("migrations")) > 0


def assert_none_failed(found: dict[str, Any]) -> None:
    assert found["good"], found
    assert found["requests"] == 1000
    assert found["client_errors"] == found["severed"] == found["retried"] == 0


async def test_twenty_thousand_requests_to_engines_that_hang_end_in_time(tmp_path: Path) -> None:
    """Each engine hangs in its own way; every request ends with an error that can be parsed."""
    found = await outcome(Plan("hang", requests=20_000, rate=500.0), tmp_path)
    assert found["requests"] == 20_000
    assert found["good"], found
    assert found["client_errors"] + found["left"] == 20_000

"""Probing and playing, on real sockets: a gateway before engine doubles that take their time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from engines.double import Double
from engines.double.limits import Limits
from engines.double.timing import Timing
from engines.model import profile
from gateway.cli import build
from load.client import Measured
from load.live.asker import WireAsker
from load.live.check import foretell
from load.live.play import Player
from load.live.probe import disturbance, step_s
from load.live.prompts import Ids, Prompts
from load.live.target import Target, Unreachable
from load.replay.workload import generate
from tests.gateway.conftest import Gateway

QUICK = replace(profile.load("gpt-oss-120b-h100-tp4"), step_s=1e-3, leg_s=0.0, second_leg_s=0.0, join_s=0.0)
SIZES = Limits(block_size=16, num_blocks=4096, max_model_len=1024, kv_bytes_per_token=512)


@asynccontextmanager
async def pair() -> AsyncIterator[str]:
    """The URL of a gateway before two doubles."""
    timing = Timing.of(QUICK)
    async with Double("prefill", "p0", timing=timing, limits=SIZES) as p:
        async with Double("decode", "d0", timing=timing, limits=SIZES) as d:
            async with Gateway.over(p, d, policy_header=True) as gateway:
                yield gateway.url


KINDS = {"prefill", "decode step", "prefill beside decode", "TTFT through the gateway", "the same beside decodes"}


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=30, trust_env=False, limits=httpx.Limits(max_connections=None))


async def baton(*arguments: str) -> tuple[int, str, str]:
    """A command in a thread: it has an event loop of its own."""
    result = await asyncio.to_thread(CliRunner().invoke, build("load"), ["load", *arguments])
    return result.exit_code, result.stdout, result.stderr


async def test_a_target_says_what_it_is() -> None:
    async with pair() as url, client() as http:
        found = await Target.find(http, url + "/")
        assert found.gateway and found.split and found.policy == "lmetric"
        assert [(engine.name, engine.seen) for engine in found.engines] == [("p0", True), ("d0", True)]
        assert (found.block_tokens, found.kv_tokens, found.longest) == (16, 16 * 4096, 1024)
        alone = await Target.find(http, found.engines[1].url)
        assert not alone.gateway and [engine.role.value for engine in alone.engines] == ["both"]
        with pytest.raises(Unreachable, match="serves no model nobody"):
            await Target.find(http, url, "nobody")


async def test_what_is_played_is_cached_as_a_replay_says() -> None:
    """One conversation at a time, so that the order does not hang on the clock."""
    async with pair() as url, client() as http:
        target = await Target.find(http, url)
        asks = generate("chat:rate=1,minutes=0.05,prompt=100,shared=64,answer=20,turns=4,think=0.01", 16, 3)
        first = [ask for ask in asks if ask.session == asks[0].session]
        asks = [replace(ask, at_s=0.0, after=at - 1) for at, ask in enumerate(first)]
        assert len(asks) > 1
        asker = WireAsker(url, target.model, {}, 30)
        player = Player(asker, asks, Prompts(asks, 16, "salt", Ids()), "salt")
        await player.run(lambda ended: None)
        asker.close()
        jobs = foretell(asks, target, QUICK, "lmetric").jobs
        assert not player.failed
        assert [one.cached for one in player.played] == [job.cached for job in jobs]
        assert sum(one.cached for one in player.played) > 0
        for one, ask in zip(player.played, asks, strict=True):
            assert one.prompt == ask.prompt and one.prefill == "p0"
            assert sum(count for _, count in one.gaps) <= ask.answer - 1
            assert one.arrived_s < one.first_s <= one.last_s


async def test_the_commands_fit_and_check(tmp_path: Path) -> None:
    out, plot = tmp_path / "made" / "x.toml", tmp_path / "x.png"
    workload = "fixed:rate=20,minutes=0.02,prompt=100,answer=12"
    async with pair() as url:
        code, text, error = await baton(
            *("fit", "--url", url, "--out", str(out), "--plot", str(plot), "--longest", "256", "--batch", "2"),
            *("--repeats", "2", "--workload", workload, "--busy", "0", "--json"),
        )
        assert code in (0, 1), error
        found = json.loads(text)
        assert {error["of"] for error in found["errors"]} >= KINDS
        made = profile.load(str(out))
        assert made.step_s > 0 and made.kv_tokens == 16 * 4096 and "probes of a running gateway" in made.source
        assert found["check"]["met"] is (code == 0) and found["check"]["measured"]["requests"] > 5
        assert plot.read_bytes().startswith(b"\x89PNG")
        code, text, _ = await baton("check", "--url", url, "--profile", str(out), "--workload", workload)
        assert code in (0, 1) and "foretold" in text


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["fit"], "one of them", 2),
        (["fit", "--url", "http://127.0.0.1:9"], "give the URL of a gateway", 1),
        (["fit", "--url", "nonsense"], "give the URL of a gateway", 1),
        (["fit", "--url", "http://127.0.0.1:9", "--out", "x"], "ends in .toml", 2),
        (["fit", "--url", "http://127.0.0.1:9", "--start", "none"], "no profile", 2),
        (["fit", "--table", "x.csv", "--check"], "give --url", 2),
        (["check", "--url", "http://127.0.0.1:9", "--profile", "none"], "no profile", 2),
        (["check", "--url", "http://127.0.0.1:9", "--profile", "gpt-oss-120b-h100-tp4", "--policy", "x"], "x", 2),
    ],
)
async def test_mistakes_are_named(arguments: list[str], said: str, code: int) -> None:
    found, _, error = await baton(*arguments)
    assert (found, said in error) == (code, True), error


def stream(*points: tuple[float, int], sent_s: float = 0.0) -> Measured:
    return Measured(sent_s=sent_s, arrivals=list(points), e2e_s=points[-1][0])


def test_steps_are_counted_while_all_streams_run() -> None:
    even = [(0.01 * at, at) for at in range(1, 40)]
    late = [(0.2 + 0.01 * at, at) for at in range(1, 40)]
    assert step_s([stream(*even), stream(*late)]) == pytest.approx(0.01)
    assert step_s([stream(*even), stream((0.9, 1), (0.91, 2))]) is None


def test_what_a_request_adds_is_the_pause_beyond_the_usual() -> None:
    """Two chunks of 40 and 30 ms beside steps of 10."""
    times = [0.1, 0.11, 0.12, 0.16, 0.19, 0.20, 0.21, 0.22, 0.23]
    running = stream(*((when, at + 1) for at, when in enumerate(times)))
    found = disturbance([running, running], stream((0.07, 1), sent_s=0.121), 0.01)
    assert found is not None
    assert found.more_s == pytest.approx(0.05) and found.pauses == 2
    assert disturbance([running], stream((0.07, 1), sent_s=0.3), 0.01) is None

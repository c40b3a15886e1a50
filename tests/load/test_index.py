"""The index benchmark measures real indexes, and its generator knows the right answers."""

import json
import subprocess
import sys

import pytest
import typer
from rich.progress import Progress
from typer.testing import CliRunner

from gateway.index.contract import Change, Removed
from gateway.index.memory import MemoryIndex
from load.bench import BLOCKS, Bench
from load.index import index
from load.ingest import Ingest
from load.lookups import Wrong, ask
from load.prefixes import Turn, Workload
from tests.index.naive import Naive

PAIRS, HOLDERS = 110_000, 8


def run(*arguments: str) -> dict[str, float]:
    """In a process of its own: in this one, memory that others have given back would be taken first."""
    argv = [sys.executable, "-m", "gateway.cli", "load", "index", *arguments, "--json"]
    return dict(json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout))


def test_it_measures_the_index_of_this_process() -> None:
    figures = run("--pairs", str(PAIRS), "--holders", str(HOLDERS), "--soak", "40000")
    assert figures["memory.soak.blocks"] >= 40_000
    for name in ("match_us.1000", "match_us.6250.hit50", "apply_us_per_block", "bytes_per_block"):
        assert figures[f"memory.{name}"] > 0


def test_it_measures_a_server() -> None:
    size = ("--pairs", str(PAIRS), "--holders", str(HOLDERS))
    figures = run(*size, "--mixed", "0.2", "--redis", "embedded", "--gateways", "3")
    assert figures["gateways.3.match_server_us"] > 0
    assert figures["mixed.matches_per_s"] > 0
    for blocks in BLOCKS:
        assert figures[f"match_ms.{blocks}.p99"] >= figures[f"match_ms.{blocks}.p50"] > 0
        assert figures[f"match_server_us.{blocks}"] > 0
    for name in ("bytes_per_block", "ingest_blocks_per_s", "server_us_per_block"):
        assert figures[name] > 0


def test_a_fleet_that_is_too_small_is_refused_with_the_least_that_will_do() -> None:
    app = typer.Typer()
    app.command()(index)
    result = CliRunner().invoke(app, ["--pairs", "100000"])
    assert result.exit_code == 2
    assert "64 engines need 196144 pairs" in result.output


def grown(workload: Workload) -> list[Turn]:
    """Turns until every engine drops what it used least."""
    turns = list(workload.documents())
    while not workload.full:
        turns += workload.turns(10_000)
    return turns


def test_the_generator_knows_who_holds_what() -> None:
    workload, naive = Workload(PAIRS, HOLDERS), Naive()
    for holder in workload.holders:
        naive.open(holder)
    for turn in grown(workload):
        assert naive.apply(turn.holder, turn.changes)
    for blocks in BLOCKS:
        for hit in (0.0, 0.5, 1.0):
            for query in workload.queries(blocks, hit, 10):
                assert len(query.hashes) == 8 * blocks
                assert naive.match(query.hashes) == query.held
                assert max(query.held.values(), default=0) == int(blocks * hit)
    assert workload.resident() == (
        len(set.union(*naive.held.values())),
        sum(len(blocks) for blocks in naive.held.values()),
    )


async def test_an_index_that_forgets_to_remove_is_caught() -> None:
    workload, index = Workload(PAIRS, HOLDERS), MemoryIndex()
    ingest = await Ingest.open(index, workload.holders)
    for turn in grown(workload):
        kept: list[Change] = [change for change in turn.changes if not isinstance(change, Removed)]
        await ingest.push([turn._replace(changes=kept)])
    with pytest.raises(Wrong, match="wrong depth for http://engine-"):
        for query in workload.queries(256, 1.0, 40):
            await ask(index, query)


async def test_memory_that_is_held_is_given_back() -> None:
    with Progress(disable=True) as progress:
        index = MemoryIndex()
        await Bench(index, Workload(PAIRS, HOLDERS), progress).run(0.0, 0)
    assert (await index.stats()).blocks == 0

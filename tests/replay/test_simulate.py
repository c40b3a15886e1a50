"""The simulation: nothing is lost, nobody is early, a request's parts are its whole, and it repeats itself."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.model.profile import Profile
from load.replay.fleet import BadFleet, shape
from load.replay.knowledge import Knowledge
from load.replay.outcome import outcome
from load.replay.simulate import Simulation
from load.replay.trace import Ask, BadTrace, azure, mooncake, opened, read, write
from load.replay.workload import WORKLOADS, BadWorkload, generate
from policies.registry import create

PROFILE = Profile(
    token_s=1e-5,
    context_s=2e-10,
    step_s=6e-3,
    sequence_s=8e-5,
    kv_s=6e-9,
    mix=1.2,
    join_s=3e-3,
    leg_s=0.04,
    second_leg_s=0.08,
    kv_bytes_per_token=73728,
)


def simulate(
    asks: list[Ask], policy: str = "joint", fleet: str = "2P2D", kv_blocks: int = 512, **knowledge: Any
) -> Simulation:
    told = Knowledge(**knowledge)
    run = Simulation(
        asks, shape(fleet, PROFILE), create(policy, seed=1), kv_blocks=kv_blocks, block_tokens=64, knowledge=told
    )
    run.run()
    return run


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    name=st.sampled_from([name for name in WORKLOADS if name != "mixed"]),
    policy=st.sampled_from(["joint", "kv_cost", "kv_cost+suffix_length:500", "round_robin", "session"]),
    fleet=st.sampled_from(["2P2D", "1P3D", "3C"]),
    told=st.sampled_from(
        [
            {},
            {"event_delay_s": 0.5},
            {"approximate": True},
            {"scraped_s": 0.3},
            {"scraped_s": 0.3, "private": True, "gateways": 3, "approximate": True, "learned": True},
        ]
    ),
)
def test_nothing_is_lost(seed: int, name: str, policy: str, fleet: str, told: dict[str, Any]) -> None:
    asks = generate(f"{name}:rate=2,minutes=0.5,prompt=600,shared=500", 64, seed)
    run = simulate(asks, policy, fleet, **told)
    assert len(run.jobs) == len(asks)
    assert run.refused + sum(job.last_s == job.last_s for job in run.jobs) == len(asks)
    for node in run.nodes.values():
        node.core.blocks.check()
        assert node.core.blocks.used == 0
        for booked in node.booked:
            assert (booked.prefill_requests, booked.prefill_tokens) == (0, 0)
            assert (booked.decode_requests, booked.decode_tokens, booked.coming_tokens) == (0, 0, 0)
            assert booked.prefill_s == pytest.approx(0, abs=1e-9)
    ended = {id(job.ask): job for job in run.jobs}
    for job in run.jobs:
        if job.last_s != job.last_s:
            continue
        assert job.arrived_s + PROFILE.leg_s <= job.first_s <= job.last_s
        assert 0 <= job.cached < job.ask.prompt
        if job.ask.after >= 0:
            before = ended[id(asks[job.ask.after])]
            assert job.arrived_s >= before.last_s + job.ask.think_s - 1e-9
    computed = sum(node.core.prefill_tokens for node in run.nodes.values())
    if not run.refused:
        pulled = sum(job.prefill is not None for job in run.jobs)  # each computes its last token once more
        assert computed == sum(job.ask.prompt - job.cached for job in run.jobs) + pulled


def test_the_same_seed_gives_the_same_bytes() -> None:
    asks = generate("chat:rate=3,minutes=1", 64, 7)
    once, again = (msgspec.json.encode(outcome(simulate(list(asks)))) for _ in range(2))
    assert once == again


def test_what_is_cached_is_not_computed_again() -> None:
    names = tuple(range(1, 21))
    asks = [Ask(0.0, 1280, 1, names), Ask(10.0, 1280, 1, names)]
    run = simulate(asks, "kv_cost", "1P1D")
    assert [job.cached for job in run.jobs] == [0, 1216]
    assert run.jobs[1].transferred < run.jobs[0].transferred


def test_who_is_queued_behind_a_prompt_finds_what_it_computed() -> None:
    """Three equal prompts of two steps at once, and a turn that waits for the first answer, or for nobody."""
    names = tuple(range(1, 201))
    asks = [Ask(0.0, 12_800, 50, names), *[Ask(0.0, 12_800, 50, names)] * 2, Ask(0.003, 12_800, 50, names, after=0)]

    def once(asks: list[Ask]) -> list[tuple[int, float]]:
        run = simulate(asks, "kv_cost", "1P1D")
        return [(job.cached, job.arrived_s) for job in sorted(run.jobs, key=lambda job: job.index)]

    causal = once(asks)
    assert [cached for cached, _ in causal] == [0, 12_736, 12_736, 12_736] and causal[3][1] > 0.1
    assert once(opened(asks)) == [(0, 0.0), (12_736, 0.0), (12_736, 0.0), (12_736, 0.003)]


def test_what_other_simulators_assume_can_be_assumed() -> None:
    """A cache that holds what is looked up of prompts, 19 blocks of 20, from when they are sent, and nothing else."""
    asks = [Ask(at, 1280, 1, tuple(range(first, first + 20))) for at, first in ((0.0, 1), (1.0, 21), (2.0, 1))]

    def once(early_hits: bool) -> list[int]:
        fleet, policy = shape("1P1D", PROFILE), create("kv_cost", seed=1)
        run = Simulation(asks, fleet, policy, kv_blocks=32, block_tokens=64, early_hits=early_hits)
        run.run()
        return [job.cached for job in run.jobs]

    assert once(False) == [0, 0, 64 * (32 - 21)]
    assert once(True) == [0, 0, 64 * (32 - 19)]


def test_private_gateways_see_their_own_load_only() -> None:
    asks = generate("fixed:rate=40,minutes=0.5", 64, 1)
    shared = outcome(simulate(asks, "least_loaded", "2P2D", gateways=8))
    private = outcome(simulate(asks, "least_loaded", "2P2D", gateways=8, private=True))
    assert private.ttft_ms.mean > shared.ttft_ms.mean


@pytest.mark.parametrize("private", [False, True])
def test_metrics_that_are_never_old_are_as_good_as_bookings(private: bool) -> None:
    """And the older they are, the worse; gateways that share do not book what they place until it is scraped."""
    asks = generate("fixed:rate=40,minutes=0.5", 64, 1)

    def once(scraped_s: float) -> float:
        run = simulate(asks, "least_loaded", "2P2D", 8192, gateways=4, private=private, scraped_s=scraped_s)
        return outcome(run).ttft_ms.mean

    booked = outcome(simulate(asks, "least_loaded", "2P2D", 8192, gateways=4)).ttft_ms.mean
    assert booked == pytest.approx(once(1e-9), rel=0.01)
    assert booked < once(0.2) < once(2.0)


def test_an_approximate_index_guesses_from_what_was_sent() -> None:
    """An engine has room for twenty blocks; a prompt has fourteen, and leaves one more for its answer."""
    first, other = tuple(range(1, 16)), tuple(range(21, 36))
    asks = [Ask(10.0 * at, 900, 64, names) for at, names in enumerate((first, other, first, first))]

    def believed(**knowledge: Any) -> list[int]:
        return [job.ask.prompt - job.new for job in simulate(asks, "kv_cost", "1P1D", 20, **knowledge).jobs]

    assert believed() == [0, 0, 5 * 64, 14 * 64]
    assert believed(approximate=True) == [0, 0, 6 * 64, 14 * 64]
    assert believed(approximate=True, gateways=2, private=True) == [0, 0, 14 * 64, 0]


def test_mooncake_tells_who_follows_whom() -> None:
    first = {"timestamp": 0, "input_length": 1100, "output_length": 500, "hash_ids": [1, 2, 3]}
    turn = {"timestamp": 9000, "input_length": 2000, "output_length": 10, "hash_ids": [1, 2, 7, 8]}
    other = {"timestamp": 9500, "input_length": 1100, "output_length": 10, "hash_ids": [1, 5, 6]}
    asks = mooncake([msgspec.json.encode(line).decode() for line in (first, turn, other)])
    assert [ask.after for ask in asks] == [-1, 0, -1]
    assert asks[0].names == (1, 2, 7)
    assert asks[1].session == asks[0].session != asks[2].session
    assert len(asks[1].names) == 2010 // 512


@pytest.mark.parametrize("text", ["", "{}", '{"timestamp": "x"}', "not json"])
def test_a_bad_trace_names_the_line(text: str) -> None:
    with pytest.raises(BadTrace, match="trace"):
        mooncake([text])


def test_azure_rows_share_nothing() -> None:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6805900,374,44"]
    asks = azure(lines, 512)
    assert (asks[0].prompt, asks[0].answer, asks[0].at_s) == (374, 44, 0.0)
    with pytest.raises(BadTrace, match="wanted TIMESTAMP"):
        azure(["a,b", "1,2"], 512)


def test_a_written_trace_reads_the_same(tmp_path: Path) -> None:
    asks = generate("chat:rate=2,minutes=1", 512, 3)
    write(asks, tmp_path / "t.jsonl")
    again = read(tmp_path / "t.jsonl")
    assert [(ask.prompt, ask.answer) for ask in again] == [(ask.prompt, ask.answer) for ask in asks]


@pytest.mark.parametrize(("text", "words"), [("nothing", "chat"), ("chat:rate=x", "rate"), ("chat:speed=1", "speed")])
def test_a_bad_workload_says_what_there_is(text: str, words: str) -> None:
    with pytest.raises(BadWorkload, match=words):
        generate(text, 512, 1)


@pytest.mark.parametrize("text", ["4P", "P4", "4X", ""])
def test_a_bad_shape_says_what_is_wanted(text: str) -> None:
    with pytest.raises(BadFleet):
        shape(text, PROFILE)

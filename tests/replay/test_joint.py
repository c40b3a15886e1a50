"""`joint` where it matters: hot prefixes are copied as far as they are wanted, saturation is said, pauses are kept."""

import pytest

from engines.model.profile import load
from load.replay.fleet import shape
from load.replay.outcome import Outcome, outcome
from load.replay.simulate import Simulation
from load.replay.trace import faster
from load.replay.workload import generate
from policies.registry import create

PROFILE = load("gpt-oss-120b-h100-tp4")


def simulate(
    workload: str, policy: str = "joint", fleet: str = "4P4D", speed: float = 1.0, blocks: int = 2048
) -> Simulation:
    asks = faster(generate(workload, 512, 1), speed)
    run = Simulation(asks, shape(fleet, PROFILE), create(policy, 1), kv_blocks=blocks, block_tokens=512)
    run.run()
    return run


def test_a_hot_prefix_is_copied_where_queues_demand_it_and_only_there() -> None:
    """One prefix of 40,000 tokens: four seconds of work for each engine that has to compute it."""
    hot = "shared:rate=2,minutes=2,groups=1,shared=40000,prompt=1500,answer=200"

    def computed(run: Simulation) -> float:
        return sum(node.core.prefill_tokens for node in run.nodes.values()) / 40_000

    quiet, busy = simulate(hot), simulate(hot, speed=50)
    own = sum(job.ask.prompt - 39_936 for job in quiet.jobs) / 40_000
    assert computed(quiet) - own < 4, "copied more often than it was wanted"
    with_it = {
        node.member.name for node in busy.nodes.values() if node.core.blocks.lead(busy.jobs[0].ask.names[:70]) == 70
    }
    assert len(with_it) == 8
    assert outcome(busy).hit_rate > 0.75
    assert outcome(busy).balance < 1.5


def test_a_hot_prefix_does_not_wait_for_one_engine_where_others_are_idle() -> None:
    hot = "shared:rate=2,minutes=2,groups=1,shared=40000,prompt=1500,answer=200"
    joint, spread = outcome(simulate(hot, speed=25)), outcome(simulate(hot, "kv_cost", speed=25))
    assert joint.ttft_ms.mean < spread.ttft_ms.mean
    assert joint.balance < 2.0


def test_saturation_is_said_and_why() -> None:
    chat = "chat:rate=6,minutes=1,prompt=6000,shared=2000"
    light, late = simulate(chat), simulate(chat, fleet="1P1D", speed=8)
    assert light.saturated == 0
    assert late.saturated > 0.3 * len(late.jobs)
    full = simulate(chat, fleet="6P2D", speed=2, blocks=128)
    assert full.saturated > 0


@pytest.mark.parametrize(
    ("workload", "fleet"), [("agent:rate=20,minutes=0.5", "4P4D"), ("chat:rate=12,minutes=0.5", "2P6D")]
)
def test_local_or_remote_is_decided_as_well_as_the_better_of_both(workload: str, fleet: str) -> None:
    """And pauses stay short, where prefilling everything on decode engines makes them long."""

    def once(policy: str) -> Outcome:
        return outcome(simulate(workload, policy, fleet))

    joint, always, never = once("joint"), once("kv_cost"), once("kv_cost+never")
    assert joint.ttft_ms.mean <= 1.02 * min(always.ttft_ms.mean, never.ttft_ms.mean)
    assert joint.itl_ms.p99 <= 0.9 * never.itl_ms.p99


def test_it_keeps_to_its_share_of_stalls() -> None:
    """Of all tokens one in a hundred may come after a pause of more than two steps."""
    run = simulate("chat:rate=14,minutes=0.7,prompt=8000,shared=2000")
    gaps = [gap for node in run.nodes.values() if node.member.role == "decode" for gap in node.core.gaps]
    usual = sorted(gaps)[len(gaps) // 2][0]
    tokens = sum(count for _, count in gaps)
    assert sum(count for gap, count in gaps if gap > 3 * usual) < 0.02 * tokens


def test_where_every_engine_does_both_nothing_is_charged_for_pauses() -> None:
    joint, conductor = (outcome(simulate("chat:rate=20,minutes=0.5", name, "4C")) for name in ("joint", "conductor"))
    assert joint.ttft_ms.mean <= 1.03 * conductor.ttft_ms.mean


def test_a_prefix_that_all_share_does_not_make_memory_look_full() -> None:
    """Prompts of twice what fits, most of them one and the same prefix: there is room to prefill where it is cached."""
    run = simulate("agent:rate=40,minutes=0.7,groups=2", blocks=1024)
    decoders = [node for node in run.nodes.values() if node.member.role == "decode"]
    assert max(node.sharing.factor for node in decoders) > 2
    found = outcome(run)
    assert found.saturated_share < 0.05
    assert found.local_share > 0.4

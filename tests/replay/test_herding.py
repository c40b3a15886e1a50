"""A burst does not herd: whatever it has in common, and however late the news is."""

from collections import Counter

import pytest

from engines.model.profile import load
from load.replay.fleet import shape
from load.replay.knowledge import Knowledge
from load.replay.simulate import Simulation
from load.replay.trace import Ask
from policies.registry import create

PROFILE = load("gpt-oss-120b-h100-tp4")
COUNT = 1000


def burst(identical: bool, prompt: int) -> list[Ask]:
    full = prompt // 512
    return [
        Ask(0.0, prompt, 100, tuple(range(full)) if identical else tuple(range(full * index, full * (index + 1))))
        for index in range(COUNT)
    ]


@pytest.mark.parametrize("policy", ["joint", "joint_throughput"])
@pytest.mark.parametrize("fleet", ["4P4D", "8C"])
@pytest.mark.parametrize("prompt", [1000, 8000])
@pytest.mark.parametrize("identical", [True, False])
@pytest.mark.parametrize("late_s", [0.0, 1.0])
def test_a_thousand_at_once_are_spread(policy: str, fleet: str, prompt: int, identical: bool, late_s: float) -> None:
    run = Simulation(
        burst(identical, prompt),
        shape(fleet, PROFILE),
        create(policy),
        kv_blocks=20_000,
        block_tokens=512,
        knowledge=Knowledge(event_delay_s=late_s),
    )
    run.run()
    assert len(run.jobs) == COUNT
    decodes = Counter(job.decode.member.name for job in run.jobs)
    assert max(decodes.values()) * len(decodes) / COUNT <= 1.3
    assert len(decodes) == sum(member.role.decodes for member in shape(fleet, PROFILE).members)
    remote = Counter(job.prefill.member.name for job in run.jobs if job.prefill is not None)
    if sum(remote.values()) > 100:
        assert max(remote.values()) * 4 / sum(remote.values()) <= 1.3

"""The engine double keeps the time that replay foretells: both get the same traffic, and no clock but a simulated one,
so a slow machine changes nothing."""

import asyncio
import random
import selectors
from typing import Any

import pytest

from engines.double.engine import Engine
from engines.double.faults import Faults
from engines.double.kv import Tape
from engines.double.limits import Limits
from engines.double.sequence import Sampling, Sequence
from engines.double.timing import Timing
from engines.double.transfer import SideChannel
from engines.model.core import Core
from engines.model.profile import load
from engines.model.sequence import Sequence as Modelled
from tests.replay.test_core import drive

PROFILE = load("gpt-oss-120b-h100-tp4")
SIZE, BLOCKS = 16, 8192
FAMILIES = [[1000 * family + at for at in range(1200)] for family in range(1, 4)]
"""What prompts begin with."""


class Timeless(selectors.SelectSelector):
    """Does not wait: time jumps to what is due next. Nothing here comes from outside."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.now_s += timeout
        return ready


class Loop(asyncio.SelectorEventLoop):
    """An event loop in simulated time."""

    def __init__(self) -> None:
        self.timeless = Timeless()
        super().__init__(self.timeless)

    def time(self) -> float:
        return self.timeless.now_s


def traffic(seed: int) -> list[tuple[float, Sequence]]:
    """Chats and documents, some of which begin alike; about ten at a time."""
    chance = random.Random(seed)
    found = []
    for number in range(80):
        own = [100_000 + chance.randrange(10_000) for _ in range(chance.choice((20, 300, 9000)))]
        prompt = chance.choice(FAMILIES)[: chance.randrange(0, 1200)] + own
        sampling = Sampling(max_tokens=chance.randrange(1, 200), ignore_eos=True)
        found.append((chance.uniform(0, 12), Sequence(f"r{number}", prompt, sampling, Tape(SIZE))))
    return found


async def lived(arrivals: list[tuple[float, Sequence]]) -> dict[str, tuple[float, float]]:
    """When each request's first and last token came out of a double's engine."""
    loop = asyncio.get_running_loop()
    limits = Limits(block_size=SIZE, num_blocks=BLOCKS + 1, max_num_batched_tokens=PROFILE.chunk_tokens)
    timing, channel = Timing.of(PROFILE), SideChannel("127.0.0.1", 0)
    engine = Engine("e", limits, timing, Faults(), lease_s=30, channel=channel, publisher=None, on_death=lambda: None)
    times = {}

    async def one(at_s: float, sequence: Sequence) -> None:
        await asyncio.sleep(at_s)
        engine.submit(sequence)
        first_s = 0.0
        while await sequence.next():
            first_s = first_s or loop.time()
            last_s = loop.time()
        times[sequence.id] = (first_s, last_s)

    await asyncio.gather(*(one(at_s, sequence) for at_s, sequence in arrivals))
    await engine.close()
    return times


def foretold(arrivals: list[tuple[float, Sequence]]) -> dict[str, tuple[float, float]]:
    """The same of the model."""
    times = {}

    def ended(sequence: Modelled, now_s: float) -> None:
        times[str(sequence.owner)] = (sequence.first_s, sequence.last_s)
        core.release(sequence, now_s)

    core = Core(PROFILE, BLOCKS, SIZE, on_end=ended)
    rows = [(at, Modelled(s.id, len(s.prompt), s.sampling.max_tokens, tuple(s.names))) for at, s in arrivals]
    drive(core, rows)
    return times


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_double_and_the_model_keep_the_same_time(seed: int) -> None:
    arrivals = traffic(seed)
    wanted = foretold(arrivals)
    with asyncio.Runner(loop_factory=Loop) as runner:
        found = runner.run(lived(arrivals))
    assert found.keys() == wanted.keys()
    starts = {sequence.id: at_s for at_s, sequence in arrivals}
    assert sum(sequence.cached_tokens > 0 for _, sequence in arrivals) > 20
    for part in (0, 1):
        pairs = [(found[name][part] - at_s, wanted[name][part] - at_s) for name, at_s in starts.items()]
        lasted, told = (sum(column) for column in zip(*pairs, strict=True))
        assert lasted == pytest.approx(told, rel=0.01)
        # One that comes within microseconds of a step's end may be in time here and late there.
        assert sum(abs(one - other) > 0.01 * other for one, other in pairs) <= 2


def test_who_waits_behind_a_prompt_finds_its_blocks() -> None:
    """Three equal prompts that take several steps each, if they are computed, and one that comes when all is done."""
    prompt = list(range(20_000))
    times = (0.0, 0.01, 0.02, 9.0)
    arrivals = [(at_s, Sequence(f"r{at_s}", prompt, Sampling(20, ignore_eos=True), Tape(SIZE))) for at_s in times]
    wanted = foretold(arrivals)
    with asyncio.Runner(loop_factory=Loop) as runner:
        found = runner.run(lived(arrivals))
    assert [sequence.cached_tokens for _, sequence in arrivals] == [0, 19_984, 19_984, 19_984]
    assert len({tuple(sequence.tokens) for _, sequence in arrivals}) == 1
    for name, (first_s, last_s) in wanted.items():
        assert found[name] == pytest.approx((first_s, last_s), rel=1e-6)

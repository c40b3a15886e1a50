"""Traffic of a replay in real time: the same requests, sent when they are due, to engines that run."""

import asyncio
import re
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import msgspec

from load.client import Measured, RequestFailed
from load.live.asker import Asker
from load.live.prompts import Prompts
from load.replay.trace import Ask

_STAGE = re.compile(r"(\w+);dur=([\d.]+)")

AHEAD_S = 2.0
"""Requests are made so long before they are due, the first ones before the clock starts: a burst of long prompts is not
to be late for our own work."""


class Played(msgspec.Struct, frozen=True):
    """What became of one request; times in seconds from the beginning."""

    index: int
    """Of its `Ask`."""
    due_s: float
    arrived_s: float
    """When it was really sent."""
    first_s: float
    last_s: float
    gaps: tuple[tuple[float, int], ...]
    """Seconds between two tokens, and how many came so; tokens that came in one event share its pause."""
    prompt: int
    answer: int
    """Tokens, as the engine that decoded said."""
    cached: int
    prefill: str
    """The engine that prefilled, if another one than that which decoded; and if a gateway said so."""
    decode: str
    stages_ms: dict[str, float] = {}
    """How long the gateway says that each step of the journey took."""


class Player:
    """Plays requests. `played` holds those that have ended, also if it is broken off."""

    def __init__(self, asker: Asker, asks: Sequence[Ask], prompts: Prompts, salt: str) -> None:
        self.played: list[Played] = []
        self.failed: list[str] = []
        self._asker = asker
        self._asks = asks
        self._prompts = prompts
        self._salt = salt
        self._followed = {ask.after for ask in asks}

    async def run(self, progress: Callable[[int], None]) -> None:
        """Until all have ended; `progress` is told how many have.

        Prompts are made in a thread of their own, one at a time: tokens that come meanwhile are noted when they come.
        """
        ended = {index: asyncio.Event() for index in self._followed if index >= 0}
        ready = {at: self._made(at) for at, ask in enumerate(self._asks) if ask.at_s < AHEAD_S and ask.after < 0}
        maker = ThreadPoolExecutor(1, "prompts")
        aside = partial(asyncio.get_running_loop().run_in_executor, maker)
        start_s = time.perf_counter()

        async def one(index: int, ask: Ask) -> None:
            due_s = start_s + ask.at_s
            if ask.after >= 0:
                await ended[ask.after].wait()
                due_s = max(due_s, time.perf_counter() + ask.think_s)
            try:
                await asyncio.sleep(due_s - AHEAD_S - time.perf_counter())
                prompt, raw = ready.pop(index) if index in ready else await aside(self._made, index)
                await asyncio.sleep(due_s - time.perf_counter())
                found = await self._asker.ask(raw, f"{self._salt}-{ask.session}" if ask.session else "")
                await aside(self._prompts.answered, index, prompt, found.ids, found.text)
                self.played.append(_played(index, found, due_s - start_s, start_s))
            except RequestFailed as error:
                self.failed.append(str(error))
            finally:
                if index in ended:
                    ended[index].set()
                progress(len(self.played) + len(self.failed))

        with maker:
            async with asyncio.TaskGroup() as tasks:
                for index, ask in enumerate(self._asks):
                    tasks.create_task(one(index, ask))

    def _made(self, index: int) -> tuple["array[int]", bytes]:
        """A prompt, and the request with it."""
        prompt = self._prompts.of(index)
        return prompt, self._asker.body(self._prompts.written(prompt), self._asks[index].answer)


def _played(index: int, found: Measured, due_s: float, start_s: float) -> Played:
    arrivals, arrived_s = found.arrivals, found.sent_s - start_s
    gaps = []
    for (before_s, had), (now_s, have) in pairwise(arrivals):
        if have > had:
            gaps.append(((now_s - before_s) / (have - had), have - had))
    return Played(
        index=index,
        due_s=due_s,
        arrived_s=arrived_s,
        first_s=arrived_s + arrivals[0][0],
        last_s=arrived_s + arrivals[-1][0],
        gaps=tuple(gaps),
        prompt=found.tokens_in,
        answer=found.tokens_out,
        cached=int(found.headers.get("x-baton-cached-tokens", found.cached)),
        prefill=found.headers.get("x-baton-prefill", ""),
        decode=found.headers.get("x-baton-decode", ""),
        stages_ms={name: float(ms) for name, ms in _STAGE.findall(found.headers.get("server-timing", ""))},
    )

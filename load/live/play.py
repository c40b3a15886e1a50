"""Traffic of a replay in real time: the same requests, sent when they are due, to engines that run.

Blocks of equal names become equal token ids, so what a replay takes for cached is cached; a turn's prompt begins with
all that was really answered before it.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import httpx
import msgspec

from load.client import Measured, RequestFailed
from load.live.target import IDS, Target
from load.replay.trace import Ask


class Played(msgspec.Struct, frozen=True):
    """What became of one request; times in seconds from the beginning."""

    index: int
    """Of its `Ask`."""
    arrived_s: float
    first_s: float
    last_s: float
    gaps: tuple[tuple[float, int], ...]
    """Seconds between two tokens, and how many came so; tokens that came in one event share its pause."""
    prompt: int
    cached: int
    """Tokens, as the engine that decoded said."""
    prefill: str
    """The engine that prefilled, if another one than that which decoded; and if a gateway said so."""
    decode: str


class Player:
    """Plays requests to a target. `played` holds those that have ended, also if it is broken off."""

    def __init__(
        self, http: httpx.AsyncClient, target: Target, asks: Sequence[Ask], block_tokens: int, salt: str
    ) -> None:
        self.played: list[Played] = []
        self.failed: list[str] = []
        self._http = http
        self._target = target
        self._asks = asks
        self._size = block_tokens
        self._salt = salt
        self._said: dict[int, list[int]] = {}
        """Prompt and answer of requests that others follow."""
        self._followed = {ask.after for ask in asks}

    async def run(self, progress: Callable[[int], None]) -> None:
        """Until all have ended; `progress` is told how many have."""
        ended = {index: asyncio.Event() for index in self._followed if index >= 0}
        start_s = time.perf_counter()

        async def one(index: int, ask: Ask) -> None:
            due_s = start_s + ask.at_s
            if ask.after >= 0:
                await ended[ask.after].wait()
                due_s = max(due_s, time.perf_counter() + ask.think_s)
            try:
                await asyncio.sleep(due_s - time.perf_counter())
                await self._send(index, ask, start_s)
            except RequestFailed as error:
                self.failed.append(str(error))
            finally:
                if index in ended:
                    ended[index].set()
                progress(len(self.played) + len(self.failed))

        async with asyncio.TaskGroup() as tasks:
            for index, ask in enumerate(self._asks):
                tasks.create_task(one(index, ask))

    async def _send(self, index: int, ask: Ask, start_s: float) -> None:
        prompt = self._prompt(index, ask)
        session = {"x-session-id": f"{self._salt}-{ask.session}"} if ask.session else {}
        found = await self._target.ask(self._http, prompt, ask.answer, **session)
        if index in self._followed:
            self._said[index] = prompt + found.ids
        self.played.append(_played(index, found, start_s))

    def _prompt(self, index: int, ask: Ask) -> list[int]:
        """Its token ids: what was said before, then blocks by their names, then a rest of its own."""
        prompt = self._said.get(ask.after, [])[: ask.prompt]
        while len(prompt) < ask.prompt:
            block, inside = divmod(len(prompt), self._size)
            full = (block + 1) * self._size <= ask.prompt and block < len(ask.names)
            name = ask.names[block] if full else f"rest {index}"
            chance = random.Random(f"{self._salt} {name}")
            prompt += chance.choices(IDS, k=self._size)[inside:]
        return prompt[: ask.prompt]


def _played(index: int, found: Measured, start_s: float) -> Played:
    arrivals, arrived_s = found.arrivals, found.sent_s - start_s
    gaps = []
    for (before_s, had), (now_s, have) in pairwise(arrivals):
        if have > had:
            gaps.append(((now_s - before_s) / (have - had), have - had))
    return Played(
        index=index,
        arrived_s=arrived_s,
        first_s=arrived_s + arrivals[0][0],
        last_s=arrived_s + arrivals[-1][0],
        gaps=tuple(gaps),
        prompt=found.tokens_in,
        cached=int(found.headers.get("x-baton-cached-tokens", found.cached)),
        prefill=found.headers.get("x-baton-prefill", ""),
        decode=found.headers.get("x-baton-decode", ""),
    )

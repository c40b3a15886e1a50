"""Load from a host of its own, every token checked; a gateway that does not answer is passed over."""

import asyncio
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from load.chaos.client import Client, NoAnswer, Streams
from load.chaos.judge import Answer, Verdict, judge
from load.chaos.traffic import Ask, ask
from tests.engines_unit.until import until
from tests.namespace import Namespace

PORT = 8000
CONNECT_S = 1.0
SILENT_S = 15.0
"""A gateway that has not begun to answer by then is asked no more; an answer that is not over is given up."""
PATIENCE_S = 60.0
RATE = 25.0
"""Requests a second."""


@dataclass
class Elsewhere(Client):
    """Gateways on hosts of their own: each one's `port` stands for its place in `addresses`."""

    addresses: Sequence[str] = ()

    async def _once(self, port: int, ask: Ask, raw: bytes, answer: Answer) -> None:
        try:
            async with asyncio.timeout(SILENT_S):
                await super()._once(port, ask, raw, answer)
        except TimeoutError:
            if not answer.status:
                raise NoAnswer from None

    async def _open(self, port: int) -> Streams:
        async with asyncio.timeout(CONNECT_S):
            return await asyncio.open_connection(self.addresses[port], PORT)


@dataclass
class Outcome:
    """What became of all requests so far."""

    right: int = 0
    ended_early: list[str] = field(default_factory=list)
    """Streams of right tokens that ended with an error event."""
    cut: dict[str, list[str]] = field(default_factory=dict)
    """Streams of right tokens that ended without a word, by the gateway that relayed them."""
    failed: list[str] = field(default_factory=list)
    """Everything else that is not a right answer."""

    @property
    def ended(self) -> int:
        return self.right + len(self.ended_early) + sum(map(len, self.cut.values())) + len(self.failed)

    def enter(self, asked: Ask, answer: Answer, gateway: str, verdict: Verdict, took_s: float) -> None:
        text = f"request {asked.number} over {gateway}, {took_s:.2f} s: {verdict.kind}: {verdict.why}"
        begun = asked.stream and answer.status == 200
        if verdict.kind == "right":
            self.right += 1
        elif begun and verdict.kind == "error":
            self.ended_early.append(text)
        elif begun and verdict.kind == "severed":
            self.cut.setdefault(gateway, []).append(text)
        else:
            self.failed.append(text)

    def lost_nothing_but(self, gateway: str = "") -> None:
        """Fails if anything was lost but streams that this gateway relayed."""
        others = [text for name, texts in self.cut.items() if name != gateway for text in texts]
        assert not self.failed + others + self.ended_early


class Traffic:
    """Requests at a steady rate for as long as the `with` block lasts; those that run then still end.

    `gateways`: addresses by name.
    """

    def __init__(self, namespace: Path, gateways: Mapping[str, str], seed: int) -> None:
        self.outcome = Outcome()
        self._gateways = list(gateways)
        self._namespace = Namespace(namespace)
        self._client = Elsewhere(range(len(gateways)), addresses=list(gateways.values()))
        self._seed = seed
        self._over = threading.Event()
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        self._running = self._namespace.submit(lambda: asyncio.run(self._run()))
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        assert self._running is not None
        try:
            self._running.result(PATIENCE_S + 10)
        finally:
            self._namespace.__exit__()

    def goes_on(self, requests: int) -> None:
        """Wait until so many more have ended."""
        enough = self.outcome.ended + requests
        until(lambda: self.outcome.ended >= enough or self._running is None or self._running.done(), PATIENCE_S)
        assert self.outcome.ended >= enough, "the traffic has stopped"

    async def _run(self) -> None:
        pick = random.Random(self._seed)
        async with asyncio.TaskGroup() as tasks:
            number = 0
            while not self._over.is_set():
                tasks.create_task(self._one(ask(self._seed, number)))
                number += 1
                await asyncio.sleep(pick.expovariate(RATE))
        self._client.close()

    async def _one(self, asked: Ask) -> None:
        started_s = time.monotonic()
        answer, which = Answer(), 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer, which = await self._client.send(asked)
            verdict = judge(asked, answer) if answer.status else Verdict("error", "no gateway answers")
        except TimeoutError:
            verdict = Verdict("error", "it does not end")
        self.outcome.enter(asked, answer, self._gateways[which], verdict, time.monotonic() - started_s)

"""Short runs that each show one thing: prefill time, decode steps, both in one step, the way through a gateway.

Prompts are random token ids, so nothing of them is cached unless it was sent before on purpose. Lengths and batches are
gone through in turn, so that a machine that changes its speed meanwhile spoils all of them alike.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise

import httpx

from engines.fleet import Role
from load.client import Measured
from load.live.seen import Beside, Join, Journey, Prefill, Seen, Shared, Step
from load.live.target import Salt, Target, Unreachable

SPLITTING = "lmetric"
"""A policy that prefills remotely whatever it may; asked for by name where the gateway lets clients choose."""

_ANSWER = 48
"""Tokens of a stream whose steps are measured."""
_SHORT = 64


class Prober:
    """Runs the probes. `seen` holds what came of them, also if they are broken off."""

    def __init__(
        self, http: httpx.AsyncClient, target: Target, *, longest: int, batch: int, repeats: int, salt: Salt
    ) -> None:
        """`longest` prompt in tokens, largest `batch`; every probe is made `repeats` times."""
        self.seen = Seen(splits=target.split)
        self._http = http
        self._target = target
        self._longest = min(longest, target.longest - 2 * _ANSWER)
        self._batch = batch
        self._repeats = repeats
        self._salt = salt
        self._prefiller, self._decoder = target.one(prefills=True), target.one(prefills=False)
        for engine in (self._prefiller, self._decoder):
            alike = [e for e in target.engines if e.role is engine.role]
            if not engine.seen and len(alike) > 1:
                raise Unreachable(
                    f"{target.url}: its engines ({engine.url}) cannot be reached from here, and there are several: "
                    "probe where they can be reached"
                )
        if self._longest < 4 * _SHORT:
            raise Unreachable(f"{target.url}: a context of {target.longest} tokens is too short to be probed")

    @property
    def lengths(self) -> list[int]:
        """Of prompts: a geometric row up to the longest."""
        steps = 5
        ratio = (self._longest / _SHORT) ** (1 / steps)
        return [round(_SHORT * ratio**at) for at in range(steps + 1)]

    async def run(self, progress: Callable[[str, float], None]) -> Seen:
        """All probes; `progress` is told what is probed, and the share that is done. Raises `RequestFailed`."""
        runs: list[tuple[str, Callable[[], AsyncIterator[None]]]] = [
            ("warming up", self._warm),
            ("prefill", self._prefills),
            ("decode", self._decodes),
            ("prefill beside decode", self._mixed),
        ]
        if self._target.gateway:
            runs.append(("through the gateway", self._journeys))
        if self._target.split:
            runs += [("decode beside pulls", self._joins), ("both engines at once", self._both)]
        for at, (name, run) in enumerate(runs):
            progress(name, at / len(runs))
            async for _ in run():
                progress(name, at / len(runs))
        return self.seen

    # Asking.

    def _url(self, prefills: bool) -> str:
        engine = self._prefiller if prefills else self._decoder
        return engine.url if engine.seen else self._target.url

    async def _first_s(self, prompt: Sequence[int], url: str) -> float:
        """Until the first token of a request alone."""
        return (await self._target.ask(self._http, prompt, 1, url)).arrivals[0][0]

    async def _streams(self, batch: int, length: int, answer: int, url: str) -> list[Measured]:
        prompts = [self._salt.ids(length) for _ in range(batch)]
        return await asyncio.gather(*(self._target.ask(self._http, prompt, answer, url) for prompt in prompts))

    # The probes.

    async def _warm(self) -> AsyncIterator[None]:
        """An engine's first requests of a kind take longer."""
        for url in {self._url(True), self._url(False), self._target.url}:
            for length in (_SHORT, self._longest):
                await self._streams(2, length, 4, url)
                yield

    async def _prefills(self) -> AsyncIterator[None]:
        """Lengths with nothing cached, and rests after a cached beginning."""
        url, block = self._url(True), self._target.block_tokens
        begin = self._salt.ids(self._longest * 3 // 4 // block * block)
        await self._first_s([*begin, *self._salt.ids(block)], url)
        for _ in range(self._repeats):
            for length in self.lengths:
                took_s = await self._first_s(self._salt.ids(length), url)
                self.seen.prefills.append(Prefill(length, 0, took_s))
                yield
            for more in (_SHORT, (self._longest - len(begin)) // 2, self._longest - len(begin)):
                took_s = await self._first_s([*begin, *self._salt.ids(more)], url)
                self.seen.prefills.append(Prefill(more, len(begin), took_s))
                yield

    async def _decodes(self) -> AsyncIterator[None]:
        """Batches of short prompts and of long ones."""
        url = self._url(False)
        batches = sorted({1, 2, self._batch // 2, self._batch} - {0})
        for _ in range(max(2, self._repeats // 2)):
            for batch in batches:
                for length in (_SHORT, self._longest // 2):
                    streams = await self._streams(batch, length, _ANSWER, url)
                    if (took_s := step_s(streams)) is not None:
                        self.seen.steps.append(Step(batch, batch * (length + _ANSWER / 2), took_s))
                    yield

    async def _mixed(self) -> AsyncIterator[None]:
        """Prompts on an engine that decodes."""
        for length in (self._longest // 4, self._longest // 2, self._longest):
            async for found in self._disturbed(length, self._url(False), self._url(False)):
                self.seen.beside.append(Beside(length, found.more_s))
                if length == self._longest and found.pauses > 1:
                    self.seen.chunk_tokens = 1 << (length // found.pauses - 1).bit_length()
            yield

    async def _journeys(self) -> AsyncIterator[None]:
        """One request at a time through the gateway, split if it lets us."""
        before = await self._target.pulled(self._http)
        for _ in range(self._repeats):
            for length in self.lengths:
                prompt = self._salt.ids(length)
                found = await self._target.ask(self._http, prompt, 2, **{"x-baton-policy": SPLITTING})
                self.seen.journeys.append(_journey(length, found))
                yield
        after = await self._target.pulled(self._http)
        if before and after and after[0] > before[0]:
            self.seen.kv_bytes_per_token = (after[1] - before[1]) / (after[0] - before[0])

    async def _joins(self) -> AsyncIterator[None]:
        """Requests that were prefilled elsewhere join an engine that decodes."""
        for length in (_SHORT, self._longest // 4):
            async for found in self._disturbed(length, self._url(False), self._target.url):
                journey = _journey(length, found.other, found.beside)
                if journey.split:
                    self.seen.journeys.append(journey)
                if journey.split and length == _SHORT:
                    self.seen.joins.append(Join(length, found.more_s))
                yield

    async def _both(self) -> AsyncIterator[None]:
        """One engine prefills while another decodes: on shared cores both get slower."""
        p, d = self._prefiller, self._decoder
        if p.role is Role.BOTH or not (p.seen and d.seen) or p.host != d.host:
            return
        length = self._longest // 2
        for _ in range(self._repeats):
            alone = [await self._first_s(self._salt.ids(length), p.url) for _ in range(3)]
            still = await self._streams(2, _SHORT, _ANSWER, d.url)
            streams = asyncio.create_task(self._streams(2, _SHORT, 2 * _ANSWER, d.url))
            beside = []
            while not streams.done():
                beside.append(await self._first_s(self._salt.ids(length), p.url))
            busy_s, still_s = step_s(await streams), step_s(still)
            if len(beside) > 3 and busy_s and still_s:
                self.seen.shared.append(
                    Shared(busy_s / still_s, statistics.median(beside[1:-1]) / statistics.median(alone))
                )
            yield

    async def _disturbed(self, length: int, url: str, other: str) -> AsyncIterator["Disturbance"]:
        """Streams on `url`, and requests to `other` one after another while they run."""
        batch = max(2, self._batch // 4)
        still = await self._streams(batch, _SHORT, _ANSWER, url)
        normal_s = step_s(still)
        if not normal_s:
            return
        alone_s = await self._first_s(self._salt.ids(length), other)
        wanted_s = 2 * self._repeats * (alone_s + 6 * normal_s)
        answer = min(self._target.longest - 2 * _SHORT, _ANSWER + round(wanted_s / normal_s))
        streams = asyncio.create_task(self._streams(batch, _SHORT, answer, url))
        others = []
        while not streams.done():
            await asyncio.sleep(3 * normal_s)
            prompt, headers = self._salt.ids(length), {"x-baton-policy": SPLITTING}
            others.append(await self._target.ask(self._http, prompt, 1 if other == url else 2, other, **headers))
        running = await streams
        for one in others:
            if (found := disturbance(running, one, normal_s)) is not None:
                yield found


class Disturbance:
    """What one request did to streams beside it."""

    def __init__(self, more_s: float, pauses: int, other: Measured, beside: int) -> None:
        self.more_s = more_s
        self.pauses = pauses
        """Of a stream, how many were longer than usual."""
        self.other = other
        self.beside = beside


def _journey(length: int, found: Measured, beside: int = 0) -> Journey:
    first_s, leg_s = found.arrivals[0][0], found.stage_s("prefill")
    if "x-baton-prefill" not in found.headers or leg_s is None:
        return Journey(length, first_s, 0.0, False, beside)
    return Journey(length, leg_s, first_s - leg_s, True, beside)


def _absolute(stream: Measured) -> list[tuple[float, int]]:
    return [(stream.sent_s + at_s, tokens) for at_s, tokens in stream.arrivals]


def step_s(streams: Sequence[Measured]) -> float | None:
    """The mean step of streams while all of them run; None if they hardly ever did."""
    rows = [_absolute(stream) for stream in streams]
    begin, end = max(row[0][0] for row in rows), min(row[-1][0] for row in rows)
    found = []
    for row in rows:
        inside = [point for point in row if begin <= point[0] <= end]
        if len(inside) > 2 and inside[-1][1] - inside[0][1] >= _ANSWER // 4:
            found.append((inside[-1][0] - inside[0][0]) / (inside[-1][1] - inside[0][1]))
    return statistics.median(found) if found else None


def disturbance(streams: Sequence[Measured], other: Measured, normal_s: float) -> Disturbance | None:
    """What `other` added to the streams' time, if all of them ran while it was under way."""
    begin = other.sent_s
    end = begin + other.arrivals[0][0]
    more, pauses = [], []
    for row in map(_absolute, streams):
        before = [at for at, (when, _) in enumerate(row) if when <= begin]
        after = [at for at, (when, _) in enumerate(row) if when >= end + normal_s]
        if not before or not after:
            return None
        window = row[before[-1] : after[0] + 1]
        took_s = window[-1][0] - window[0][0]
        more.append(took_s - normal_s * (window[-1][1] - window[0][1]))
        gaps = [b[0] - a[0] - normal_s for a, b in pairwise(window)]
        pauses.append(sum(gap > max(normal_s, max(gaps) / 2) for gap in gaps))
    return Disturbance(statistics.median(more), statistics.median_high(pauses), other, len(streams))

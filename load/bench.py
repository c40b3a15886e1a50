"""All that is measured of one prefix index under one generated fleet."""

import gc
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress, TaskID

from gateway.index.contract import Index
from load.ingest import Ingest
from load.lookups import CALLS, ask, mixed, times
from load.prefixes import Workload
from load.server import Server

BLOCKS = (32, 256, 1000, 6250)
HITS = {"": 1.0, ".hit50": 0.5, ".hit0": 0.0}
"""Part of a figure's name -> how much of a prompt some engine holds."""

SEGMENTS, SEGMENT_BLOCKS = 12, 65_000
"""Pieces in which a full index is written to, of which the best counts; blocks stored and removed in each."""

_STEP = 20_000
_MATCHES_PER_S, _BLOCKS_PER_S = 2_000, 50_000

Figures = dict[str, float]
"""Dotted name with its unit -> value."""


def rss_bytes() -> int:
    """Resident memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Bench:
    """One index under one workload; figures are collected under dotted names."""

    def __init__(self, index: Index, workload: Workload, progress: Progress, server: Server | None = None) -> None:
        self.index = index
        self.figures: Figures = {}
        self._workload = workload
        self._progress = progress
        self._server = server
        self._where = "redis" if server else "memory"

    async def run(self, mixed_s: float, soak: int, then: Callable[[], Awaitable[Figures]] | None = None) -> Figures:
        """All measurements, and `then` what another makes. Raises `Wrong`, `Unavailable`, `Lost`."""
        ingest = await Ingest.open(self.index, self._workload.holders)
        await self._fill(ingest)
        await self._check()
        await self._writing(ingest)
        await self._lookups()
        if self._server is not None and mixed_s:
            await self._both(ingest, self._server, mixed_s)
        if soak:
            await self._soak(ingest, soak)
        await self._check()
        if then is not None:
            self.figures |= await then()
        await ingest.close()
        return self.figures

    async def _fill(self, ingest: Ingest) -> None:
        """Write until every engine is full; what it takes is the memory of the index."""
        turns = list(self._workload.documents())
        while not self._workload.full:
            turns += self._workload.turns(_STEP)
        before = self._memory()
        with self._bar("filling", len(turns)) as bar:
            for at in range(0, len(turns), 500):
                await ingest.push(turns[at : at + 500])
                self._progress.advance(bar, 500)
        grown = self._memory() - before
        blocks, pairs = self._workload.resident()
        self.figures |= {"blocks": blocks, "pairs": pairs}
        self.figures |= {"bytes_per_block": grown / blocks, "bytes_per_pair": grown / pairs}

    def _memory(self) -> int:
        return self._server.used_bytes() if self._server else rss_bytes()

    async def _check(self) -> None:
        """Every kind of prompt is answered rightly. Raises `Wrong`."""
        for blocks in BLOCKS:
            for hit in HITS.values():
                for query in self._workload.queries(blocks, hit, CALLS):
                    await ask(self.index, query)

    async def _writing(self, ingest: Ingest) -> None:
        took_s, cpu_s, server_us = [], [], []
        with self._bar("writing", SEGMENTS) as bar:
            for _ in range(SEGMENTS):
                turns = list(self._workload.turns(SEGMENT_BLOCKS))
                blocks = sum(turn.blocks for turn in turns)
                used_us = self._server.apply_us() if self._server else 0.0
                start, start_cpu = time.perf_counter(), time.process_time()
                await ingest.push(turns)
                took_s.append((time.perf_counter() - start) / blocks)
                cpu_s.append((time.process_time() - start_cpu) / blocks)
                server_us.append((self._server.apply_us() - used_us) / blocks if self._server else 0.0)
                self._progress.advance(bar)
        if self._server is None:
            self.figures["apply_us_per_block"] = min(took_s) * 1e6
            return
        self.figures["ingest_blocks_per_s"] = 1 / min(took_s)
        self.figures["server_us_per_block"] = min(server_us)
        self.figures["client_us_per_block"] = min(cpu_s) * 1e6

    async def _lookups(self) -> None:
        with self._bar("looking up", len(BLOCKS) * len(HITS)) as bar:
            for blocks in BLOCKS:
                for name, hit in HITS.items():
                    found = await times(self.index, self._workload.queries(blocks, hit, CALLS), self._server)
                    key = f"{blocks}{name}"
                    if self._server is None:
                        self.figures[f"match_us.{key}"] = found.p50_ms * 1e3
                    else:
                        self.figures[f"match_ms.{key}.p50"] = found.p50_ms
                        self.figures[f"match_ms.{key}.p99"] = found.p99_ms
                        self.figures[f"match_server_us.{key}"] = found.server_us
                    self._progress.advance(bar)

    async def _both(self, ingest: Ingest, server: Server, seconds: float) -> None:
        with self._bar(f"both at once, {seconds:g} s", None):
            found = await mixed(ingest, self._workload, server, _MATCHES_PER_S, _BLOCKS_PER_S, seconds)
        self.figures |= {
            "mixed.matches_per_s": found.matches_per_s,
            "mixed.blocks_per_s": found.blocks_per_s,
            "mixed.server_cpu_share": found.server_cpu_share,
            "mixed.match_ms.p50": found.times.p50_ms,
            "mixed.match_ms.p99": found.times.p99_ms,
        }

    async def _soak(self, ingest: Ingest, blocks: int) -> None:
        """Write on at a steady residency: memory must not grow."""
        written = 0
        self._weigh("start")
        with self._bar("soaking", blocks) as bar:
            for name in ("middle", "end"):
                until = blocks // 2 if name == "middle" else blocks
                while written < until:
                    turns = list(self._workload.turns(_STEP))
                    await ingest.push(turns)
                    count = sum(turn.blocks for turn in turns)
                    written += count
                    self._progress.advance(bar, count)
                self._weigh(name)
        self.figures["soak.blocks"] = written

    def _weigh(self, when: str) -> None:
        self.figures[f"soak.client_rss_mb.{when}"] = rss_bytes() / 1e6
        if self._server is not None:
            self.figures[f"soak.server_used_mb.{when}"] = self._server.used_bytes() / 1e6
            self.figures[f"soak.server_rss_mb.{when}"] = self._server.rss_bytes() / 1e6

    @contextmanager
    def _bar(self, what: str, total: float | None) -> Iterator[TaskID]:
        task = self._progress.add_task(f"{self._where}: {what}", total=total)
        try:
            yield task
        finally:
            self._progress.remove_task(task)

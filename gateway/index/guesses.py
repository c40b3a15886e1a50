"""Who will hold what soon: guesses that end by themselves.

A guess is kept under the hash of some blocks of its prompt (the 4th, 8th, 16th, every 32nd, and the last) in one of
two buckets that take turns: when the older one is dropped, all in it has ended. So nothing has to be swept, and a
prompt that shares 500 blocks with an earlier one is found 480 deep.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

FIRST, GRID = 4, 32
"""The first block whose hash is kept, and how far apart they are once doubling has come so far."""

ENTRIES = 1 << 20
"""Hashes in one bucket at most; further guesses are not kept until it is dropped."""


@lru_cache(1024)
def depths(blocks: int) -> tuple[int, ...]:
    """The depths at which a prompt of so many blocks is remembered."""
    found = []
    depth = FIRST
    while depth < blocks:
        found.append(depth)
        depth += min(depth, GRID)
    if blocks:
        found.append(blocks)
    return tuple(found)


def grid(hashes: bytes) -> list[bytes]:
    """The hashes under which a prompt is remembered: those at its depths."""
    return [hashes[8 * depth - 8 : 8 * depth] for depth in depths(len(hashes) // 8)]


class Guesses:
    """Guesses with about the same time to live, `ttl_s` at most."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._now: dict[bytes, dict[str, float]] = {}
        self._before: dict[bytes, dict[str, float]] = {}
        self._turn_s = 0.0

    def put(self, hashes: bytes, engines: Sequence[str], ttl_s: float) -> None:
        """These engines will hold this prompt, until `ttl_s` from now."""
        ends = self._turn(ttl_s) + ttl_s
        if len(self._now) >= ENTRIES:
            return
        for key in grid(hashes):
            holders = self._now.setdefault(key, {})
            for engine in engines:
                holders[engine] = ends

    def get(self, hashes: bytes) -> dict[str, int]:
        """Engine -> leading blocks that it is expected to hold."""
        if not self._now and not self._before:
            return {}
        now = self._clock()
        found: dict[str, int] = {}
        for depth, key in zip(depths(len(hashes) // 8), grid(hashes), strict=True):
            holders = [bucket[key] for bucket in (self._before, self._now) if key in bucket]
            alive = [engine for bucket in holders for engine, ends in bucket.items() if ends > now]
            if not alive:
                break
            found.update(dict.fromkeys(alive, depth))
        return found

    def _turn(self, ttl_s: float) -> float:
        """Drop the older bucket when its time has come; returns the time."""
        now = self._clock()
        if now >= self._turn_s:
            self._before = self._now if now < self._turn_s + ttl_s else {}
            self._now = {}
            self._turn_s = now + ttl_s
        return now

    def __len__(self) -> int:
        return len(self._now) + len(self._before)

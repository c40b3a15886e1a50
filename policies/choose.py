"""Pieces that make the common policy ten lines: filter, score, pick."""

import random
from collections.abc import Callable, Iterable, Sequence

from policies.contract import Engine

Score = Callable[[Engine], float]
"""More is better."""


def scores(engines: Iterable[Engine], score: Score) -> dict[str, float]:
    """What each engine scores, by name."""
    return {engine.name: score(engine) for engine in engines}


def best(engines: Sequence[Engine], score: Score, spread: random.Random | None = None) -> Engine:
    """The engine of the highest score; ties go to a random one, so that a burst does not herd. Engines not empty."""
    values = [score(engine) for engine in engines]
    top = max(values)
    ties = [engine for engine, value in zip(engines, values, strict=True) if value == top]
    return ties[0] if len(ties) == 1 else (spread or random).choice(ties)


def without(engines: Iterable[Engine], name: str) -> tuple[Engine, ...]:
    """All engines but the one of that name."""
    return tuple(engine for engine in engines if engine.name != name)

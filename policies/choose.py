"""Pieces that make the common policy ten lines: filter, score, pick."""

import random
from collections.abc import Iterable, Mapping

from policies.contract import Engine


def top(scores: Mapping[str, float], spread: random.Random) -> str:
    """The name of the highest score; ties go to a random one, so that a burst does not herd. Not empty."""
    highest = max(scores.values())
    ties = [name for name, score in scores.items() if score == highest]
    if len(ties) == 1:
        return ties[0]
    return spread.choice(ties or list(scores))  # no score equals the highest where that is not a number


def without(engines: Iterable[Engine], name: str) -> tuple[Engine, ...]:
    """All engines but the one of that name."""
    return tuple([engine for engine in engines if engine.name != name])

"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], within_s: float = 10.0) -> T:
    """The first true value of `condition`. Raises `TimeoutError`."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} was not true within {within_s} s")
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    """True if a process has this id and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

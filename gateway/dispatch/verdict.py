"""What follows when a leg fails before the client was sent anything: one pure function."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

Cause = Literal[
    "refused", "stale", "closed", "timeout", "bad_answer", "rejected", "overloaded", "error", "incomplete", "late"
]
"""refused: no connection. stale: a kept connection was gone before any answer. closed, timeout, bad_answer: while
answering. rejected: 4xx. overloaded: 429 or 503. error: another 5xx. incomplete: no usable transfer parameters.
late: the transfer may have come after the lease."""


class Leg(Enum):
    PREFILL = auto()
    DECODE = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the next attempt differs from this one."""

    avoid_prefill: bool = False
    avoid_decode: bool = False
    whole: str = ""
    """Why the next attempt is not split; empty: it may be."""


def judge(leg: Leg, cause: Cause, remote: bool) -> Verdict:
    """Decide what follows. `remote`: the decode leg carried transfer parameters.

    Transfer parameters are never used again: whoever comes next prefills afresh.
    """
    if cause == "stale":
        return Verdict()  # says nothing about the engine
    if leg is Leg.PREFILL:
        if cause == "rejected":
            return Verdict(whole="the prefill engine rejected it")  # the decode engine judges the original body
        return Verdict(avoid_prefill=True)
    if cause == "late":
        return Verdict(whole="the transfer was late")
    if cause == "error" and remote:
        return Verdict(avoid_prefill=True, whole="the transfer failed")  # vLLM answers 500 when it cannot load the KV
    return Verdict(avoid_decode=True)

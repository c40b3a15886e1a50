"""What follows when a leg fails: one pure function, the failure table in code.

`decide` gets what happened, what the client was sent of it, and what is still usable; it says what to do next. Nobody
else decides that something is tried again.
"""

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
class Failure:
    """What happened."""

    leg: Leg
    cause: Cause
    remote: bool = False
    """The decode leg was to fetch KV from a prefill engine."""
    lasting: bool = False
    """What was asked for lives on in the engine without us (a background response)."""
    begun: bool = False
    """The client has been sent a part of the answer."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is still usable."""

    time_s: float
    """Until the request's deadline."""
    tries: int
    """Placements that it may still have."""
    budget: bool = True
    """Whether all requests together have retries left."""
    free: bool = False
    """This request was not brought elsewhere for free yet."""
    refusals: int = 0
    """Refused connections that it may still meet without a try for each."""
    others: bool = True
    """Another engine can answer."""
    transfer: bool = False
    """The transfer's parameters were certainly not sent to anybody, and are in time."""
    migrations: int = 0
    """How often its stream may still go on elsewhere; 0 as well where that cannot be exact."""


class Next(Enum):
    """What to do."""

    PLACE = auto()
    """Choose engines again, prefill afresh."""
    WHOLE = auto()
    """Choose one engine for all of it."""
    KEEP = auto()
    """Choose a decode engine again; the KV that was prefilled is still there for it."""
    MIGRATE = auto()
    """Let the stream go on elsewhere from what was delivered."""
    FAIL = auto()
    """Tell the client."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do next, and what that costs."""

    next: Next
    why: str
    avoid: Leg | None = None
    """The engine of this leg is not asked again for this request."""
    tries: int = 1
    """How many placements it uses up."""
    pays: bool = True
    """It is one of the retries that are a share of the traffic."""


_EFFECT_UNKNOWN = ("stale", "closed", "timeout", "bad_answer", "late")
"""Something may have been done, nobody knows what."""


def decide(failure: Failure, left: Left) -> Verdict:
    """Decide what follows a failure."""
    verdict = _begun(failure) if failure.begun else _before(failure, left)
    if verdict.next is Next.FAIL:
        return verdict
    if left.time_s <= 0:
        return _fail("no time left")
    if failure.lasting and failure.cause in _EFFECT_UNKNOWN:
        return _fail("it may be under way on the engine that failed")
    if verdict.avoid is Leg.DECODE and not left.others and failure.cause != "refused":  # that one may come up again
        return _fail("there is no other engine")
    if verdict.next is Next.MIGRATE:
        if left.migrations < 1:
            return _fail("it cannot go on elsewhere")
    elif left.tries < verdict.tries:
        return _fail("tried often enough")
    if verdict.pays and not left.budget:
        return _fail(SPENT)
    return verdict


SPENT = "the retry budget is spent"


def _fail(why: str) -> Verdict:
    return Verdict(Next.FAIL, why, tries=0, pays=False)


def _free(failure: Failure, left: Left) -> bool:
    """Whether a retry adds no work to the fleet: the engine that failed does nothing of it any more.

    A refused connection never carried the request. One that breaks is a process that has ended, or soon a pattern: it
    is free once a request.
    """
    return failure.cause in ("refused", "stale") or (failure.cause == "closed" and left.free)


def _before(failure: Failure, left: Left) -> Verdict:
    """The client was sent nothing."""
    pays = not _free(failure, left)
    cause = failure.cause
    if cause == "stale":
        return Verdict(Next.PLACE, "a connection was gone: that says nothing of the engine", pays=pays)
    tries = 0 if cause == "refused" and left.refusals else 1
    if failure.leg is Leg.PREFILL:
        if cause == "rejected":
            return Verdict(Next.WHOLE, "the prefill engine rejected it", pays=False)  # whoever decodes is the judge
        return Verdict(Next.PLACE, "another engine prefills", Leg.PREFILL, tries, pays)
    if cause == "late":
        return Verdict(Next.WHOLE, "the transfer was late", pays=pays)
    if cause == "error" and failure.remote:  # vLLM's answer when it cannot fetch the KV
        return Verdict(Next.WHOLE, "the transfer failed", Leg.PREFILL, pays=pays)
    if left.transfer:
        return Verdict(Next.KEEP, "another engine decodes what was prefilled", Leg.DECODE, tries, pays)
    return Verdict(Next.PLACE, "another engine decodes", Leg.DECODE, tries, pays)


def _begun(failure: Failure) -> Verdict:
    """The client has been sent a part. It is one more request to the fleet, bounded by itself, and no retry."""
    return Verdict(Next.MIGRATE, "the stream goes on elsewhere", Leg.DECODE, tries=0, pays=False)

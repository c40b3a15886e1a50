"""Examines a policy: is every placement valid, how long does it take, is it the same each time?

It runs in a process of its own with a time limit, so that nothing a policy does can hurt the one who asks.
"""

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection

import msgspec

from policies.contract import Fleet, Nonsense, Placement, Policy, Request, check
from policies.corpus import SIZES, asked, cases, fleet
from policies.registry import UnknownPolicy, takes_seed

LIMIT_S = 5.0
"""A case must be over by then; there is half a minute for the process to start, which runs the policy's file."""
START_S = 30.0
REASON = 120
"""Characters in a placement's reason, at most: it becomes a metric's label and a header."""
_DECISIONS = {8: 400, 64: 200, 256: 100, 1000: 40}
_MAKING, _TIMES, _TWICE = "making it", "decision times", "determinism"


class Result(msgspec.Struct, frozen=True):
    """One case."""

    case: str
    error: str
    """Empty if all is well."""


class Times(msgspec.Struct, frozen=True):
    """How long decisions took on fleets of one size."""

    engines: int
    median_us: float
    p99_us: float
    worst_us: float


class Report(msgspec.Struct, frozen=True):
    """What an examination found."""

    results: tuple[Result, ...]
    times: tuple[Times, ...] = ()
    seeded: bool = False
    """Whether it takes a seed; then it must be deterministic."""
    deterministic: bool | None = None
    """Whether two instances decided alike; None: not known."""

    @property
    def errors(self) -> list[str]:
        return [f"{result.case}: {result.error}" for result in self.results if result.error]

    @property
    def good(self) -> bool:
        return not self.errors


def examine(make: Callable[..., Policy], limit_s: float = LIMIT_S) -> Report:
    """Run the policy that `make` makes against the corpus. `make` can be pickled; its `seed` is used if it has one.

    Never raises for what the policy does; returns within a minute whatever it does.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(make, theirs), daemon=True)
    results: list[Result] = []
    times: list[Times] = []
    seeded, deterministic = False, None
    now = "starting"
    wait_s = START_S
    child.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(wait_s):
                results.append(Result(now, f"did not return within {wait_s:g} s"))
                break
            said = ours.recv()
            match said:
                case str():
                    now, wait_s = said, limit_s
                case Result() if said.case == _TWICE:
                    seeded, deterministic = True, not said.error
                    results.append(said)
                case Result():
                    results.append(said)
                case Times():
                    times.append(said)
                case bool():
                    deterministic = said
                case None:
                    break
    except EOFError:
        child.join(1)
        results.append(Result(now, f"the process ended with {child.exitcode}: a policy must not end its process"))
    finally:
        child.kill()
        child.join()
        ours.close()
    return Report(tuple(results), tuple(times), seeded, deterministic)


def readable(placement: Placement) -> Placement:
    """Return the placement if its reason can be shown. Raises `Nonsense`."""
    reason: object = placement.reason
    if not isinstance(reason, str) or not reason.isprintable() or len(reason) > REASON:
        raise Nonsense(f"reason {str(reason)[:40]!r} is not a line of text of at most {REASON} characters")
    return placement


def run(make: Callable[..., Policy]) -> Iterator[str | Result | Times | bool]:
    """The examination itself, in this process: what is tried next, then what was found."""
    yield _MAKING
    try:
        policy = make()
    except Exception as error:
        yield Result(_MAKING, _said(error))
        return
    yield Result(_MAKING, "")
    for name, asks in cases():
        yield name
        yield Result(name, _tried(policy, asks))
    spread = random.Random(1)
    for size in SIZES:
        yield _TIMES
        found = _timed(policy, size, spread)
        yield found if isinstance(found, Times) else Result(f"{_TIMES}, {size} engines", found)
    yield _TWICE
    seeded = takes_seed(type(policy)) and takes_seed(make)
    try:
        same = _decisions(make, seeded) == _decisions(make, seeded)
    except Exception as error:
        yield Result(_TWICE, _said(error))
        return
    if seeded:
        yield Result(_TWICE, "" if same else "two instances of the same seed decide differently")
    else:
        yield same


def _child(make: Callable[..., Policy], pipe: Connection) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        try:
            for found in run(make):
                pipe.send(found)
            pipe.send(None)
        except (BrokenPipeError, KeyboardInterrupt):
            pass


def _said(error: BaseException) -> str:
    if isinstance(error, UnknownPolicy):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _tried(policy: Policy, asks: tuple[tuple[Request, Fleet], ...]) -> str:
    """What went wrong first; empty if nothing did."""
    try:
        for request, over in asks:
            readable(check(policy.place(request, over), request, over))
    except BaseException as error:
        return _said(error)
    return ""


def _timed(policy: Policy, size: int, spread: random.Random) -> Times | str:
    over = fleet(size, spread)
    requests = list(asked(spread, _DECISIONS[size]))
    took = []
    try:
        for request in requests:
            start = time.perf_counter()
            policy.place(request, over)
            took.append((time.perf_counter() - start) * 1e6)
    except BaseException as error:
        return _said(error)
    took.sort()
    return Times(size, took[len(took) // 2], took[len(took) * 99 // 100], took[-1])


def _decisions(make: Callable[..., Policy], seeded: bool) -> list[tuple[str, str | None]]:
    policy = make(seed=11) if seeded else make()
    spread = random.Random(3)
    fleets = [fleet(size, spread) for size in (2, 8, 64)]
    placed = (policy.place(request, over) for request in asked(spread, 60) for over in fleets)
    return [(placement.decode, placement.prefill) for placement in placed]

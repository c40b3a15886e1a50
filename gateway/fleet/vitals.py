"""What an engine's own metrics say of how it is, held against what we count: is it stuck, do the counts agree?"""

import time
from collections.abc import Callable, Iterable

import httpx
import msgspec

from engines import surface
from engines.surface import total
from gateway.fleet.engine import Engine
from gateway.index.contract import InFlight

_WORK = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")


class Vitals(msgspec.Struct, frozen=True):
    """One look at an engine's metrics."""

    requests: int
    """Running and waiting there, whoever sent them."""
    kv_usage: float
    """Share of its KV blocks that are in use."""
    work: float
    """A number that grows as long as it computes."""


def vitals(page: str, rank: int | None = None) -> Vitals | None:
    """Read an engine's `/metrics`, or what it says of one data-parallel rank; None if it does not say."""
    which = {} if rank is None else {"engine": str(rank)}
    running, waiting = total(page, surface.RUNNING, which), total(page, surface.WAITING, which)
    if running is None or waiting is None:
        return None
    work = sum(total(page, name, which) or 0.0 for name in _WORK)
    return Vitals(int(running + waiting), total(page, surface.KV_USAGE, which) or 0.0, work)


async def look(http: httpx.AsyncClient, rank: int | None = None) -> Vitals | None:
    """Ask an engine how it is; None if it does not say."""
    try:
        answer = await http.get("/metrics")
    except httpx.HTTPError:
        return None
    return vitals(answer.text, rank) if answer.status_code == 200 else None


async def silence(http: httpx.AsyncClient, model: str, timeout_s: float) -> str:
    """Ask an engine for one token. Returns why it gives no answer; empty if it does, even if that is a refusal."""
    try:
        answer = await http.post(
            "/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 1}, timeout=timeout_s
        )
    except httpx.TimeoutException:
        return f"it accepts requests and does not answer within {timeout_s:g} s"
    except (httpx.HTTPError, OSError) as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return f"a request for one token was answered with {answer.status_code}" if answer.status_code >= 500 else ""


def expected(engine: Engine, elsewhere: Iterable[InFlight] = ()) -> tuple[int, int]:
    """How many requests the engine should have, at least and at most; `elsewhere`: what other gateways have there."""
    low = high = 0
    for load in (engine.in_flight, *elsewhere):
        decodes = load.decode_requests - load.coming_requests
        low += max(decodes, load.prefill_requests)  # who prefills locally is booked as both
        high += decodes + (load.prefill_requests if engine.role.prefills else 0)
    return low, max(low, high)


class Drift:
    """How far the engine's count of requests is from all gateways', and whether that lasts without a reason."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self.value = 0
        """Requests that the engine has beyond those that gateways know of; negative: it has fewer."""
        self.lasts_s = 0.0
        """How long one side has had some, and the other none at all."""

    def see(self, theirs: int, low: int, high: int) -> None:
        """The engine has `theirs`; gateways know of `low` to `high`."""
        self.value = theirs - min(max(theirs, low), high)
        odd = not high if theirs else low > 0
        if not odd:
            self._since, self.lasts_s = None, 0.0
            return
        now = self._clock()
        self._since = now if self._since is None else self._since
        self.lasts_s = now - self._since


class Stall:
    """Whether an engine has requests and computes nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._work = -1.0
        self._heard_s = 0.0
        self._since = clock()

    def see(self, found: Vitals | None, engine: Engine) -> float:
        """How long it has had requests without a sign of work, seconds."""
        busy = not engine.idle or (found is not None and found.requests > 0)
        work = found.work if found is not None else self._work
        if not busy or work != self._work or engine.heard_s != self._heard_s:
            self._work, self._heard_s = work, engine.heard_s
            self._since = self._clock()
        return self._clock() - self._since

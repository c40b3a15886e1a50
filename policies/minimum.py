"""The minimum that `joint` takes: what every way of serving a request costs, and the cheapest of them.

Terms, sources and flaws stand in `policies/joint.py`. This is apart from the classes that operators inherit from, so
that it can be compiled (`baton native`).
"""

import random

from policies.alike import Alike
from policies.contract import Engine, Fleet, Placement, Request
from policies.formulas import decode_s, prefill_s, waits_s
from policies.stalls import Stalls, running

CREDIT, CAP = 3.0, 20.0
STEPS, ANSWER = 0.1, 256
FULL = 2048
"""Decode steps that a request waits for room where none of what it needs is free."""

LONG = 0.5
"""Odds, of which memory half full has 1, where a decode step takes twice as long as an empty engine's."""

SESSION = 0.5
"""Decode steps that it is worth to stay with the engine that decoded the conversation's last turn, all else equal."""

RELOAD_GBPS = 160.0
"""At which blocks come back from host memory or disk."""

MISSED = 1e3
"""Seconds that a second beyond an objective weighs as."""

HOSTS = 8
"""Prefill engines are looked for on so many hosts, those with the least to wait: exact up to there, and beyond unless
links differ by more than queues do."""

PATIENCE_S = 2.0
"""A longer queue than this is saturation, where the request has no objective of its own."""

_NEVER = 1e9


def _prefill_s(engine: Engine, new: float, cached: float) -> float:
    speed = engine.speed
    return prefill_s(speed.token_s, speed.context_s, new, cached)


def _waits_s(engine: Engine, now_s: float) -> float:
    return waits_s(engine.prefill_s, engine.prefill_requests, engine.prefill_since_s, now_s)


def _work_s(engine: Engine, prompt: int, reload_s: float) -> float:
    """Seconds to prefill what the engine lacks; what it holds on a slower tier is reloaded, at `reload_s` a token."""
    cached = min(engine.cached_tokens, prompt - 1)
    slower = min(engine.offloaded_tokens, prompt - 1) - cached
    if slower <= 0:
        return _prefill_s(engine, max(1, prompt - cached), cached)
    return _prefill_s(engine, prompt - cached - slower, cached + slower) + slower * reload_s


def _cost_s(engine: Engine, work_s: float, alike: tuple[float, float], rush: float, now_s: float) -> float:
    """What prefilling there costs: the queue, the work, and those who come after."""
    wait_s, fair_s = _waits_s(engine, now_s), work_s
    reuse, common = alike
    if common > (cached := engine.cached_tokens):
        fair_s -= (1.0 - 1.0 / reuse) * min(work_s, _prefill_s(engine, common - cached, cached))
    price = CREDIT + min(CAP, rush * (wait_s + fair_s))
    return wait_s + work_s - fair_s + fair_s * price * engine.cost


def _reason(request: Request, collocated: bool, prefill: str | None) -> str:
    if request.whole:
        return "least cost, whole"
    if prefill is not None:
        return "least cost, remote prefill"
    return "least cost" if collocated else "least cost, local prefill"


class Minimum:
    """Both engines in one minimum. `slowed`: what a second costs by which a local prefill delays a decode, where half
    of the memory is held or a step takes three times as long as an empty engine's.
    """

    def __init__(self, seed: int | None, stalls: Stalls, slowed: float) -> None:
        self._spread = random.Random(seed)
        self._alike = Alike()
        self._stalls = stalls
        self._slowed = slowed

    def place(self, request: Request, fleet: Fleet) -> Placement:
        prompt = request.prompt_tokens
        answer = ANSWER if request.output_tokens is None else min(ANSWER, request.output_tokens)
        now_s, engines = fleet.now_s, fleet.engines
        prefillers = [engine for engine in engines if engine.role != "decode"]
        collocated = all(engine.role == "both" for engine in engines)
        rush = fleet.arrivals_per_s / max(1, len(prefillers)) / max(0.1, 1.0 - fleet.prefill_load)
        price = 0.0 if collocated else fleet.itl_price
        harm = self._stalls.price * price
        reload_s = fleet.kv_bytes_per_token * 8e-9 / RELOAD_GBPS
        scores: dict[str, float] = {}
        reuse, common = self._alike.arrived(request.prefix, max((e.cached_tokens for e in engines), default=0))
        alike = reuse, min(common, prompt - 1.0)

        by_host: dict[str, list[tuple[float, str]]] = {}
        remote = not request.whole and not collocated
        if remote:
            for engine in prefillers:
                work = _work_s(engine, prompt, reload_s)
                slows = 0.0
                if engine.decode_requests > engine.coming_requests:
                    work *= engine.speed.mix
                    slows = self._slows_s(engine, work, 0.0, price)
                cost = _cost_s(engine, work, alike, rush, now_s) + slows
                scores[engine.name] = -cost
                by_host.setdefault(engine.host, []).append((cost, engine.name))
        cheapest = sorted((min(found), host) for host, found in by_host.items())
        nearest = {host: found for found, host in cheapest[:HOSTS]}

        best = _NEVER
        streams = 0.0
        filled: set[str] = set()
        ties: list[tuple[str, str | None]] = []
        for engine in engines:
            if engine.role == "prefill":
                continue
            decoding, step_s, full = self._decoding(engine, prompt, answer, request.itl_slo_s)
            decoding += harm * self._stalls.rate(engine.name, now_s) * answer * step_s
            new = max(1, prompt - engine.cached_tokens)
            busy = engine.decode_requests - engine.coming_requests
            if step_s > 0:
                streams += busy / step_s
            speed = engine.speed
            work = _work_s(engine, prompt, reload_s)
            if busy:
                work *= speed.mix
            local = _cost_s(engine, work, alike, rush, now_s) + decoding
            if price and busy:
                local += self._slows_s(engine, work, speed.join_s, price)
            if full:
                filled.add(engine.name)
                if nearest and not request.whole:
                    local += _NEVER
            scores[engine.name] = -min(local, _NEVER)
            if local < best:
                best, ties = local, [(engine.name, None)]
            elif local == best:
                ties.append((engine.name, None))
            base = decoding + speed.leg_s
            for host, (cost, name) in nearest.items():
                if cost + base > best:
                    break  # so are all that follow
                if name == engine.name:
                    continue
                cost += base + fleet.transfer_s(host, engine.host, new)
                if cost < best:
                    best, ties = cost, [(engine.name, name)]
                elif cost == best:
                    ties.append((engine.name, name))
        if not ties:  # every sum was infinite, or no number at all
            ties = [(engine.name, None) for engine in fleet.decoders]
        decode, prefill = ties[0] if len(ties) == 1 else self._spread.choice(ties)
        if prefill is not None:
            prefill = self._among_equals(prefill, decode, by_host)
        chosen = next(engine for engine in engines if engine.name == (prefill or decode))
        if remote and streams > 0 and fleet.arrivals_per_s > 0:
            beside = chosen if chosen.role != "prefill" else None
            work = _work_s(chosen, prompt, 0.0) * chosen.speed.mix
            self._stalls.placed(beside, prompt, work, streams / fleet.arrivals_per_s, now_s)
        waits = _waits_s(chosen, now_s)
        late = waits > (PATIENCE_S if request.ttft_slo_s is None else request.ttft_slo_s)
        ttft_s = waits + _work_s(chosen, prompt, reload_s)
        if prefill is not None:
            target = next(engine for engine in engines if engine.name == decode)
            ttft_s += target.speed.leg_s
            ttft_s += fleet.transfer_s(chosen.host, target.host, max(1, prompt - target.cached_tokens))
        return Placement(
            decode=decode,
            prefill=prefill,
            reason=_reason(request, collocated, prefill),
            scores=scores,
            ttft_s=ttft_s,
            saturated="memory" if decode in filled else "queues" if late else "",
        )

    def _decoding(self, engine: Engine, prompt: int, answer: int, itl_slo_s: float | None) -> tuple[float, float, bool]:
        """What decoding there costs, how long a step will take, and whether its memory is full."""
        speed, busy, held = engine.speed, engine.decode_requests, engine.decode_tokens
        step = decode_s(speed.step_s, speed.sequence_s, speed.kv_s, busy + 1, held + prompt)
        cost = STEPS * answer * (step + busy * (speed.sequence_s + speed.kv_s * prompt))
        if itl_slo_s is not None and step > itl_slo_s:
            cost += MISSED * (step - itl_slo_s)
        if engine.session:
            cost -= SESSION * step
        over = held - engine.coming_tokens + prompt + answer - engine.kv_tokens
        if engine.kv_tokens and over > 0:
            return cost + FULL * step * over / engine.kv_tokens, step, True
        return cost, step, False

    def _slows_s(self, engine: Engine, work_s: float, least_s: float, price: float) -> float:
        """What a prefill of `work_s` costs those that the engine decodes now, beyond what one of `least_s` would."""
        if work_s <= least_s:
            return 0.0
        stalls, empty_s = self._stalls, engine.speed.step_s
        busy, step_s = running(engine)
        odds = min(10.0, LONG * (step_s / empty_s - 1.0)) if empty_s > 0.0 else 0.0
        if engine.kv_tokens:
            held = engine.decode_tokens - engine.coming_tokens
            odds = max(odds, held / max(0.1 * engine.kv_tokens, engine.kv_tokens - held))
        stalled_s = stalls.stalled_s(engine, work_s) - stalls.stalled_s(engine, least_s)
        slowed_s = self._slowed * (work_s - least_s) * odds * odds
        return busy * (price * stalls.price * stalled_s + max(1.0, price) * slowed_s)

    def _among_equals(self, name: str, decode: str, by_host: dict[str, list[tuple[float, str]]]) -> str:
        """One of the prefill engines that cost the same as `name` on its host."""
        for found in by_host.values():
            cost = next((cost for cost, other in found if other == name), None)
            if cost is not None:
                equal = [other for at, other in found if at == cost and other != decode]
                return self._spread.choice(equal) if len(equal) > 1 else name
        return name

"""`joint`: the prefill engine (or none) and the decode engine together, by what the request will wait and what it costs
the others.

Formula, in seconds; the smaller of two sums wins, exact ties at random:

    remote = q_p + w_p + f_p * (price_p - 1) + B_d + leg + transfer(p, d)                           least over p and d
    local  = q_d + w_d + f_d * (price_d - 1) + B_d + n_d * (harm * stall_d + 0.1 * w_d * odds_d ** 2)    least over d

    w_e     = prefill(what e lacks of the prompt), times `mix` beside running decodes; blocks on a slower tier at the
              time that reloading them takes
    f_e     = of that, what falls to this request: what prompts that begin alike have in common (`policies/alike.py`) is
              computed once for all that come, so that a hot prefix gets copies
    q_e     = prefill seconds booked on e, without what is done of the present one
    price_e = 3 + min(20, arrivals per prefill engine * (q_e + f_e) / max(0.1, 1 - prefill_load)):
              what a second of this work costs those who come after
    stall_d = w_d * min(1, w_d / (6 decode steps)): what a local prefill takes from each of the n_d requests that d
              decodes now; a short pause hurts nobody
    odds_d  = full / max(0.1, 1 - full), full being the share of d's KV memory that they hold: where there is room,
              decoding longer keeps nobody out
    B_d     = wait_d + 0.1 * answer * (step_d + n_d * what this request adds to each step)
              + harm * seconds of stall that each decode on d had lately, a second * answer * step_d
    wait_d  = 2048 decode steps * what does not fit into d's KV memory / that memory; such an engine prefills nothing
              itself

answer: 256 tokens, or the client's limit if that is less. Where every engine does both: the local sum, without harm.

`harm` is a virtual queue (`policies/stalls.py`): of the tokens that are decoded (as many a second as the running
batches and their steps say, shared over the arrivals) 1 % may come after a pause more than twice as long as usual;
each placement that brings more raises it, one that brings less lowers it, within [0.05, 2.1]. So pauses are spent
where there are some to spare, without an objective in milliseconds; and as it is paid by decodes too that go where
stalls are, they gather on few engines if that spares the others.
Source: drift-plus-penalty; terms and defaults by simulation (`load/results/policies.md`).
Defaults: as above (`joint`); harm 0.05, and 0.01 for 0.1 in `local` (`joint_throughput`: least TTFT, longer pauses);
0.2 % and harm at most 3 (`joint_latency`); harm is each time multiplied by the fleet's `itl_price`.
Where the chosen engines make a request wait longer than its objective (2 s where it has none), or have no room for it,
the placement says so (`saturated`): to hold or to refuse it is admission's.
Flaws: trusts the fitted speeds; places one request at a time and never moves it; cannot make room where all is full.
"""

import random

from policies.alike import Alike
from policies.contract import Engine, Fleet, Placement, Request
from policies.stalls import Stalls

CREDIT, CAP = 3.0, 20.0
STEPS, ANSWER = 0.1, 256
FULL = 2048
"""Decode steps that a request waits for room where none of what it needs is free."""

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


def _work_s(engine: Engine, prompt: int, reload_s: float) -> float:
    """Seconds to prefill what the engine lacks; what it holds on a slower tier is reloaded, at `reload_s` a token."""
    cached = min(engine.cached_tokens, prompt - 1)
    slower = min(engine.offloaded_tokens, prompt - 1) - cached
    if slower <= 0:
        return engine.speed.prefill_s(max(1, prompt - cached), cached)
    return engine.speed.prefill_s(prompt - cached - slower, cached + slower) + slower * reload_s


def _cost_s(engine: Engine, work_s: float, alike: tuple[float, float], rush: float, now_s: float) -> float:
    """What prefilling there costs: the queue, the work, and those who come after."""
    waits_s, fair_s = engine.waits_s(now_s), work_s
    reuse, common = alike
    if common > (cached := engine.cached_tokens):
        fair_s -= (1.0 - 1.0 / reuse) * min(work_s, engine.speed.prefill_s(common - cached, cached))
    price = CREDIT + min(CAP, rush * (waits_s + fair_s))
    return waits_s + work_s - fair_s + fair_s * price * engine.cost


def _reason(request: Request, fleet: Fleet, prefill: str | None) -> str:
    if request.whole:
        return "least cost, whole"
    if prefill is not None:
        return "least cost, remote prefill"
    return "least cost" if fleet.collocated else "least cost, local prefill"


class Joint:
    """Both engines in one minimum."""

    least, most = 0.05, 2.1
    """Between which `harm` moves."""
    slowed = STEPS
    """What a second costs by which a local prefill delays a decode, where half of the memory is held."""
    share = 0.01
    """Of tokens that may come after a stall."""

    def __init__(self, seed: int | None = None) -> None:
        self.spread = random.Random(seed)
        self.alike = Alike()
        self.stalls = Stalls(self.share, self.least, self.most)

    def place(self, request: Request, fleet: Fleet) -> Placement:
        prompt = request.prompt_tokens
        answer = ANSWER if request.output_tokens is None else min(ANSWER, request.output_tokens)
        now_s = fleet.now_s
        prefillers = fleet.prefillers
        collocated = fleet.collocated
        rush = fleet.arrivals_per_s / max(1, len(prefillers)) / max(0.1, 1.0 - fleet.prefill_load)
        harm = 0.0 if collocated else self.stalls.price * fleet.itl_price
        reload_s = fleet.kv_bytes_per_token * 8e-9 / RELOAD_GBPS
        scores: dict[str, float] = {}
        reuse, common = self.alike.arrived(request.prefix, max((e.cached_tokens for e in fleet.engines), default=0))
        alike = reuse, min(common, prompt - 1.0)

        by_host: dict[str, list[tuple[float, str]]] = {}
        remote = not request.whole and not collocated
        if remote:
            for engine in prefillers:
                cost = _cost_s(engine, _work_s(engine, prompt, reload_s), alike, rush, now_s)
                scores[engine.name] = -cost
                by_host.setdefault(engine.host, []).append((cost, engine.name))
        cheapest = sorted((min(found), host) for host, found in by_host.items())
        nearest = {host: found for found, host in cheapest[:HOSTS]}

        best = _NEVER
        streams = 0.0
        filled: set[str] = set()
        ties: list[tuple[str, str | None]] = []
        for engine in fleet.engines:
            if engine.role == "prefill":
                continue
            decoding, step_s, full = self._decoding(engine, prompt, answer, request.itl_slo_s)
            decoding += harm * self.stalls.rate(engine.name, now_s) * answer * step_s
            new = max(1, prompt - engine.cached_tokens)
            busy = engine.decode_requests - engine.coming_requests
            if step_s > 0:
                streams += busy / step_s
            speed = engine.speed
            work = _work_s(engine, prompt, reload_s)
            if busy:
                work *= speed.mix
            local = _cost_s(engine, work, alike, rush, now_s) + decoding
            if harm and busy:
                held = (engine.decode_tokens - engine.coming_tokens) / engine.kv_tokens if engine.kv_tokens else 0.0
                odds = held / max(0.1, 1.0 - held)
                local += busy * (harm * self.stalls.stalled_s(engine, work) + self.slowed * work * odds * odds)
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
        decode, prefill = ties[0] if len(ties) == 1 else self.spread.choice(ties)
        if prefill is not None:
            prefill = self._among_equals(prefill, decode, by_host)
        chosen = next(engine for engine in fleet.engines if engine.name == (prefill or decode))
        if remote and streams > 0 and fleet.arrivals_per_s > 0:
            beside = chosen if prefill is None else None
            work = _work_s(chosen, prompt, 0.0) * chosen.speed.mix
            self.stalls.placed(beside, prompt, work, streams / fleet.arrivals_per_s, now_s)
        waits = chosen.waits_s(now_s)
        late = waits > (PATIENCE_S if request.ttft_slo_s is None else request.ttft_slo_s)
        ttft_s = waits + _work_s(chosen, prompt, reload_s)
        if prefill is not None:
            target = next(engine for engine in fleet.engines if engine.name == decode)
            ttft_s += target.speed.leg_s
            ttft_s += fleet.transfer_s(chosen.host, target.host, max(1, prompt - target.cached_tokens))
        return Placement(
            decode=decode,
            prefill=prefill,
            reason=_reason(request, fleet, prefill),
            scores=scores,
            ttft_s=ttft_s,
            saturated="memory" if decode in filled else "queues" if late else "",
        )

    def _decoding(self, engine: Engine, prompt: int, answer: int, itl_slo_s: float | None) -> tuple[float, float, bool]:
        """What decoding there costs, how long a step will take, and whether its memory is full."""
        speed, busy, held = engine.speed, engine.decode_requests, engine.decode_tokens
        step = speed.decode_s(busy + 1, held + prompt)
        cost = STEPS * answer * (step + busy * (speed.sequence_s + speed.kv_s * prompt))
        if itl_slo_s is not None and step > itl_slo_s:
            cost += MISSED * (step - itl_slo_s)
        if engine.session:
            cost -= SESSION * step
        over = held - engine.coming_tokens + prompt + answer - engine.kv_tokens
        if engine.kv_tokens and over > 0:
            return cost + FULL * step * over / engine.kv_tokens, step, True
        return cost, step, False

    def _among_equals(self, name: str, decode: str, by_host: dict[str, list[tuple[float, str]]]) -> str:
        """One of the prefill engines that cost the same as `name` on its host."""
        for found in by_host.values():
            cost = next((cost for cost, other in found if other == name), None)
            if cost is not None:
                equal = [other for at, other in found if at == cost and other != decode]
                return self.spread.choice(equal) if len(equal) > 1 else name
        return name


class JointLatency(Joint):
    """`joint` for short pauses between tokens."""

    most = 3.0
    share = 0.002


class JointThroughput(Joint):
    """`joint` for the least TTFT, at the price of longer pauses."""

    least, most = 0.05, 0.05
    slowed = 0.01

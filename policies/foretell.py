"""When the first token of any placement would come: one measure for policies that say it themselves and that do not."""

from policies.contract import Engine, Fleet, Placement, Request


def ttft_s(placement: Placement, request: Request, fleet: Fleet) -> float:
    """Seconds until the first token, by queues, fitted speeds and links. The placement names engines of the fleet.

    Formula: what is booked on the engine that prefills and not done + prefill of what it lacks, times `mix` beside
    running decodes + leg and transfer of what the decode engine lacks, if that is another one.
    Flaw: nothing of what waits for room in KV memory; blocks on slower tiers count as missing.
    """
    decode = _named(fleet, placement.decode)
    prefill = decode if placement.prefill is None else _named(fleet, placement.prefill)
    cached = min(prefill.cached_tokens, request.prompt_tokens - 1)
    work_s = prefill.speed.prefill_s(max(1, request.prompt_tokens - cached), max(0, cached))
    if prefill.decode_requests > prefill.coming_requests:
        work_s *= prefill.speed.mix
    found_s = prefill.waits_s(fleet.now_s) + work_s
    if prefill is not decode:
        missing = max(1, request.prompt_tokens - decode.cached_tokens)
        found_s += decode.speed.leg_s + fleet.transfer_s(prefill.host, decode.host, missing)
    return found_s


def _named(fleet: Fleet, name: str) -> Engine:
    return next(engine for engine in fleet.engines if engine.name == name)

"""Seconds, from what an engine is known to be and to have: the formulas of `contract.py`.

Plain functions of numbers, so that compiled policies use them without a detour.
"""


def prefill_s(token_s: float, context_s: float, new: float, cached: float) -> float:
    """To prefill `new` tokens after `cached` ones."""
    return new * (token_s + context_s * (cached + new / 2))


def decode_s(step_s: float, sequence_s: float, kv_s: float, batch: float, kv_tokens: float) -> float:
    """Of a step that gives `batch` sequences a token each, which hold `kv_tokens`."""
    return step_s + sequence_s * batch + kv_s * kv_tokens


def waits_s(booked_s: float, requests: int, since_s: float, now_s: float) -> float:
    """Of booked prefill that are still to be done: of the present one of `requests`, taken to be as long as the others,
    what has passed since it began is.
    """
    passed = now_s - since_s
    if not passed > 0.0 or not requests:
        return booked_s
    return booked_s - min(passed, booked_s / requests)

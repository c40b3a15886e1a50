"""One measure of when a first token would come, whoever placed the request."""

import pytest

from policies.contract import Engine, Fleet, Link, Placement, Request, Speed
from policies.foretell import ttft_s

SPEED = Speed(token_s=1e-4, context_s=0.0, mix=1.5, leg_s=0.02)
FLEET = Fleet(
    engines=(
        Engine(name="p", role="prefill", host="a", prefill_s=0.3, prefill_requests=1, cached_tokens=600, speed=SPEED),
        Engine(name="d", role="decode", host="b", decode_requests=2, cached_tokens=200, speed=SPEED),
        Engine(name="idle", role="decode", host="b", decode_requests=2, coming_requests=2, speed=SPEED),
    ),
    links={("a", "b"): Link(gbps=8.0, latency_us=1000.0)},
    kv_bytes_per_token=100_000,
)
REQUEST = Request(model="m", prompt_tokens=1000)


@pytest.mark.parametrize(
    ("prefill", "decode", "expected_s"),
    [
        ("p", "d", 0.3 + 400 * 1e-4 + 0.02 + 0.001 + 800 * 1e-4),  # queue, what it lacks, leg, what the other lacks
        (None, "d", 800 * 1e-4 * 1.5),  # beside running decodes
        (None, "idle", 1000 * 1e-4),
    ],
)
def test_queue_work_and_way(prefill: str | None, decode: str, expected_s: float) -> None:
    placement = Placement(prefill=prefill, decode=decode, reason="")
    assert ttft_s(placement, REQUEST, FLEET) == pytest.approx(expected_s)

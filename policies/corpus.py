"""The requests and fleets that a policy must cope with before it serves: what happens, and what should never happen."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from policies.contract import Engine, Fleet, Link, Request, Speed

NAN, INF = float("nan"), float("inf")
SIZES = (8, 64, 256, 1000)
"""Engines of the fleets on which decisions are timed."""


class Case(NamedTuple):
    """What is asked, and under which name it is reported."""

    name: str
    asks: tuple[tuple[Request, Fleet], ...]


def fleet(engines: int, spread: random.Random) -> Fleet:
    """A fleet under load: half prefill, half decode engines on hosts of eight, the prompt cached here and there."""
    made = tuple(
        Engine(
            name=f"{'pd'[number % 2]}{number // 2}",
            role="decode" if number % 2 else "prefill",
            host=f"host{number // 8}",
            prefill_requests=spread.randrange(8),
            prefill_tokens=spread.randrange(50_000),
            decode_requests=spread.randrange(64),
            decode_tokens=spread.randrange(400_000),
            cached_tokens=spread.choice((0, 0, 1024, 4096)),
            offloaded_tokens=spread.choice((0, 0, 2048)),
            prefill_s=spread.random() * 2,
            kv_tokens=1_000_000,
        )
        for number in range(engines)
    )
    links = {(f"host{n}", f"host{n + 1}"): Link(gbps=400, latency_us=5) for n in range(engines // 8)}
    return Fleet(
        engines=made, links=links, kv_bytes_per_token=70_000, arrivals_per_s=engines / 2, prefill_load=0.5, now_s=1e6
    )


def asked(spread: random.Random, count: int) -> Iterator[Request]:
    """Ordinary requests, from a short question to a long document, some of conversations."""
    for number in range(count):
        yield Request(
            model="m",
            prompt_tokens=spread.choice((12, 300, 5000, 60_000)),
            block_size=16,
            session=spread.choice(("", f"s{number % 7}")),
            prefix=spread.randrange(5),
            output_tokens=spread.choice((None, 1, 256, 8192)),
            priority=spread.randrange(4),
            tenant=spread.choice(("", "a", "b")),
            ttft_slo_s=spread.choice((None, 0.5)),
            itl_slo_s=spread.choice((None, 0.03)),
        )


def cases() -> tuple[Case, ...]:
    """All cases; the same ones each time."""
    spread = random.Random(7)
    usual = fleet(8, spread)
    requests = tuple(asked(spread, 24))

    def case(name: str, over: Fleet, *asks: Request) -> Case:
        return Case(name, tuple((request, over) for request in asks or requests))

    def all_engines(**fields: object) -> Fleet:
        return replace(usual, engines=tuple(replace(engine, **fields) for engine in usual.engines))

    def all_speeds(value: float) -> Fleet:
        names = ("token_s", "context_s", "step_s", "sequence_s", "kv_s", "mix", "leg_s")
        return all_engines(speed=Speed(**dict.fromkeys(names, value)))

    def some_load(value: float) -> Fleet:
        """Every second engine of each role reports it, so that it is compared with numbers."""
        engines = [
            replace(engine, prefill_s=value, speed=Speed(token_s=value), cost=value) if number % 4 < 2 else engine
            for number, engine in enumerate(usual.engines)
        ]
        return replace(
            usual, engines=tuple(engines), arrivals_per_s=value, prefill_load=value, itl_price=value, now_s=value
        )

    zeros = dict.fromkeys(("prefill_requests", "prefill_tokens", "decode_requests", "decode_tokens"), 0)
    empty = all_engines(cached_tokens=0, offloaded_tokens=0)
    idle = all_engines(**zeros, cached_tokens=0, offloaded_tokens=0, prefill_s=0.0)
    both = all_engines(role="both")
    one = Engine(name="only", role="both")
    mixed = replace(usual, engines=(*usual.engines, *(replace(one, name=f"b{n}", session=True) for n in range(2))))
    whole = tuple(replace(request, whole="n > 1") for request in requests)
    hosts = [f"host{number}" for number in range(8)]
    apart = tuple(replace(engine, host=host) for engine, host in zip(usual.engines, hosts, strict=True))
    slow = {(a, b): Link(gbps=1e-6, latency_us=1e7) for a in hosts for b in hosts}
    return (
        case("a usual fleet", usual),
        case("engines of all three roles", mixed),
        case("empty caches", empty),
        case("one engine", Fleet(engines=(one,))),
        case("one of each", Fleet(engines=usual.engines[:2])),
        case("no prefill engine", replace(usual, engines=usual.decoders)),
        case("1000 engines", fleet(1000, spread), *requests[:4]),
        case("all ties", idle),
        case("every engine does both", both),
        case("everything cached", all_engines(cached_tokens=10**6, offloaded_tokens=10**6)),
        case("no tokens", usual, Request(model="m", prompt_tokens=0, output_tokens=0)),
        case("a huge prompt", usual, Request(model="m", prompt_tokens=10**9, output_tokens=10**9)),
        case("requests that stay whole", usual, *whole),
        case("whole, every engine does both", both, *whole),
        case("full KV memory", all_engines(kv_tokens=1)),
        case("unknown KV memory", all_engines(kv_tokens=0)),
        case("slow links", replace(usual, engines=apart, links=slow)),
        case("speeds of zero", all_speeds(0.0)),
        case("speeds that are no number", all_speeds(NAN)),
        case("infinite speeds", all_speeds(INF)),
        case("loads that are no number", some_load(NAN)),
        case("infinite loads", some_load(INF)),
        case("huge loads", all_engines(**dict.fromkeys(zeros, 2**62))),
    )

"""The first policies: valid on every fleet, fair, and true to their names."""

import random
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.contract import ASSUMED, Engine, Fleet, Nonsense, Placement, Policy, Request, Speed, check
from policies.least_loaded import LeastLoaded
from policies.registry import UnknownPolicy, create, names
from policies.round_robin import RoundRobin

made = cache(create)

LOAD = st.integers(0, 50)
FLEETS = (
    st.lists(st.tuples(st.sampled_from(["prefill", "decode", "both"]), LOAD, LOAD, LOAD, LOAD), min_size=1, max_size=8)
    .filter(lambda rows: any(row[0] != "prefill" for row in rows))
    .map(
        lambda rows: Fleet(
            engines=tuple(
                Engine(
                    name=f"e{i}",
                    role=role,  # type: ignore[arg-type]
                    prefill_requests=a,
                    prefill_tokens=b,
                    decode_requests=c,
                    decode_tokens=d,
                )
                for i, (role, a, b, c, d) in enumerate(rows)
            )
        )
    )
)
REQUESTS = st.builds(Request, model=st.just("m"), prompt_tokens=st.integers(0, 100), whole=st.sampled_from(["", "n"]))


@pytest.mark.parametrize("name", names())
@given(fleet=FLEETS, request_=REQUESTS)
def test_every_placement_can_be_carried_out(name: str, fleet: Fleet, request_: Request) -> None:
    policy = made(name)
    for _ in range(3):
        placement = check(policy.place(request_, fleet), request_, fleet)
        others = [e for e in fleet.prefillers if e.name != placement.decode]
        if request_.whole or not others or fleet.collocated:
            assert placement.prefill is None
        elif not name.startswith("joint"):
            assert placement.prefill is not None
        assert placement.reason


@given(fleet=FLEETS)
def test_least_loaded_takes_the_least_loaded(fleet: Fleet) -> None:
    placement = LeastLoaded().place(Request(model="m", prompt_tokens=1), fleet)
    by_name = {engine.name: engine for engine in fleet.engines}
    busy = {e.name: e.decode_requests + e.prefill_requests for e in fleet.decoders}
    assert busy[placement.decode] == min(busy.values())
    if placement.prefill:
        queue = [e.prefill_tokens + e.prefill_requests for e in fleet.prefillers if e.name != placement.decode]
        chosen = by_name[placement.prefill]
        assert chosen.prefill_tokens + chosen.prefill_requests == min(queue)


def test_ties_are_spread() -> None:
    fleet = Fleet(engines=tuple(Engine(name=f"d{i}", role="decode") for i in range(4)))
    policy = LeastLoaded(seed=1)
    chosen = Counter(policy.place(Request(model="m", prompt_tokens=1), fleet).decode for _ in range(400))
    assert len(chosen) == 4
    assert min(chosen.values()) > 60


def test_round_robin_takes_turns_in_each_pool() -> None:
    engines = [Engine(name=f"p{i}", role="prefill") for i in range(2)] + [
        Engine(name=f"d{i}", role="decode") for i in range(3)
    ]
    fleet, policy = Fleet(engines=tuple(engines)), RoundRobin()
    placed = [policy.place(Request(model="m", prompt_tokens=1), fleet) for _ in range(6)]
    assert [p.prefill for p in placed] == ["p0", "p1"] * 3
    assert [p.decode for p in placed] == ["d0", "d1", "d2"] * 2


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        (None, "not a Placement"),
        (Placement(decode="p", reason=""), "not one of the decoders"),
        (Placement(decode="d", prefill="d", reason=""), "both 'd'"),
        (Placement(decode="d", prefill="x", reason=""), "not one of the prefillers"),
    ],
)
def test_nonsense_is_named(placement: object, words: str) -> None:
    fleet = Fleet(engines=(Engine(name="p", role="prefill"), Engine(name="d", role="decode")))
    with pytest.raises(Nonsense, match=words):
        check(placement, Request(model="m", prompt_tokens=1), fleet)
    with pytest.raises(Nonsense, match="must stay whole"):
        check(Placement(decode="d", prefill="p", reason=""), Request(model="m", prompt_tokens=1, whole="n"), fleet)


def test_the_registry_names_what_there_is() -> None:
    assert {"round_robin", "least_loaded"} <= set(names())
    assert isinstance(create("policies.round_robin:RoundRobin"), Policy)
    with pytest.raises(UnknownPolicy, match="least_loaded"):
        create("nothing")
    with pytest.raises(UnknownPolicy, match="no method place"):
        create("builtins:dict")
    with pytest.raises(UnknownPolicy, match="takes no decider"):
        create("joint+never")
    with pytest.raises(UnknownPolicy, match="a number of tokens"):
        create("kv_cost+suffix_length:-1")


def test_joint_takes_a_slow_tier_for_what_it_is() -> None:
    request = Request(model="m", prompt_tokens=20_000)

    def chosen(*held: tuple[int, int]) -> str | None:
        engines = [
            Engine(name=f"p{i}", role="prefill", cached_tokens=gpu, offloaded_tokens=host)
            for i, (gpu, host) in enumerate(held)
        ]
        decode = Engine(name="d", role="decode", decode_requests=40, decode_tokens=400_000)
        fleet = Fleet(engines=(*engines, decode), kv_bytes_per_token=100_000)
        return create("joint").place(request, fleet).prefill

    assert chosen((0, 0), (0, 16_000)) == "p1"
    assert chosen((16_000, 0), (0, 16_000)) == "p0"
    assert chosen((4000, 0), (0, 16_000)) == "p1"


def test_joint_says_when_all_is_full() -> None:
    request = Request(model="m", prompt_tokens=20_000)

    def placed(queue_s: float, held: int) -> Placement:
        p = Engine(name="p", role="prefill", prefill_s=queue_s)
        d = Engine(name="d", role="decode", prefill_s=queue_s, decode_tokens=held, decode_requests=4, kv_tokens=100_000)
        return create("joint").place(request, Fleet(engines=(p, d)))

    assert placed(0.1, 0).saturated == ""
    assert placed(9.0, 0).saturated == "queues"
    assert placed(0.1, 95_000).saturated == "memory"
    assert (placed(9.0, 0).ttft_s or 0) > 9.0 > (placed(0.1, 0).ttft_s or 99)


@pytest.mark.parametrize("decider", ["always", "never", "suffix_length:2048", "isl_bounding"])
@pytest.mark.parametrize("name", sorted(set(names()) - {"joint", "joint_latency", "joint_throughput"}))
def test_every_known_policy_takes_every_decider(name: str, decider: str) -> None:
    engines = (
        Engine(name="p", role="prefill"),
        *(Engine(name=f"d{at}", role="decode", cached_tokens=9000 * at) for at in range(2)),
    )
    policy = create(f"{name}+{decider}", 1)
    placed = policy.place(Request(model="m", prompt_tokens=10_000), Fleet(engines=engines))
    assert (placed.prefill is None) == (decider == "never" or (decider != "always" and placed.decode == "d1"))
    if decider == "isl_bounding" and name in ("cache_aware", "preble", "kv_cost", "weighted"):
        assert placed.decode == "d1", "its choice of a decode engine is blind to what that holds"


def test_a_queue_is_as_long_as_what_is_left_of_it() -> None:
    engine = Engine(name="p", role="prefill", prefill_s=3.0, prefill_requests=3, prefill_since_s=10.0)
    assert engine.waits_s(9.0) == engine.waits_s(10.0) == 3.0
    assert engine.waits_s(10.5) == 2.5
    assert engine.waits_s(99.0) == 2.0, "no more than one of them can have been done unseen"
    assert Engine(name="p", role="prefill", prefill_s=3.0, prefill_requests=3).waits_s(99.0) == 3.0


def test_a_local_prefill_costs_more_where_decodes_hold_all_memory() -> None:
    def local(held: int) -> bool:
        p = Engine(name="p", role="prefill", prefill_s=2.5, kv_tokens=1_000_000)
        d = Engine(name="d", role="decode", decode_tokens=held, decode_requests=40, kv_tokens=1_000_000)
        fleet = Fleet(engines=(p, d), arrivals_per_s=1.0)
        return create("joint", 1).place(Request(model="m", prompt_tokens=4000), fleet).prefill is None

    assert local(100_000)
    assert not local(950_000)


def test_a_local_prefill_costs_more_where_steps_are_long() -> None:
    def local(busy: int, prompt: int = 1500, itl_price: float = 1.0) -> bool:
        p = Engine(name="p", role="prefill", kv_tokens=4_000_000)
        d = Engine(name="d", role="decode", decode_tokens=300 * busy, decode_requests=busy, kv_tokens=4_000_000)
        fleet = Fleet(engines=(p, d), arrivals_per_s=40.0, itl_price=itl_price)
        return create("joint_throughput", 1).place(Request(model="m", prompt_tokens=prompt), fleet).prefill is None

    assert local(100)
    assert not local(250), "many are slowed by what one gains"
    assert local(250, prompt=250), "no longer than taking it over from a prefill engine would take"
    assert not local(100, itl_price=4.0), "the more so where pauses miss their objective"


def test_a_remote_prefill_spares_engines_that_decode() -> None:
    """Some engines do both: a prompt that stalls decodes there is prefilled where nothing decodes."""
    joint = create("joint", 1)
    busy = Engine(name="c", role="both", decode_requests=20, decode_tokens=40_000, kv_tokens=1_000_000)
    idle = Engine(name="p", role="prefill", prefill_requests=1, prefill_s=0.05, kv_tokens=1_000_000)
    last = Engine(name="d", role="decode", decode_requests=20, decode_tokens=40_000, kv_tokens=1_000_000)
    placed = joint.place(Request(model="m", prompt_tokens=8000), Fleet(engines=(busy, idle, last), arrivals_per_s=5.0))
    assert placed.prefill == "p", "50 ms behind another prompt are less than twenty pauses"


def test_joint_decides_alike_where_all_is_four_times_slower() -> None:
    """No second in its formula but those of the fleet."""

    def told(times: float, at: int) -> Fleet:
        pick = random.Random(at)
        kind = ASSUMED
        slower = {name: getattr(kind, name) * times for name in kind.__struct_fields__ if name != "mix"}

        def engine(index: int) -> Engine:
            return Engine(
                name=f"e{index}",
                role="prefill" if index < 3 else "decode",
                prefill_requests=1,
                prefill_s=pick.choice([0.0, 0.1, 1.0]) * pick.random() * times,
                decode_requests=pick.randrange(60),
                decode_tokens=pick.randrange(600_000),
                cached_tokens=pick.choice([0, 0, 4000, 9000]),
                session=pick.random() < 0.2,
                kv_tokens=500_000,
                speed=Speed(mix=kind.mix, **slower),
            )

        engines = tuple(engine(index) for index in range(6))
        return Fleet(engines=engines, now_s=0.25 * at * times, arrivals_per_s=8 / times, prefill_load=0.5)

    quick, slow = create("joint", 1), create("joint", 1)
    chosen: Counter[bool] = Counter()
    for at in range(300):
        request = Request(model="m", prompt_tokens=random.Random(at).choice([500, 2000, 10_000, 40_000]))
        a, b = quick.place(request, told(1.0, at)), slow.place(request, told(4.0, at))
        assert (a.decode, a.prefill) == (b.decode, b.prefill)
        chosen[a.prefill is None] += 1
    assert min(chosen.values()) > 30

"""What gateways tell each other of their load comes out as it went in, within four bytes a number."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.index.contract import InFlight
from gateway.index.redis import loads

MOST = 0xFFFFFFFF
LOADS = st.dictionaries(
    st.sampled_from(["http://a:1", "http://b:2", "model:m"]),
    st.builds(InFlight, *[st.integers(-5, 2 * MOST)] * len(InFlight._fields)),
)


@given(mine=LOADS, others=LOADS)
def test_blobs_add_up(mine: dict[str, InFlight], others: dict[str, InFlight]) -> None:
    names = {loads.number(name): name for name in ("http://a:1", "http://b:2", "model:m")}
    blobs = loads.encode(mine, 2000.0) + loads.encode(others, 2000.0) + loads.encode(mine, 500.0)
    wanted: dict[str, InFlight] = {}
    for told in (mine, others):
        for name, load in told.items():
            kept = [min(max(part, 0), MOST) for part in load]
            wanted[name] = InFlight(*(a + b for a, b in zip(wanted.get(name, InFlight()), kept, strict=True)))
    assert loads.decode(blobs, 1000.0, names) == wanted
    assert loads.decode(blobs, 3000.0, names) == {}
    assert (loads.alive(blobs, 1000.0), loads.alive(blobs, 3000.0), loads.alive(b"", 0.0)) == (True, False, False)

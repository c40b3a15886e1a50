"""What prompts that begin alike have in common is what all of them had cached, and how many come is counted."""

from hypothesis import given
from hypothesis import strategies as st

from policies.alike import HORIZON, WINDOW, Alike


def test_all_that_every_one_of_them_shares_and_no_more() -> None:
    alike = Alike()
    for _ in range(2 * WINDOW):
        _, common = alike.arrived(7, 40_000)
    assert common == 40_000
    assert alike.arrived(7, 512)[1] == 512
    for _ in range(3 * WINDOW):
        _, common = alike.arrived(7, 40_000)
    assert common == 40_000, "one that had less is forgotten"


def test_what_comes_seldom_is_paid_by_itself() -> None:
    alike = Alike()
    for number in range(1, 5 * HORIZON):
        assert alike.arrived(number, 1000)[0] == 1.0
    assert alike.arrived(1, 1000)[0] < 1.1
    assert alike.arrived(0, 1000) == (1.0, 0.0)


def test_what_comes_always_is_shared_by_as_many_as_the_horizon_is_long() -> None:
    alike = Alike()
    for _ in range(20 * HORIZON):
        reuse, _ = alike.arrived(1, 0)
    assert 0.99 * HORIZON < reuse <= HORIZON


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 10**6)), max_size=400))
def test_never_more_in_common_than_the_last_ones_had(arrivals: list[tuple[int, int]]) -> None:
    alike = Alike()
    had: dict[int, list[int]] = {}
    for prefix, cached in arrivals:
        had.setdefault(prefix, []).append(cached)
        reuse, common = alike.arrived(prefix, cached)
        assert 1.0 <= reuse <= HORIZON
        assert common <= min(had[prefix][-WINDOW:])

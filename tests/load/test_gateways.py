"""What `baton load gateways` makes of what it saw."""

import pytest

from load.gateways import Wish, _sum
from load.live.play import Played

WISH = Wish(4, 2, 2, "chat", 60.0, 10.0, "gpt-oss-120b-h100-tp4:16", "joint", 1)


def test_only_what_came_after_the_warm_up_counts() -> None:
    played = [
        Played(0, 5.0, 5.0, 9.0, 10.0, ((0.1, 3),), 100, 40, 0, "p0", "d0"),
        Played(1, 11.0, 11.0, 11.2, 12.0, ((0.1, 3),), 300, 40, 150, "p0", "d0"),
        Played(2, 12.0, 12.0, 12.4, 13.0, ((0.3, 1),), 100, 40, 50, "p1", "d1"),
    ]
    before = {"p0": 100.0, "p1": 0.0, "d0": 10.0, "d1": 10.0}
    after = {"p0": 400.0, "p1": 100.0, "d0": 20.0, "d1": 20.0}
    found = _sum("shared", WISH, played, 0, before, after)
    assert (found.requests, found.hit_rate) == (2, 0.5)
    assert found.ttft_ms.mean == pytest.approx(300) and found.itl_ms.mean == pytest.approx(150)
    assert found.balance == pytest.approx(300 / 200)

"""What requests share is seen from what is booked and what is in use, and only where both tell of the same requests."""

from gateway.fleet.sharing import Sharing


def test_shared_prefixes_make_room() -> None:
    sharing = Sharing()
    for _ in range(20):
        sharing.see(booked=900_000, usage=0.3, room=1_000_000)
    assert 2.9 < sharing.factor <= 3.0


def test_what_is_generated_too_is_no_sharing_and_a_full_engine_says_nothing() -> None:
    sharing = Sharing()
    for usage, booked in ((0.5, 300_000), (0.98, 3_000_000), (0.01, 900_000)):
        sharing.see(booked, usage, 1_000_000)
    assert sharing.factor == 1.0
    sharing.see(5000, 0.5, 0)
    assert sharing.factor == 1.0

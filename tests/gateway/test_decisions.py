"""Bookings come back exactly once; streams keep their bytes and whole events."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from engines.fleet import Role
from gateway.dispatch.relay import HELD_LIMIT, Cut, Tally, relay
from gateway.fleet.booking import Booking
from gateway.fleet.engine import Engine
from gateway.settings import Settings
from gateway.wire.connection import Sink
from gateway.wire.errors import ClosedEarly


class Bookings(RuleBasedStateMachine):
    """Any interleaving of bookings and their ends, against a plain count."""

    bookings = Bundle("bookings")

    def __init__(self) -> None:
        super().__init__()
        self.engines = [Engine(f"e{i}", f"http://127.0.0.1:{i + 1}", Role.BOTH) for i in range(3)]
        self.open: dict[Booking, tuple[Engine, Engine, int, int]] = {}
        self.prefilling: set[Booking] = set()

    @rule(
        target=bookings,
        prefill=st.none() | st.integers(0, 2),
        decode=st.integers(0, 2),
        new=st.integers(0, 9),
        cached=st.integers(0, 9),
    )
    def book(self, prefill: int | None, decode: int, new: int, cached: int) -> Booking:
        return self.booked(prefill, decode, new, cached)

    def booked(self, prefill: int | None, decode: int, new: int, cached: int) -> Booking:
        source = None if prefill is None else self.engines[prefill]
        booking = Booking(source, self.engines[decode], new, new + cached)
        self.open[booking] = (source or self.engines[decode], self.engines[decode], new, new + cached)
        self.prefilling.add(booking)
        return booking

    @rule(target=bookings, booking=bookings, decode=st.integers(0, 2), made=st.integers(1, 9))
    def migrate(self, booking: Booking, decode: int, made: int) -> Booking:
        """Its stream goes on elsewhere, all of it a prompt."""
        tokens = self.open.get(booking, (None, None, 0, 1))[3]
        self.release(booking)
        return self.booked(None, decode, made, tokens)

    @rule(booking=bookings)
    def prefilled(self, booking: Booking) -> None:
        booking.prefilled()
        self.prefilling.discard(booking)

    @rule(booking=bookings)
    def release(self, booking: Booking) -> None:
        booking.release()
        self.open.pop(booking, None)
        self.prefilling.discard(booking)

    @invariant()
    def counts_agree(self) -> None:
        for engine in self.engines:
            prefills = [new for b, (p, _, new, _) in self.open.items() if p is engine and b in self.prefilling]
            decodes = [tokens for _, d, _, tokens in self.open.values() if d is engine]
            assert (engine.prefill_requests, engine.prefill_tokens) == (len(prefills), sum(prefills))
            assert (engine.decode_requests, engine.decode_tokens) == (len(decodes), sum(decodes))
            coming = [t for b, (p, d, _, t) in self.open.items() if d is engine is not p and b in self.prefilling]
            assert (engine.coming_requests, engine.coming_tokens) == (len(coming), sum(coming))
            assert engine.prefill_us == sum(b._us for b in self.prefilling if self.open[b][0] is engine)


TestBookings = Bookings.TestCase


class Source:
    """An answer that comes in given pieces, then ends or breaks."""

    def __init__(self, pieces: list[bytes], breaks: bool = False) -> None:
        self.pieces = pieces
        self.breaks = breaks

    async def pour(self, sink: Sink, idle_s: float) -> bool:
        while self.pieces:
            if not sink(self.pieces.pop(0)):
                return True
        if self.breaks:
            raise ClosedEarly("gone", "body", answered=True)
        return False


class Taker:
    """A client that takes every piece, and wants a pause after every second one."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.drained = True

    def write(self, piece: bytes) -> bool:
        assert self.drained
        self.sent.append(piece)
        self.drained = len(self.sent) % 2 == 1
        return self.drained

    async def drain(self) -> None:
        self.drained = True


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(i % (len(data) + 1) for i in at)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


EVENTS = st.lists(st.binary(min_size=1, max_size=20).filter(lambda e: b"\n" not in e), min_size=1, max_size=8)


@given(events=EVENTS, at=st.lists(st.integers(0, 400)))
async def test_a_stream_keeps_its_bytes_and_leaves_in_whole_events(events: list[bytes], at: list[int]) -> None:
    data = b"".join(b"data: " + event + b"\n\n" for event in events)
    first, *rest = cut(data, at)
    taker = Taker()
    sent = taker.sent

    tally = Tally()
    await relay(Source(rest), first, taker, Settings(), tally)
    assert b"".join(sent) == data
    assert all(piece.endswith(b"\n\n") for piece in sent)
    assert tally.events == len(events)


@given(events=EVENTS, at=st.lists(st.integers(0, 400)), lost=st.integers(1, 30))
async def test_a_cut_stream_ends_with_a_whole_event(events: list[bytes], at: list[int], lost: int) -> None:
    data = b"".join(b"data: " + event + b"\n\n" for event in events)
    received = data[:-lost]
    taker = Taker()
    sent = taker.sent

    pieces = cut(received, at) or [b""]
    with pytest.raises(Cut):
        await relay(Source(pieces[1:], breaks=True), pieces[0] or b"\n\n", taker, Settings(), Tally())
    delivered = b"".join(sent)
    assert delivered in (b"\n\n", received[: received.rfind(b"\n\n") + 2] if b"\n\n" in received else b"")


async def test_a_huge_event_is_not_held_back_for_ever() -> None:
    taker = Taker()
    sent = taker.sent

    pieces = [b"x" * (HELD_LIMIT // 2)] * 8
    await relay(Source(pieces[1:]), pieces[0], taker, Settings(), Tally())
    assert b"".join(sent) == b"x" * (HELD_LIMIT * 4)
    assert len(sent) >= 4

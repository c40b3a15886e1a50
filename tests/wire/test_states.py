"""A connection under any order of what can happen to it, against what was sent (hypothesis stateful).

Time is the test's own: a deadline passes when a rule says so.
"""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.wire.connection import Connection
from gateway.wire.errors import ClosedEarly, TimedOut
from tests.wire.test_split import Wire, answers

HELD = 64
IDLE_S = 10.0


class Exchanges(RuleBasedStateMachine):
    """One connection, its peer, and its one user."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.loop = asyncio.new_event_loop()
        self.loop.time = lambda: self.now  # type: ignore[method-assign]
        self.lost = 0
        self.wire = Wire()
        self.connection = Connection(self.loop, self._gone, head_bytes=4096, buffer_bytes=HELD)
        self.connection.connection_made(self.wire)
        self.connected = True
        self.resting = True
        self.waiter: asyncio.Future[None] | None = None
        self.due = 0.0
        self.raw = self.body = self.taken = b""
        self.arrived = 0
        self.pouring = False

    def teardown(self) -> None:
        if self.connected:
            self.connection.connection_lost(None)
        self.loop.close()

    def _gone(self, connection: Connection) -> None:
        assert connection is self.connection
        self.lost += 1

    @property
    def waiting(self) -> bool:
        return self.waiter is not None and not self.waiter.done()

    @property
    def busy(self) -> bool:
        """An exchange is under way and its head is here."""
        return not (self.resting or self.connection.incoming.in_head)

    # The user.

    @precondition(lambda self: self.resting and self.connection.usable)
    @rule(answer=answers())
    def send(self, answer: tuple[bytes, bytes, int]) -> None:
        self.raw, self.body, _ = answer
        self.arrived, self.taken, self.resting = 0, b"", False
        self.due = self.now + IDLE_S
        self.waiter = self.connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", bodyless=False, deadline=self.due)

    def _awaits(self) -> bool:
        held = self.connection.pieces or self.connection.incoming.complete or self.connection.fault is not None
        return self.busy and not self.waiting and not held

    @precondition(_awaits)
    @rule()
    def wait(self) -> None:
        self.due = self.now + IDLE_S
        self.waiter = self.connection.more(IDLE_S)
        self.pouring = False

    @precondition(_awaits)
    @rule(room=st.integers(0, 40))
    def pour(self, room: int) -> None:
        def sink(piece: bytes) -> bool:
            nonlocal room
            self.taken += piece
            room -= len(piece)
            self.due = self.now + IDLE_S
            return room > 0

        self.due = self.now + IDLE_S
        self.waiter = self.connection.pour(sink, IDLE_S)
        self.pouring = True

    @precondition(lambda self: self.busy and not self.waiting and self.connection.pieces)
    @rule()
    def take(self) -> None:
        self.taken += self.connection.take()

    @precondition(lambda self: not (self.resting or self.waiting))
    @rule()
    def rest(self) -> None:
        whole = self.arrived == len(self.raw) and self.connection.fault is None
        again = self.connection.rest()
        assert again == (whole and self.connection.usable)
        self.resting = True
        if not again:
            self.connection.abort()

    # The peer and the clock.

    @precondition(lambda self: self.connected and not self.wire.closing and self.arrived < len(self.raw))
    @rule(size=st.integers(1, 80))
    def arrive(self, size: int) -> None:
        piece = self.raw[self.arrived : self.arrived + size]
        self.arrived += len(piece)
        self.connection.data_received(piece)

    @precondition(lambda self: self.connected)
    @rule()
    def leave(self) -> None:
        self.connected = False
        self.connection.eof_received()
        self.connection.connection_lost(None)

    @rule(seconds=st.sampled_from([0.5, 3.0, 9.0, 30.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(3):  # a timer that fires too soon is set again
            self.loop.run_until_complete(asyncio.sleep(0))
        if self.waiting:
            assert self.now < self.due + 0.01
        elif self.waiter is not None and isinstance(self.connection.fault, TimedOut):
            assert self.wire.closing

    # What always holds.

    @invariant()
    def what_is_taken_is_what_was_sent(self) -> None:
        if self.resting:
            return
        seen = self.taken + b"".join(self.connection.pieces)
        assert self.body.startswith(seen)
        if self.connection.incoming.complete:
            assert seen == self.body
            assert self.arrived == len(self.raw)

    @invariant()
    def nobody_waits_for_what_is_here(self) -> None:
        connection = self.connection
        if self.waiting and not connection.incoming.in_head:
            assert not connection.incoming.complete
            assert not connection.pieces
        if self.waiting:
            assert connection.fault is None
            assert self.connected

    @invariant()
    def a_lost_connection_is_told_once_and_an_unfinished_answer_is_no_success(self) -> None:
        assert self.lost == (not self.connected)
        if not (self.connected or self.resting or self.connection.incoming.complete):
            assert isinstance(self.connection.fault, ClosedEarly | TimedOut)

    @invariant()
    def reading_is_held_back_only_by_what_is_held(self) -> None:
        assert self.wire.paused in (0, 1)
        if self.wire.paused and self.connected and not self.wire.closing:
            assert sum(map(len, self.connection.pieces)) > 0


TestExchanges = Exchanges.TestCase
TestExchanges.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

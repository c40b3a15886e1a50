"""The breaker against a model that keeps everything, and the rules that never leave a role without engines."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.fleet.breaker import Breaker, Phase, Rules, panic, spare

RULES = Rules(row=3, share=0.5, least=6, window_s=10.0, slow_s=4.0, rest_s=2.0, rest_max_s=16.0, trials=2)
HALF_S = RULES.window_s / 2


class Naive:
    """Remembers every leg with its time."""

    def __init__(self) -> None:
        self.phase = Phase.CLOSED
        self.legs: list[tuple[float, bool]] = []  # since it closed
        self.trials: list[bool] = []
        self.slow_since: float | None = None
        self.good_while_slow = 0
        self.opened: list[float] = []  # in a row: rests
        self.closed_s = 0.0
        self.ready_s = 0.0

    def should_open(self, now: float) -> bool:
        last = [good for _, good in self.legs[-RULES.row :]]
        if len(last) == RULES.row and not any(last):
            return True
        half = int(now / HALF_S)
        seen = [good for at, good in self.legs if int(at / HALF_S) in (half, half - 1)]
        return len(seen) >= RULES.least and seen.count(False) >= RULES.share * len(seen)


class Breakers(RuleBasedStateMachine):
    """Any interleaving of legs, time and slowness."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(RULES, lambda: self.now)
        self.naive = Naive()

    @rule(seconds=st.floats(0.1, 7.0) | st.floats(10.0, 40.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 4))
    def good(self, count: int) -> None:
        n = self.naive
        for _ in range(count):
            self.breaker.good()
            n.good_while_slow += 1
            if n.phase is Phase.CLOSED:
                n.legs.append((self.now, True))
            elif n.phase is Phase.TRIED:
                n.trials.append(True)
                if len(n.trials) == RULES.trials:
                    n.phase, n.closed_s, n.legs, n.slow_since = Phase.CLOSED, self.now, [], None

    @rule(allowed=st.booleans(), count=st.integers(1, 4))
    def bad(self, allowed: bool, count: int) -> None:
        n = self.naive
        for _ in range(count):
            wants = self.breaker.bad()
            if n.phase is Phase.CLOSED:
                n.legs.append((self.now, False))
                assert wants == n.should_open(self.now)
            else:
                assert wants == (n.phase is Phase.TRIED)
            if wants and allowed:
                self.open()

    @rule(slow=st.booleans())
    def look(self, slow: bool) -> None:
        n = self.naive
        wants = self.breaker.slow(slow)
        if not slow or n.phase is not Phase.CLOSED:
            n.slow_since = None
        elif n.slow_since is None:
            n.slow_since, n.good_while_slow = self.now, 0
        lasting = n.slow_since is not None and self.now - n.slow_since >= RULES.slow_s
        assert wants == (lasting and n.good_while_slow >= RULES.row)
        if wants:
            self.open()

    def open(self) -> None:
        n = self.naive
        rest_s = self.breaker.open("because")
        if n.phase is Phase.CLOSED and self.now - n.closed_s > RULES.rest_max_s:
            n.opened = []
        assert rest_s == (min(2 * n.opened[-1], RULES.rest_max_s) if n.opened else RULES.rest_s)
        n.opened.append(rest_s)
        n.phase, n.ready_s, n.slow_since = Phase.OPEN, self.now + rest_s, None

    @precondition(lambda self: self.naive.phase is Phase.OPEN)
    @rule()
    def attempt(self) -> None:
        assert self.breaker.rested == (self.now >= self.naive.ready_s)
        if self.breaker.rested:
            self.breaker.attempt()
            self.naive.phase, self.naive.trials = Phase.TRIED, []

    @rule()
    def restart(self) -> None:
        self.breaker.reset()
        self.naive = Naive()

    @invariant()
    def they_agree(self) -> None:
        assert self.breaker.phase is self.naive.phase
        assert bool(self.breaker.why) == (self.naive.phase is not Phase.CLOSED)


TestBreakers = Breakers.TestCase


@given(st.integers(1, 40), st.floats(0.1, 1.0))
def test_a_role_is_never_without_engines(all_: int, most: float) -> None:
    """However many are bad, one stays; and what may be ejected alone never makes a panic."""
    unfit = 0
    while spare(unfit, all_, most):
        unfit += 1
        assert not panic(unfit, all_, most)
    assert unfit < all_
    assert unfit <= most * all_


@given(st.integers(0, 20), st.integers(1, 20))
def test_when_others_went_down_the_ejected_serve_again(unfit: int, left: int) -> None:
    assert panic(max(unfit, 1), max(unfit, 1), 0.5)
    assert panic(unfit, unfit + left, 0.5) == (unfit > left + 1)

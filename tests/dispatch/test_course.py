"""One request among failing engines, whatever fails in whatever order; and the budget that all requests share."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from gateway.connector.lease import Stale, Transfer
from gateway.dispatch.budget import WINDOW_S, RetryBudget
from gateway.dispatch.course import Course
from gateway.dispatch.verdict import Cause, Failure, Leg, Next

CAUSES: list[Cause] = [
    "refused", "stale", "closed", "timeout", "bad_answer", "rejected", "overloaded", "error", "incomplete", "late",
]  # fmt: skip
LEASE_S, MARGIN_S = 30.0, 5.0


@dataclass
class Run:
    """A request carried out with the outcomes that are drawn, and all that was done for it."""

    engines: int
    tries: int
    migrations: int
    lasting: bool
    deadline_s: float
    budget: RetryBudget
    now_s: float = 0.0
    asked: list[tuple[Leg, str]] = field(default_factory=list)
    unsure: int = 0
    """Legs that may have had an effect, of a request whose effects last."""
    transfers: int = 0
    ended: str = ""

    def go(self, draw: st.DataObject) -> None:
        course = Course(self.budget, self.deadline_s, self.tries, self.engines, self.migrations)
        kept: Transfer | None = None
        begun = False
        while not self.ended:
            assert self.now_s < self.deadline_s
            prefillers = [f"p{i}" for i in range(self.engines) if f"p{i}" not in course.avoid]
            decoders = [f"d{i}" for i in range(self.engines) if f"d{i}" not in course.avoid]
            if not decoders:
                self.ended = "nobody left"
                return
            decode = draw.draw(st.sampled_from(decoders))
            split = prefillers and not course.whole and draw.draw(st.booleans())
            prefill = draw.draw(st.sampled_from(prefillers)) if split else None
            transfer, kept = kept, None
            failure: Failure | None = None
            self.now_s += draw.draw(st.sampled_from((0.0, 0.1, 5.0, 26.0)))
            if transfer is None and prefill is not None:
                failure = self.leg(draw, Leg.PREFILL, prefill, True)
                if failure is None:
                    self.transfers += 1
                    transfer = Transfer(b"{}", 8, self.now_s, LEASE_S, MARGIN_S)  # type: ignore[arg-type]
            if failure is None:
                failure = self.decode(draw, decode, transfer)
            if failure is None and not draw.draw(st.booleans()):
                self.ended = "answered"
                return
            if failure is None:
                begun = True
                failure = Failure(Leg.DECODE, draw.draw(st.sampled_from(("closed", "timeout"))), begun=True)
            usable = transfer is not None and transfer.fresh(self.now_s)
            exact = begun and draw.draw(st.booleans())
            before = set(course.avoid)
            others = len(decoders) > 1
            verdict = course.after(failure, self.now_s, prefill, decode, others, usable, exact)
            assert before <= course.avoid
            if verdict.next is Next.FAIL:
                self.ended = "failed"
            elif verdict.next is Next.KEEP:
                assert usable
                kept = transfer

    def leg(self, draw: st.DataObject, leg: Leg, engine: str, remote: bool) -> Failure | None:
        self.asked.append((leg, engine))
        cause = draw.draw(st.none() | st.sampled_from(CAUSES))
        self.now_s += draw.draw(st.sampled_from((0.0, 1.0, 26.0)))
        if cause is None:
            return None
        self.unsure += self.lasting and cause in ("stale", "closed", "timeout", "bad_answer", "late")
        return Failure(leg, cause, remote, self.lasting)

    def decode(self, draw: st.DataObject, engine: str, transfer: Transfer | None) -> Failure | None:
        if transfer is not None:
            try:
                transfer.take(self.now_s)  # raises `Used` if parameters are given out twice
            except Stale:
                return Failure(Leg.DECODE, "late", True, self.lasting)
        failure = self.leg(draw, Leg.DECODE, engine, transfer is not None)
        if failure is not None and failure.cause == "refused" and transfer is not None:
            transfer.unsent()
        return failure


@given(
    draw=st.data(),
    engines=st.integers(1, 4),
    tries=st.integers(1, 4),
    migrations=st.integers(0, 3),
    lasting=st.booleans(),
    deadline_s=st.sampled_from((1.0, 30.0, 300.0)),
    budget=st.integers(0, 5),
)
def test_every_request_ends_and_keeps_the_laws(
    draw: st.DataObject, engines: int, tries: int, migrations: int, lasting: bool, deadline_s: float, budget: int
) -> None:
    run = Run(engines, tries, migrations, lasting, deadline_s, RetryBudget(0.0, budget))
    run.go(draw)
    assert run.ended
    placements = sum(leg is Leg.DECODE for leg, _ in run.asked)
    assert placements <= (tries + 2 * engines) * (1 + migrations)
    assert run.unsure <= 1, "a leg with an unknown effect was repeated"


@given(st.lists(st.sampled_from(("timeout", "error", "overloaded", "closed")), min_size=1, max_size=6))
def test_an_engine_that_failed_is_not_asked_again(causes: list[Cause]) -> None:
    course = Course(RetryBudget(0.0, 99), 60.0, 9, 4, 0)
    for number, cause in enumerate(causes):
        course.after(Failure(Leg.DECODE, cause), 0.0, None, f"d{number}")
        assert f"d{number}" in course.avoid


def test_the_budget_is_a_share_of_recent_requests() -> None:
    budget = RetryBudget(0.2, 3)
    assert budget.left(0.0) == 3
    for _ in range(100):
        budget.seen(1.0)
    assert budget.left(1.0) == 23
    for _ in range(23):
        budget.take()
    assert budget.left(2.0) == 0
    assert budget.left(1.0 + 3 * WINDOW_S) == 3


@given(
    st.lists(st.tuples(st.sampled_from(("seen", "take", "wait")), st.floats(0.0, 25.0)), max_size=200),
    st.integers(0, 5),
    st.sampled_from((0.0, 0.1, 0.2, 1.0)),
)
def test_retries_never_exceed_the_share(steps: list[tuple[str, float]], floor: int, share: float) -> None:
    budget, now = RetryBudget(share, floor), 0.0
    seen: list[float] = []
    taken: list[float] = []
    for step, wait in steps:
        if step == "wait":
            now += wait
        elif step == "seen":
            budget.seen(now)
            seen.append(now)
        elif budget.left(now):
            budget.take()
            taken.append(now)
        lately = [at for at in taken if at > now - WINDOW_S]
        requests = [at for at in seen if at > now - 3 * WINDOW_S]
        assert len(lately) <= floor + share * len(requests)

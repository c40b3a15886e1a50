"""The failure table, row by row: what follows each failure, what it costs, and when nothing may follow."""

from dataclasses import replace
from typing import get_args

import pytest

from gateway.dispatch.verdict import SPENT, Cause, Failure, Left, Leg, Next, decide

P, D = Leg.PREFILL, Leg.DECODE
PLENTY = Left(time_s=60.0, tries=2, budget=True, free=False, refusals=4, transfer=False, migrations=0)
UNSENT = replace(PLENTY, transfer=True)
FREE = replace(PLENTY, free=True)
MOVES = replace(PLENTY, migrations=1)


def local(cause: Cause) -> Failure:
    """The decode engine fails at a request that it does alone."""
    return Failure(D, cause)


def remote(cause: Cause) -> Failure:
    """The decode engine fails at a request whose KV it was to fetch."""
    return Failure(D, cause, remote=True)


def prefill(cause: Cause) -> Failure:
    return Failure(P, cause, remote=True)


AVOIDS_P, AVOIDS_D, NOBODY = P, D, None

TABLE = [
    # what happened, what is left -> next, who is not asked again, tries, whether it is one of the budget's
    ("prefill refuses", prefill("refused"), PLENTY, Next.PLACE, AVOIDS_P, 0, False),
    ("prefill errs", prefill("error"), PLENTY, Next.PLACE, AVOIDS_P, 1, True),
    ("prefill is overloaded", prefill("overloaded"), PLENTY, Next.PLACE, AVOIDS_P, 1, True),
    ("prefill times out", prefill("timeout"), PLENTY, Next.PLACE, AVOIDS_P, 1, True),
    ("prefill dies", prefill("closed"), FREE, Next.PLACE, AVOIDS_P, 1, False),
    ("prefill dies again", prefill("closed"), PLENTY, Next.PLACE, AVOIDS_P, 1, True),
    ("prefill is no HTTP", prefill("bad_answer"), PLENTY, Next.PLACE, AVOIDS_P, 1, True),
    ("prefill rejects", prefill("rejected"), PLENTY, Next.WHOLE, NOBODY, 1, False),
    ("parameters incomplete", prefill("incomplete"), PLENTY, Next.PLACE, AVOIDS_P, 1, True),
    ("lease over between the legs", remote("late"), PLENTY, Next.WHOLE, NOBODY, 1, True),
    ("KV cannot be fetched", remote("error"), PLENTY, Next.WHOLE, AVOIDS_P, 1, True),
    ("decode refuses, KV unread", remote("refused"), UNSENT, Next.KEEP, AVOIDS_D, 0, False),
    ("decode refuses, lease over", remote("refused"), PLENTY, Next.PLACE, AVOIDS_D, 0, False),
    ("no connection in time, KV unread", remote("timeout"), UNSENT, Next.KEEP, AVOIDS_D, 1, True),
    ("decode refuses", local("refused"), PLENTY, Next.PLACE, AVOIDS_D, 0, False),
    ("decode refuses, too often", local("refused"), replace(PLENTY, refusals=0), Next.PLACE, AVOIDS_D, 1, False),
    ("decode errs", local("error"), PLENTY, Next.PLACE, AVOIDS_D, 1, True),
    ("decode is overloaded", remote("overloaded"), PLENTY, Next.PLACE, AVOIDS_D, 1, True),
    ("decode dies", remote("closed"), FREE, Next.PLACE, AVOIDS_D, 1, False),
    ("decode times out", remote("timeout"), PLENTY, Next.PLACE, AVOIDS_D, 1, True),
    ("a kept connection was gone", remote("stale"), PLENTY, Next.PLACE, NOBODY, 1, False),
    ("decode dies mid-stream", replace(remote("closed"), begun=True), MOVES, Next.MIGRATE, AVOIDS_D, 0, False),
    ("the same, cannot go on", replace(remote("closed"), begun=True), PLENTY, Next.FAIL, NOBODY, 0, False),
    ("decode errs, no other", local("error"), replace(PLENTY, others=False), Next.FAIL, NOBODY, 0, False),
    ("decode refuses, no other", local("refused"), replace(PLENTY, others=False), Next.PLACE, AVOIDS_D, 0, False),
    ("prefill errs, no other", prefill("error"), replace(PLENTY, others=False), Next.PLACE, AVOIDS_P, 1, True),
    ("a background job may run", replace(local("closed"), lasting=True), FREE, Next.FAIL, NOBODY, 0, False),
    ("a background job was refused", replace(local("refused"), lasting=True), FREE, Next.PLACE, AVOIDS_D, 0, False),
    ("a background job was turned away", replace(local("error"), lasting=True), FREE, Next.PLACE, AVOIDS_D, 1, True),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_the_failure_table(row: tuple[str, Failure, Left, Next, Leg | None, int, bool]) -> None:
    _, failure, left, follows, avoids, tries, pays = row
    verdict = decide(failure, left)
    assert (verdict.next, verdict.avoid, verdict.tries, verdict.pays) == (follows, avoids, tries, pays)


EVERY = [
    Failure(leg, cause, remote, lasting, begun)
    for leg in Leg
    for cause in get_args(Cause)
    for remote in (False, True)
    for lasting in (False, True)
    for begun in (False, True)
]


@pytest.mark.parametrize("left", [PLENTY, UNSENT, FREE, MOVES])
def test_nothing_follows_when_the_time_is_over(left: Left) -> None:
    assert {decide(failure, replace(left, time_s=0.0)).next for failure in EVERY} == {Next.FAIL}


@pytest.mark.parametrize("left", [PLENTY, UNSENT, FREE])
def test_nothing_follows_the_last_try_but_a_refusal(left: Left) -> None:
    for failure in EVERY:
        verdict = decide(failure, replace(left, tries=0))
        assert verdict.next is Next.FAIL or failure.cause == "refused"


@pytest.mark.parametrize("left", [PLENTY, UNSENT, FREE, MOVES])
def test_without_budget_only_what_adds_no_load_is_tried_again(left: Left) -> None:
    for failure in EVERY:
        verdict = decide(failure, replace(left, budget=False))
        assert not verdict.pays
        if decide(failure, left).pays:
            assert (verdict.next, verdict.why) == (Next.FAIL, SPENT)


@pytest.mark.parametrize("left", [PLENTY, FREE, MOVES])
def test_what_was_prefilled_is_only_kept_when_nobody_was_told_of_it(left: Left) -> None:
    assert all(decide(failure, left).next is not Next.KEEP for failure in EVERY)


def test_the_next_attempt_is_never_the_same_again() -> None:
    for failure in EVERY:
        for left in (PLENTY, UNSENT, FREE, MOVES):
            verdict = decide(failure, left)
            moves = verdict.avoid is not None or verdict.next in (Next.WHOLE, Next.FAIL)
            assert moves or failure.cause == "stale"

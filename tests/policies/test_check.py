"""The examination passes what is good and says what is wrong with the rest."""

from functools import partial

import pytest

from policies.check import examine
from policies.corpus import SIZES, cases
from policies.registry import create, names
from tests.policies import broken

CASES = {case.name for case in cases()}


@pytest.mark.parametrize("name", names())
def test_every_built_in_policy_is_good(name: str) -> None:
    report = examine(partial(create, name))
    assert report.errors == []
    assert {result.case for result in report.results} >= CASES
    assert [times.engines for times in report.times] == list(SIZES)
    assert all(0 < times.median_us <= times.p99_us <= times.worst_us for times in report.times)
    assert report.seeded
    assert report.deterministic is True


def test_the_corpus_is_the_same_each_time() -> None:
    first, second = cases(), cases()
    assert [case.name for case in first] == [case.name for case in second]
    assert repr(first) == repr(second)
    assert all(fleet.decoders for case in first for _, fleet in case.asks)


@pytest.mark.parametrize(
    ("policy", "where", "words"),
    [
        (broken.Raises, "a usual fleet", "KeyError: 'mine'"),
        (broken.Nobody, "one engine", "'nobody' is not one of the decoders"),
        (broken.Splits, "requests that stay whole", "split a request that must stay whole"),
        (broken.Divides, "speeds of zero", "ZeroDivisionError"),
        (broken.Exits, "a usual fleet", "SystemExit: 3"),
        (broken.Dies, "a usual fleet", "ended with 3"),
        (broken.Mumbles, "a usual fleet", "not a line of text"),
        (broken.Unmade, "making it", "RuntimeError: no licence"),
        (broken.Whimsical, "determinism", "decide differently"),
    ],
)
def test_what_is_wrong_is_said_with_its_case(policy: type, where: str, words: str) -> None:
    report = examine(policy)
    assert not report.good
    assert any(error.startswith(where) and words in error for error in report.errors), report.errors


def test_only_the_case_that_is_wrong_fails() -> None:
    assert [result.case for result in examine(broken.Divides).results if result.error] == ["speeds of zero"]


def test_a_policy_that_never_returns_is_ended() -> None:
    report = examine(broken.LoopsOnTies, limit_s=0.5)
    assert report.errors == ["all ties: did not return within 0.5 s"]
    assert not report.good


def test_a_policy_without_a_seed_may_decide_as_it_likes() -> None:
    report = examine(broken.Unseeded)
    assert report.errors == []
    assert report.deterministic is False
    assert not report.seeded

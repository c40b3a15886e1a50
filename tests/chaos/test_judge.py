"""The judge of the storm finds what it must find: it is shown answers that a real double gave, spoilt in every way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import pytest_asyncio

from engines.double import Double
from gateway.errors import ApiError
from load.chaos.client import Client
from load.chaos.judge import Answer, compare, judge
from load.chaos.tally import Tally
from load.chaos.traffic import MODEL, Ask, ask
from load.chaos.truth import BLOCK

REQUESTS = 150


@pytest_asyncio.fixture
async def double() -> AsyncIterator[Double]:
    async with Double("both", "d", MODEL, block_size=BLOCK) as made:
        yield made


async def answered(double: Double, one: Ask) -> Answer:
    client = Client([int(double.url.rpartition(":")[2])])
    try:
        answer, _ = await client.send(one)
    finally:
        client.close()
    return answer


async def test_what_a_healthy_engine_answers_is_right(double: Double) -> None:
    asks = [ask(5, number) for number in range(REQUESTS)]
    client = Client([int(double.url.rpartition(":")[2])])
    answers = await asyncio.gather(*(client.send(one) for one in asks))
    client.close()
    for one, (answer, _) in zip(asks, answers, strict=True):
        assert judge(one, answer).kind == "right", (one, judge(one, answer))
    assert {one.manner for one in asks} == {"stays", "leaves", "dawdles"}
    assert {one.right.finish for one in asks} == {"length", "stop"}
    assert {(one.chat, one.stream) for one in asks} == {(a, b) for a in (True, False) for b in (True, False)}
    assert any(answer.left for answer, _ in answers)


def a_stream(chat: bool) -> Ask:
    """One that is read to its end, with usage."""
    asks = (ask(5, number) for number in range(1000))
    return next(
        one
        for one in asks
        if one.chat == chat and one.usage and one.manner == "stays" and one.right.completion_tokens > 20
    )


Spoil = Callable[[list[bytes]], list[bytes]]
SPOILT: list[tuple[str, Spoil]] = [
    ("lost", lambda events: events[:5] + events[6:]),
    ("lost", lambda events: events[:5] + events[9:]),
    ("lost", lambda events: events[:-1]),
    ("doubled", lambda events: events[:6] + events[5:]),
    ("doubled", lambda events: events[:9] + events[5:]),
    ("doubled", lambda events: [*events, events[-1]]),
    ("wrong", lambda events: [*events[:5], events[6], events[5], *events[7:]]),
    ("wrong", lambda events: [*events[:5], events[5].replace(b'"id":"', b'"id":"x'), *events[6:]]),
    ("wrong", lambda events: [event.replace(b'"length"', b'"stop"') for event in events]),
    ("wrong", lambda events: [event.replace(b'"total_tokens":', b'"total_tokens":1') for event in events]),
    ("wrong", lambda events: [event for event in events if b'"total_tokens"' not in event]),
    ("wrong", lambda events: [*events[:5], b"data: {", *events[5:]]),
    ("error", lambda events: [*events[:7], ApiError(502, "cut", code="stream_cut").event().rstrip()]),
    ("wrong", lambda events: [*events[:7], ApiError(502, "cut").event().rstrip(), *events[7:]]),
    ("wrong", lambda events: [*events[:4], events[5], ApiError(502, "cut").event().rstrip()]),
    ("wrong", lambda events: [*events[:4], b'data: {"error": "something"}']),
]


@pytest.mark.parametrize("chat", [True, False])
async def test_a_spoilt_stream_is_found_out(double: Double, chat: bool) -> None:
    one = a_stream(chat)
    answer = await answered(double, one)
    assert judge(one, answer).kind == "right"
    for number, (kind, spoil) in enumerate(SPOILT):
        assert judge(one, replace(answer, body=spoil(answer.body))).kind == kind, number


@pytest.mark.parametrize("chat", [True, False])
async def test_a_stream_that_breaks_off_is_severed_unless_the_client_left(double: Double, chat: bool) -> None:
    one = a_stream(chat)
    answer = await answered(double, one)
    cut = replace(answer, body=answer.body[:6], ended=False)
    assert judge(one, cut).kind == "severed"
    assert judge(one, replace(cut, left=True)).kind == "right"
    assert judge(one, replace(cut, body=[*answer.body[:3], answer.body[5]], left=True)).kind == "wrong"


async def test_an_answer_to_another_prompt_is_wrong(double: Double) -> None:
    one = a_stream(True)
    answer = await answered(double, replace(one, body={**one.body, "messages": [{"role": "user", "content": "no"}]}))
    assert judge(one, answer).kind == "wrong"


def test_errors_that_no_client_could_parse_are_never_good() -> None:
    one = ask(5, 1)
    body = ApiError(503, "later", code="no_engine").body()
    assert judge(one, Answer(503, [body], ended=True)) == judge(one, Answer(500, [body], ended=True))
    assert judge(one, Answer(503, [body], ended=True)).why == "no_engine"
    for nothing in (b"Service Unavailable", b"{}", b"[]", b'{"error": "x"}', b'{"error": {"message": ""}}'):
        assert judge(one, Answer(500, [nothing], ended=True)).why == "unreadable 500"
        tally = Tally()
        tally.enter(one, judge(one, Answer(500, [nothing], ended=True)), 0.1)
        assert not tally.good(errors=1.0)


def test_a_client_that_left_with_an_error_in_its_hands_counts_once() -> None:
    one, tally = ask(5, 1), Tally()
    verdict = judge(one, Answer(503, [ApiError(503, "later", code="no_engine").body()], ended=True, left=True))
    tally.enter(one, verdict, 0.1, left=True)
    assert (tally.client_errors, tally.left) == (1, 0)


def test_texts_are_compared_token_by_token() -> None:
    right = ["one", " two", " three", " four"]
    assert compare(right, "one two three four").kind == "right"
    assert compare(right, "one two four").kind == "lost"
    assert compare(right, "one two").kind == "lost"
    assert compare(right, "").kind == "lost"
    assert compare(right, "one two two three four").kind == "doubled"
    assert compare(right, "one two three four four").kind == "doubled"
    assert compare(right, "one too three four").kind == "wrong"
    assert compare(right, "one two three four five").kind == "wrong"

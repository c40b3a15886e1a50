"""The loop: order, limits, preemption, cancellation, time."""

import asyncio
from typing import Any

import pytest

from engines.double import Double, Timing, tokens
from engines.double.engine import EngineDeadError
from engines.double.limits import Limits
from tests.double.conftest import TEXT, Client, chat


def test_the_timing_model() -> None:
    timing = Timing(1, 0.1, 0.01, 2, 0.2, 0.02, 3, 100)
    assert timing.prefill_s(10, 50) == pytest.approx(1 + 1 + 5)
    assert timing.prefill_s(0, 50) == 0
    assert timing.decode_s(4, 100) == pytest.approx(2 + 0.8 + 2)
    assert timing.decode_s(0, 100) == 0
    assert timing.transfer_s(200) == pytest.approx(5)
    assert Timing().transfer_s(10**9) == Timing().decode_s(9, 9) == 0


def test_blocks_that_cannot_hold_one_request_are_refused() -> None:
    with pytest.raises(ValueError, match="raise num_blocks or lower max_model_len"):
        Limits(num_blocks=10, block_size=16, max_model_len=1000)


async def test_prefill_and_decode_take_their_time(client: Client) -> None:
    async with Double(timing=Timing(prefill_b_s=0.001, decode_a_s=0.01)) as double:
        loop = asyncio.get_running_loop()
        start = loop.time()
        response = await client.post(double, chat(max_tokens=11))
        took = loop.time() - start
        least = 0.001 * response.json()["usage"]["prompt_tokens"] + 10 * 0.01
        assert took >= least
        assert double.stats.first_token_s.sum >= least - 0.1
        assert double.stats.between_tokens_s.total == 10
        start = loop.time()
        await client.post(double, chat(max_tokens=1))
        assert loop.time() - start < least


async def test_slow_multiplies(client: Client) -> None:
    async with Double(timing=Timing(decode_a_s=0.002)) as double:
        double.faults.slow = 20
        start = asyncio.get_running_loop().time()
        await client.say(double, chat(max_tokens=6))
        assert asyncio.get_running_loop().time() - start >= 0.2


async def test_a_client_that_leaves_frees_everything_at_once(client: Client, both: Double) -> None:
    both.timing.decode_a_s = 0.01
    streaming = asyncio.create_task(client.events(both, chat(max_tokens=20_000)))
    whole = asyncio.create_task(client.say(both, chat(max_tokens=20_000)))
    await both.until(lambda stats: stats.running == 2)
    assert both.stats.usage > 0
    streaming.cancel()
    await both.until(lambda stats: stats.running == 1)
    whole.cancel()
    await both.idle()
    assert both.stats.usage == 0
    assert both.stats.finished["abort"] == 2
    both.engine.pool.check()


async def test_a_client_that_leaves_the_queue_is_forgotten(client: Client) -> None:
    async with Double(max_num_seqs=1, timing=Timing(decode_a_s=0.01)) as double:
        first = asyncio.create_task(client.say(double, chat(max_tokens=20_000)))
        await double.until(lambda stats: stats.running == 1)
        second = asyncio.create_task(client.say(double, chat()))
        await double.until(lambda stats: stats.waiting == 1)
        second.cancel()
        await double.until(lambda stats: stats.waiting == 0)
        assert double.stats.running == 1
        first.cancel()
        await double.idle()


async def test_no_more_run_at_once_than_there_are_seats(client: Client) -> None:
    async with Double(max_num_seqs=2, timing=Timing(decode_a_s=0.005)) as double:
        asked = [asyncio.create_task(client.say(double, chat(f"{at}", 5))) for at in range(6)]
        await double.until(lambda stats: stats.waiting >= 1)
        assert double.stats.running <= 2
        answers = await asyncio.gather(*asked)
        assert answers == [await client.say(double, chat(f"{at}", 5)) for at in range(6)]


async def test_preemption_changes_no_answer(client: Client, both: Double) -> None:
    async with Double(num_blocks=34, max_model_len=512) as double:
        bodies = [chat(f"{at} tells", 200) for at in range(6)]
        answers = await asyncio.gather(*(client.say(double, body) for body in bodies))
        assert double.stats.preemptions > 0
        assert double.stats.received == double.stats.finished["length"] == 6
        assert double.stats.cache_queries == sum(len(tokens.render(body["messages"])) for body in bodies)
        assert answers == [await client.say(both, body) for body in bodies]
        double.engine.pool.check()


async def test_a_long_prompt_is_computed_in_chunks(client: Client, both: Double) -> None:
    async with Double(max_num_batched_tokens=50) as double:
        assert await client.say(double, chat()) == await client.say(both, chat())


async def test_the_prefix_cache_is_hit_and_salts_keep_apart(client: Client, both: Double) -> None:
    async def cached(**more: Any) -> int:
        usage = (await client.post(both, chat(**more))).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert await cached() == 0
    assert await cached() > 100
    assert await cached(cache_salt="a") == 0
    assert await cached(cache_salt="a") > 100


async def test_answers_depend_on_every_part_of_the_prompt(client: Client, both: Double) -> None:
    base = await client.say(both, chat(TEXT, 12))
    assert await client.say(both, chat(TEXT, 12)) == base
    assert await client.say(both, chat(TEXT, 12, temperature=0.7)) == base
    for at in (0, 70, len(TEXT) - 2):
        changed = TEXT[:at] + "#" + TEXT[at + 1 :]
        assert await client.say(both, chat(changed, 12)) != base


async def test_a_continued_answer_is_the_same_answer(client: Client, both: Double) -> None:
    whole = await client.post(both, {"model": "m", "prompt": TEXT, "max_tokens": 20}, "/v1/completions")
    text = whole.json()["choices"][0]["text"]
    part = await client.post(both, {"model": "m", "prompt": TEXT, "max_tokens": 8}, "/v1/completions")
    said = part.json()["choices"][0]["text"]
    rest = await client.post(both, {"model": "m", "prompt": TEXT + said, "max_tokens": 12}, "/v1/completions")
    assert said + rest.json()["choices"][0]["text"] == text


async def test_a_wait_ends_when_the_engine_dies(both: Double) -> None:
    waiting = asyncio.create_task(both.busy())
    await asyncio.sleep(0)
    await both.die()
    with pytest.raises(EngineDeadError):
        await waiting


async def test_many_streams_at_once(client: Client, both: Double) -> None:
    alone = await client.say(both, chat(max_tokens=30))
    answers = await asyncio.gather(*(client.events(both, chat(max_tokens=30)) for _ in range(60)))
    assert all(len(answer) == 32 for answer in answers)
    assert await client.say(both, chat(max_tokens=30)) == alone
    await both.idle()
    assert both.stats.usage == 0

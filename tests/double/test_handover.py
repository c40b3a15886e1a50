"""The hand-over of KV from a prefill to a decode double, right and wrong (the table "what goes wrong on D")."""

import asyncio
from typing import Any

import httpx
import pytest

from engines.double import Double
from tests.double.conftest import PREFILL, TEXT, Client, chat

OTHER = "an entirely different text about mountains, rivers and the sea, " * 4

FIELDS = [
    "do_remote_prefill",
    "do_remote_decode",
    "remote_block_ids",
    "remote_engine_id",
    "remote_request_id",
    "remote_host",
    "remote_port",
    "tp_size",
    "dcp_size",
    "pp_size",
    "remote_num_tokens",
    "remote_blocks_expiry_time",
    "transfer_mode",
    "remote_prefill_cached_tokens",
]


async def truth(client: Client, body: dict[str, Any]) -> str:
    """What an engine that does everything itself says."""
    async with Double() as whole:
        return await client.say(whole, body)


def small(role: Any, name: str, **more: Any) -> Double:
    """A double with so few blocks that the next long prompt reuses them."""
    return Double(role, name, num_blocks=33, max_model_len=512, **more)


async def test_the_answer_is_the_same_as_from_one_engine(client: Client, p: Double, d: Double) -> None:
    body = chat(max_tokens=40)
    params = await client.prefill(p, body)
    assert list(params) == FIELDS
    assert params["transfer_mode"] == "pull" and params["remote_blocks_expiry_time"] is None
    assert params["remote_num_tokens"] == p.stats.prompt_tokens
    assert len(params["remote_block_ids"][0]) == -(-params["remote_num_tokens"] // 16)
    assert len(p.engine.leases) == 1
    assert await client.say(d, {**body, "kv_transfer_params": params}) == await truth(client, body)
    assert d.stats.external_kv_transfer == params["remote_num_tokens"]
    assert d.stats.local_compute == 0
    await p.unleased()
    assert p.stats.usage == 0 and d.stats.usage == 0
    assert p.stats.notified_late == p.stats.leases_expired == 0


async def test_every_length_around_the_blocks_ends_is_right(client: Client, p: Double, d: Double, both: Double) -> None:
    path = "/v1/completions"
    for length in range(1, 36):
        body = {"model": "m", "prompt": [600 + length] * length, "max_tokens": 20}
        leg = await client.post(p, {**body, "max_tokens": 1, "kv_transfer_params": PREFILL}, path)
        params = leg.json()["kv_transfer_params"]
        got = await client.post(d, {**body, "kv_transfer_params": params}, path)
        want = await client.post(both, body, path)
        assert got.json()["choices"][0]["text"] == want.json()["choices"][0]["text"], length


async def test_only_missing_blocks_are_pulled(client: Client, p: Double, d: Double) -> None:
    first, longer = chat(TEXT), chat(TEXT + OTHER, 30)
    await client.say(d, {**first, "kv_transfer_params": await client.prefill(p, first)})
    before = d.stats.blocks_pulled
    params = await client.prefill(p, longer)
    assert await client.say(d, {**longer, "kv_transfer_params": params}) == await truth(client, longer)
    pulled = d.stats.blocks_pulled - before
    held = d.stats.cache_hits // 16
    assert held > 0
    assert pulled == len(params["remote_block_ids"][0]) - held


async def test_the_generated_turn_is_found_again(client: Client, p: Double, d: Double) -> None:
    body = chat(max_tokens=64)
    said = await client.say(d, {**body, "kv_transfer_params": await client.prefill(p, body)})
    turns = [*body["messages"], {"role": "assistant", "content": said}, {"role": "user", "content": "go on"}]
    response = await client.post(d, {**body, "messages": turns})
    usage = response.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= p.stats.prompt_tokens + 64 - 16 - 1
    assert response.json()["choices"][0]["message"]["content"] == await truth(client, {**body, "messages": turns})


async def test_the_decode_engine_reports_the_prefill_engines_hits(client: Client, p: Double, d: Double) -> None:
    body = chat()
    await client.say(p, body)
    params = await client.prefill(p, body)
    assert params["remote_prefill_cached_tokens"] > 0
    response = await client.post(d, {**body, "kv_transfer_params": params})
    details = response.json()["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] == params["remote_prefill_cached_tokens"]


async def test_a_streaming_prefill_answer_carries_no_params(client: Client, p: Double) -> None:
    events = await client.events(p, chat(max_tokens=1, kv_transfer_params=PREFILL))
    assert "kv_transfer_params" not in "".join(events)
    assert len(p.engine.leases) == 1


async def test_params_come_from_all_apis(client: Client, p: Double) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": TEXT, "max_tokens": 1},
        "/v1/messages": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 1},
        "/v1/responses": {"input": TEXT, "max_output_tokens": 1},
    }
    for path, body in bodies.items():
        response = await client.post(p, {"model": "m", **body, "kv_transfer_params": PREFILL}, path)
        assert list(response.json()["kv_transfer_params"]) == FIELDS
    assert len(p.engine.leases) == 3


async def late(client: Client, p: Double, body: dict[str, Any]) -> dict[str, Any]:
    """Params whose lease has ended and whose blocks hold something else by now."""
    params = await client.prefill(p, body)
    assert p.expire_leases() == 1
    for at in range(8):
        await client.say(p, chat(f"{at} " + OTHER, 1))
    return params


async def test_a_late_read_gives_wrong_tokens_and_poisons_the_cache(client: Client) -> None:
    async with small("prefill", "p") as p, small("decode", "d") as d:
        body = chat(max_tokens=20)
        right = await truth(client, body)
        params = await late(client, p, body)
        assert p.stats.leases_expired == 1
        wrong = await client.say(d, {**body, "kv_transfer_params": params})
        assert wrong != right
        assert p.stats.notified_late == 1
        assert await client.say(d, body) != right
        assert d.stats.cache_hits > 0
        assert (await client.post(d, {}, "/reset_prefix_cache")).json() == {"success": True}
        assert await client.say(d, body) == right


async def test_a_late_read_of_blocks_not_yet_reused_is_right_but_counted(client: Client, p: Double, d: Double) -> None:
    body = chat()
    params = await client.prefill(p, body)
    p.expire_leases()
    assert await client.say(d, {**body, "kv_transfer_params": params}) == await truth(client, body)
    assert p.stats.notified_late == 1


async def test_params_used_twice_are_right_only_by_luck(client: Client) -> None:
    async with small("prefill", "p") as p, small("decode", "d") as d, small("decode", "d2") as second:
        body = chat()
        params = await client.prefill(p, body)
        right = await client.say(d, {**body, "kv_transfer_params": params})
        for at in range(8):
            await client.say(p, chat(f"{at} " + OTHER, 1))
        assert await client.say(second, {**body, "kv_transfer_params": params}) != right
        assert p.stats.notified_late == 1


async def test_a_longer_prompt_kills_the_decode_engine(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat("short"))
    with pytest.raises(httpx.TransportError):
        await client.post(d, chat(TEXT, kv_transfer_params=params))
    await d.died()
    with pytest.raises(httpx.ConnectError):
        await client.http.get(d.url + "/health")


async def test_another_prompt_that_is_not_longer_gives_wrong_tokens(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat(TEXT))
    body = chat(TEXT.replace("fox", "cat"))
    wrong = await client.say(d, {**body, "kv_transfer_params": params})
    right = await truth(client, body)
    assert wrong != right
    assert await client.say(d, body) != right


@pytest.mark.parametrize("missing", ["remote_engine_id", "remote_host", "remote_port", "remote_request_id"])
async def test_incomplete_params_hang(client: Client, p: Double, d: Double, missing: str) -> None:
    params = await client.prefill(p, chat())
    del params[missing]
    asked = asyncio.create_task(client.post(d, chat(kv_transfer_params=params)))
    await d.until(lambda stats: stats.loading == 1)
    await client.say(d, chat("somebody else"))
    assert d.stats.loading == 1 and not asked.done()
    asked.cancel()
    await d.idle()
    assert d.stats.usage == 0


async def test_params_without_blocks_kill_the_decode_engine(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat())
    with pytest.raises(httpx.TransportError):
        await client.post(d, chat(kv_transfer_params={**params, "remote_block_ids": []}))
    assert not d.alive


async def test_an_unreachable_prefill_engine_is_a_500(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat())
    await p.die()
    response = await client.post(d, chat(kv_transfer_params=params))
    assert response.status_code == 500
    assert response.json() == {
        "error": {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
    }
    assert d.stats.transfers_failed == 1
    assert await client.say(d, chat()) == await truth(client, chat())


async def test_a_prefill_engine_may_die_between_the_legs(client: Client, p: Double, d: Double) -> None:
    p.faults.die_after_prefill = True
    params = await client.prefill(p, chat())
    await p.died()
    assert (await client.post(d, chat(kv_transfer_params=params))).status_code == 500


async def test_a_failed_transfer_in_a_stream_is_an_error_event(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat())
    await p.die()
    events = await client.events(d, chat(kv_transfer_params=params))
    assert '"delta":{"role":"assistant","content":""}' in events[0]
    assert events[1:] == [
        'data: {"error": {"message": "Internal server error", "type": "InternalServerError", '
        '"param": null, "code": 500}}',
        "data: [DONE]",
    ]


async def test_a_prefill_engine_that_came_back_does_not_serve_its_old_blocks(
    client: Client, p: Double, d: Double
) -> None:
    params = await client.prefill(p, chat())
    await p.revive()
    assert p.engine_id != params["remote_engine_id"]
    assert (await client.post(d, chat(kv_transfer_params=params))).status_code == 500
    fresh = await client.prefill(p, chat())
    assert await client.say(d, chat(kv_transfer_params=fresh)) == await truth(client, chat())


async def test_a_list_of_prompts_with_params_is_wrong_for_the_second(client: Client, p: Double, d: Double) -> None:
    body: dict[str, Any] = {"model": "m", "prompt": [TEXT, TEXT.replace("dog", "cow")], "max_tokens": 16}
    path = "/v1/completions"
    leg = await client.post(p, {**body, "max_tokens": 1, "kv_transfer_params": PREFILL}, path)
    params = leg.json()["kv_transfer_params"]
    got = [c["text"] for c in (await client.post(d, {**body, "kv_transfer_params": params}, path)).json()["choices"]]
    async with Double() as whole:
        want = [c["text"] for c in (await client.post(whole, body, path)).json()["choices"]]
    assert got[0] == want[0]
    assert got[1] != want[1]
    assert len(p.engine.leases) == 1


async def test_several_choices_pull_several_times(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat())
    response = await client.post(d, chat(n=2, kv_transfer_params=params))
    assert len(response.json()["choices"]) == 2
    assert d.stats.transfer_s.total == 2
    assert p.stats.notified_late == 1


async def test_a_request_refused_by_the_engine_gives_the_blocks_back(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat())
    response = await client.post(d, chat(max_tokens=0, kv_transfer_params=params))
    assert response.status_code == 400
    await p.unleased()
    assert p.stats.leases_expired == 0


async def test_a_request_refused_by_the_schema_does_not(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat())
    assert (await client.post(d, chat(stream_options={}, tools=[], kv_transfer_params=params))).status_code == 400
    await d.idle()
    assert not d.engine._notices
    assert len(p.engine.leases) == 1


async def test_an_aborted_prefill_keeps_nothing(client: Client, p: Double) -> None:
    p.timing.prefill_a_s = 30
    asked = asyncio.create_task(client.prefill(p, chat()))
    await p.busy()
    asked.cancel()
    await p.idle()
    assert len(p.engine.leases) == 0 and p.stats.usage == 0


async def test_a_client_that_leaves_during_the_pull_does_not_strand_the_prefill_engine(
    client: Client, p: Double, d: Double
) -> None:
    d.timing.transfer_latency_s = 0.2
    params = await client.prefill(p, chat())
    asked = asyncio.create_task(client.post(d, chat(kv_transfer_params=params)))
    await d.until(lambda stats: stats.loading == 1)
    asked.cancel()
    await d.idle()
    await p.unleased()
    await d.until(lambda stats: stats.usage == 0)
    assert p.stats.leases_expired == 0


async def test_a_client_that_leaves_the_queue_does_not_either(client: Client, p: Double) -> None:
    async with Double("decode", max_num_seqs=1) as d:
        d.timing.decode_a_s = 0.01
        first = asyncio.create_task(client.say(d, chat("long", 20_000)))
        await d.until(lambda stats: stats.running == 1)
        params = await client.prefill(p, chat())
        second = asyncio.create_task(client.say(d, chat(kv_transfer_params=params)))
        await d.until(lambda stats: stats.waiting == 1)
        second.cancel()
        await p.unleased()
        assert p.stats.leases_expired == 0 and d.stats.blocks_pulled == 0
        first.cancel()
        await d.idle()


async def test_a_prefill_that_a_stop_string_ended_keeps_nothing(client: Client, p: Double, both: Double) -> None:
    first = (await client.say(both, chat(max_tokens=1))).strip()
    response = await client.post(p, chat(max_tokens=500, stop=[first], kv_transfer_params=PREFILL))
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    assert response.json()["kv_transfer_params"] is None
    assert len(p.engine.leases) == 0 and p.stats.usage == 0


async def test_a_lease_ends_by_itself(client: Client) -> None:
    async with Double("prefill", lease_s=0.05) as p:
        await client.prefill(p, chat())
        await p.unleased()
        assert p.stats.leases_expired == 1 and p.stats.usage == 0


async def outwait(client: Client, p: Double, d: Double) -> None:
    """Hand over to a decode double whose only seat is taken for longer than the lease."""
    d.timing.decode_a_s = 0.03
    first = asyncio.create_task(client.say(d, chat("long", 25)))
    await d.until(lambda stats: stats.running == 1)
    params = await client.prefill(p, chat())
    await client.say(d, chat(max_tokens=1, kv_transfer_params=params))
    await first


async def test_heartbeats_keep_the_lease_while_the_decode_engine_is_full(client: Client) -> None:
    async with Double("prefill", lease_s=0.6) as p, Double("decode", max_num_seqs=1, lease_s=0.06) as d:
        await outwait(client, p, d)
        assert p.stats.leases_expired == 0 and p.stats.notified_late == 0


async def test_without_heartbeats_the_same_wait_outlives_the_lease(client: Client) -> None:
    async with Double("prefill", lease_s=0.6) as p, Double("decode", max_num_seqs=1, lease_s=0.06) as d:
        d.faults.mute_heartbeats = True
        await outwait(client, p, d)
        assert p.stats.leases_expired == 1 and p.stats.notified_late == 1


async def test_given_ids_replace_the_messages_on_both_legs(client: Client, p: Double, d: Double) -> None:
    ids = list(range(600, 650))
    params = {**PREFILL, "prompt_token_ids": ids}
    leg = await client.post(p, chat("hi", 1, kv_transfer_params=params, return_token_ids=True))
    assert leg.json()["usage"]["prompt_tokens"] == 50
    assert leg.json()["prompt_token_ids"] == ids
    got = await client.say(
        d, chat("hi", kv_transfer_params={**leg.json()["kv_transfer_params"], "prompt_token_ids": ids})
    )
    assert got == await truth(client, chat("hi", kv_transfer_params={"prompt_token_ids": ids}))

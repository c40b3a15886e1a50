from prometheus_client.parser import text_string_to_metric_families

from engines.double import Double, Doubles
from tests.double.conftest import Client, chat

LABELS = {"engine": "0", "model_name": "m"}


async def read(client: Client, double: Double) -> dict[str, float]:
    """Samples as `name` or `name{source}`; every sample must have vLLM's labels."""
    response = await client.http.get(double.url + "/metrics")
    assert response.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if family.name.startswith("vllm:") and family.name not in (
                "vllm:cache_config_info",
                "vllm:admission_rejections",
            ):
                assert sample.labels.items() >= LABELS.items()
            rest = {key: value for key, value in sample.labels.items() if key not in LABELS}
            samples[sample.name.removeprefix("vllm:") + "".join(f"{{{value}}}" for value in rest.values())] = (
                sample.value
            )
    return samples


async def test_what_a_hand_over_leaves_in_the_counters(client: Client) -> None:
    async with Doubles(prefill=1, decode=1, kv_bytes_per_token=1000) as fleet:
        p, d = fleet.all
        params = await client.prefill(p, chat())
        count = params["remote_num_tokens"]
        await client.say(d, chat(max_tokens=5, kv_transfer_params=params))
        await p.unleased()
        prefill, decode = await read(client, p), await read(client, d)
        assert prefill["prompt_tokens_by_source_total{local_compute}"] == count
        assert prefill["external_prefix_cache_queries_total"] == count
        assert prefill["generation_tokens_total"] == 1
        assert decode["prompt_tokens_by_source_total{external_kv_transfer}"] == count
        assert decode["prompt_tokens_by_source_total{local_compute}"] == 0
        assert decode["external_prefix_cache_hits_total"] == count
        assert decode["prompt_tokens_total"] == count
        assert decode["generation_tokens_total"] == 5
        assert decode["nixl_xfer_time_seconds_count"] == 1
        assert decode["nixl_bytes_transferred_sum"] == -(-count // 16) * 16 * 1000
        assert decode["nixl_bytes_transferred_bucket{+Inf}"] == 1
        assert decode["request_success_total{length}"] == 1
        assert decode["time_to_first_token_seconds_count"] == 1
        assert decode["inter_token_latency_seconds_count"] == 4
        assert prefill["nixl_num_kv_expired_reqs_total"] == 0


async def test_expiry_and_late_notices_are_counted(client: Client, p: Double, d: Double) -> None:
    params = await client.prefill(p, chat())
    assert (await read(client, p))["kv_cache_usage_perc"] > 0
    p.expire_leases()
    await client.say(d, chat(kv_transfer_params=params))
    samples = await read(client, p)
    assert samples["nixl_num_kv_expired_reqs_total"] == 1
    assert samples["nixl_num_notifications_after_expiry_total"] == 1
    assert samples["kv_cache_usage_perc"] == 0


async def test_gauges_are_those_of_now(client: Client, both: Double) -> None:
    both.timing.decode_a_s = 0.02
    async with client.http.stream("POST", both.url + "/v1/chat/completions", json=chat("hi", 900, stream=True)) as r:
        await anext(r.aiter_raw())
        assert (await read(client, both))["num_requests_running"] == 1
    await both.idle()
    samples = await read(client, both)
    assert samples["num_requests_running"] == 0
    assert samples["request_success_total{abort}"] == 1


async def test_the_cache_is_described(client: Client) -> None:
    async with Double(block_size=32, num_blocks=2000) as double:
        page = (await client.http.get(double.url + "/metrics")).text
        (family,) = [f for f in text_string_to_metric_families(page) if f.name == "vllm:cache_config_info"]
        (sample,) = family.samples
        assert sample.labels["block_size"] == "32" and sample.labels["num_gpu_blocks"] == "2000"
        await client.say(double, chat())
        await client.say(double, chat())
        samples = await read(client, double)
        assert samples["prefix_cache_hits_total"] == samples["prompt_tokens_by_source_total{local_cache_hit}"] > 0

"""What a client sees when engines fail: an answer that is right, or an error it can parse; no hang, no bare cut."""

import asyncio
import json
from typing import Any

import pytest

from engines.double import Double
from policies.contract import Fleet, Placement, Request
from tests.gateway.conftest import Gateway, Pair, make_pair, until

PROMPT = "Never a wrong token, never a lost request. " * 12
BODY: dict[str, Any] = {"model": "m", "prompt": PROMPT, "max_tokens": 8}
STREAMED = {**BODY, "stream": True}


async def assert_right(pair: Pair) -> Any:
    """The answer is right all the same; returns it."""
    answer = await pair.http.post("/v1/completions", json=BODY, headers={"x-baton-facts": "1"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == (await pair.right("/v1/completions", BODY))["choices"]
    stream = await pair.http.post("/v1/completions", json={**STREAMED, "prompt": "b" + PROMPT})
    right = await pair.right("/v1/completions", {**BODY, "prompt": "b" + PROMPT})
    assert text_of(stream.text) == right["choices"][0]["text"]
    assert stream.text.endswith("data: [DONE]\n\n")
    assert pair.gateway.booked() == 0
    return answer


def text_of(stream: str) -> str:
    events = [line[6:] for line in stream.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


async def test_a_dead_prefill_engine_costs_only_the_split(pair: Pair) -> None:
    await pair.prefill.die()
    answer = await assert_right(pair)
    assert "x-baton-prefill" not in answer.headers
    assert pair.decode.stats.local_compute > 0


@pytest.mark.parametrize("faults", [{"error_next": 1}, {"drop_params": True}, {"error_next": 1, "error_status": 503}])
async def test_a_prefill_engine_that_fails_is_served_around(pair: Pair, faults: dict[str, Any]) -> None:
    pair.prefill.faults.set(**faults)
    await assert_right(pair)
    assert pair.gateway.metric("baton_retries_total", leg="prefill", cause="incomplete") == (
        2 if "drop_params" in faults else 0
    )


@pytest.mark.parametrize(
    "missing", ["remote_engine_id", "remote_request_id", "remote_host", "remote_port", "remote_block_ids"]
)
async def test_incomplete_parameters_never_reach_a_decode_engine(pair: Pair, missing: str) -> None:
    """The real engine hangs on them."""
    pair.prefill.faults.omit_params = (missing,)
    await assert_right(pair)
    assert not any(b"remote_block_ids" in request.body for request in pair.decode.requests)


async def test_a_prefill_engine_that_hangs_has_a_deadline() -> None:
    async with make_pair(prefill_timeout_s=0.2) as pair:
        pair.prefill.faults.hang = "answer"
        await assert_right(pair)


async def test_a_decode_engine_that_errs_is_replaced() -> None:
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d0, Double("decode", "d1") as d1:
        async with Gateway.over(p, d0, d1, policy="round_robin") as gateway:
            d0.faults.set(error_next=99, error_status=503)
            for number in range(4):
                answer = await gateway.http.post("/v1/completions", json={**BODY, "prompt": f"{number} {PROMPT}"})
                assert answer.status_code == 200
            assert d1.stats.received == 4
            assert gateway.booked() == 0


async def test_transfer_parameters_are_never_sent_twice() -> None:
    """When the decode engine fails after it got them, the prompt is prefilled afresh."""
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d0, Double("decode", "d1") as d1:
        async with Gateway.over(p, d0, d1) as gateway:
            for engine in (d0, d1):
                engine.faults.set(error_next=1, error_status=503)
            assert (await gateway.http.post("/v1/completions", json=BODY)).status_code in (200, 503)
            sent = [
                params["remote_request_id"]
                for d in (d0, d1)
                for request in d.requests
                if request.method == "POST" and (params := request.json().get("kv_transfer_params"))
            ]
            assert len(sent) >= 2
            assert len(sent) == len(set(sent))


async def test_a_failed_transfer_is_computed_locally(pair: Pair) -> None:
    """The prefill engine dies after its answer: vLLM answers 500, the gateway asks again without parameters."""
    original = pair.prefill.hand_over
    deaths = []

    def then_die(*args: Any) -> Any:
        params = original(*args)
        if params is not None:
            deaths.append(asyncio.create_task(pair.prefill.die()))
            params["remote_port"] = 1
        return params

    pair.prefill.hand_over = then_die  # type: ignore[method-assign, assignment]
    answer = await pair.http.post("/v1/completions", json=BODY)
    assert answer.status_code == 200
    assert answer.json()["choices"] == (await pair.right("/v1/completions", BODY))["choices"]
    assert pair.gateway.metric("baton_transfers_total", outcome="error") == 1
    assert len(deaths) == 1
    await deaths[0]


async def test_a_lease_that_ended_between_the_legs_is_not_used() -> None:
    async with Double("prefill", "p0", lease_s=5.0) as p, Double("decode", "d0") as d, Double("both", "j") as j:
        async with Gateway.over(p, d, lease_margin_s=5.0) as gateway:
            answer = await assert_right(Pair(p, d, j, gateway))
            assert answer.headers["x-baton-reason"].endswith("whole")
            assert gateway.metric("baton_transfers_total", outcome="late") == 2
            assert not any(b"remote_block_ids" in request.body for request in d.requests)


async def test_a_first_byte_after_the_lease_is_not_believed() -> None:
    """A stream whose first byte comes too late is dropped before anything reached the client, and done again."""
    async with Double("prefill", "p0", lease_s=5.0) as p, Double("decode", "d0") as d, Double("both", "j") as j:
        async with Gateway.over(p, d, lease_margin_s=4.0) as gateway:
            d.timing.transfer_latency_s = 30.0
            stream = await gateway.http.post("/v1/completions", json=STREAMED)
            right = await Pair(p, d, j, gateway).right("/v1/completions", BODY)
            assert text_of(stream.text) == right["choices"][0]["text"]
            assert gateway.metric("baton_retries_total", leg="decode", cause="late") == 1
            await d.idle()


@pytest.mark.parametrize("expires", [True, False])
async def test_a_slow_answer_is_believed_only_if_no_blocks_expired_meanwhile(expires: bool) -> None:
    """Not streamed, the first byte says nothing: the prefill engine's own counter does."""
    async with Double("prefill", "p0", lease_s=30.0) as p, Double("decode", "d0") as d, Double("both", "j") as j:
        async with Gateway.over(p, d, lease_margin_s=29.0) as gateway:  # watched from one second on
            d.timing.transfer_latency_s = 2.0
            asked = asyncio.create_task(gateway.http.post("/v1/completions", json=BODY))
            pool = gateway.app.fleet.engines["p0"].pool

            def watched() -> bool:  # health checks ask for the same, with httpx
                return any(one.path == "/metrics" and "user-agent" not in one.headers for one in p.requests)

            await until(lambda: pool.busy == 0 and watched(), 20)
            if expires:
                assert p.expire_leases() == 1
            answer = await asked
            right = await Pair(p, d, j, gateway).right("/v1/completions", BODY)
            assert answer.json()["choices"] == right["choices"]
            assert gateway.metric("baton_retries_total", leg="decode", cause="late") == (1 if expires else 0)


async def test_a_stream_that_is_cut_ends_with_an_error_event(pair: Pair) -> None:
    pair.decode.faults.cut_after = 3
    stream = await pair.http.post("/v1/completions", json=STREAMED)
    *events, last, rest = stream.text.split("\n\n")
    assert rest == ""
    assert len(events) <= 3
    assert json.loads(last.split("data: ")[1])["error"]["code"] == "stream_cut"
    assert pair.gateway.booked() == 0


async def test_no_decode_engine_is_a_503_that_says_when_to_retry(pair: Pair) -> None:
    await pair.decode.die()
    await until(lambda: not pair.gateway.app.readiness.ready, 2)
    answer = await pair.http.post("/v1/completions", json=BODY)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "no_engine"


async def test_a_request_waits_for_an_engine_to_come_up() -> None:
    async with make_pair(engine_wait_s=5.0) as pair:
        await pair.decode.die()
        await until(lambda: not pair.gateway.app.readiness.ready, 2)
        asked = asyncio.create_task(pair.http.post("/v1/completions", json=BODY))
        await pair.decode.revive()
        assert (await asked).status_code == 200


@pytest.mark.parametrize("hang", ["answer", "body"])
async def test_an_engine_that_never_answers_is_a_504(hang: Any) -> None:
    async with make_pair(first_byte_timeout_s=0.2, idle_timeout_s=0.2, attempts=1) as pair:
        pair.decode.faults.hang = hang
        for body in (BODY, STREAMED):
            answer = await pair.http.post("/v1/completions", json=body)
            assert answer.status_code == 504
            assert answer.json()["error"]["type"] == "server_error"
        assert pair.gateway.booked() == 0


async def test_a_transfer_that_fails_inside_the_stream_is_never_shown(pair: Pair) -> None:
    """vLLM sends 200 and the role first, then an error event."""
    original = pair.prefill.hand_over

    def nowhere(*args: Any) -> Any:
        params = original(*args)
        return params and {**params, "remote_port": 1}

    pair.prefill.hand_over = nowhere  # type: ignore[method-assign, assignment]
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
    stream = await pair.http.post("/v1/chat/completions", json={**body, "stream": True})
    events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    right = await pair.right("/v1/chat/completions", body)
    assert "".join(delta.get("content") or "" for delta in deltas) == right["choices"][0]["message"]["content"]
    assert pair.gateway.metric("baton_transfers_total", outcome="error") == 1


async def test_what_was_prefilled_is_decoded_elsewhere_when_nobody_was_told_of_it() -> None:
    """A refused connection carried no parameters: they are as good as before, and no budget pays for it."""
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d0, Double("decode", "d1") as d1:
        async with Gateway.over(p, d0, d1, policy="round_robin", health_interval_s=30.0, retry_floor=0) as gateway:
            await d0.die()
            p.requests.clear()
            for number in range(4):
                answer = await gateway.http.post("/v1/completions", json={**BODY, "prompt": f"{number} {PROMPT}"})
                assert answer.status_code == 200
            assert len(p.posts) == 4
            assert gateway.metric("baton_transfers_total", outcome="kept") == 1
            assert gateway.metric("baton_transfers_total", outcome="used") == 4
            assert gateway.booked() == 0


async def test_past_the_retry_budget_a_failure_is_told_at_once() -> None:
    async with Double("both", "d0") as d0, Double("both", "d1") as d1:
        async with Gateway.over(d0, d1, policy="round_robin", retry_share=0.0, retry_floor=2) as gateway:
            for double in (d0, d1):
                double.requests.clear()
                double.faults.set(error_next=99, error_status=500)
            for _ in range(4):
                assert (await gateway.http.post("/v1/completions", json=BODY)).status_code == 500
            assert len(d0.posts) + len(d1.posts) == 4 + 2
            assert gateway.metric("baton_retry_budget") == 0
            assert gateway.metric("baton_retry_budget_spent_total") == 2


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_half_of_the_engines_die_under_load_and_no_request_fails(role: str) -> None:
    async with (
        Double("prefill", "p0") as p0,
        Double("prefill", "p1") as p1,
        Double("decode", "d0") as d0,
        Double("decode", "d1") as d1,
    ):
        for double in (p0, p1, d0, d1):
            double.timing.prefill_a_s = double.timing.decode_a_s = 0.002
        async with Gateway.over(p0, p1, d0, d1, policy="round_robin", retry_floor=0) as gateway:
            victim = p1 if role == "prefill" else d1
            gate = asyncio.Semaphore(40)
            done = 0

            async def ask(number: int) -> int:
                nonlocal done
                async with gate:
                    body = {**BODY, "prompt": f"{number} {PROMPT}"}
                    status = (await gateway.http.post("/v1/completions", json=body)).status_code
                    done += 1
                    return status

            asked = [asyncio.create_task(ask(number)) for number in range(200)]
            await until(lambda: done >= 60, 20)
            await victim.die()
            assert {await one for one in asked} == {200}
            assert gateway.booked() == 0


async def test_the_watchdog_ends_what_outlives_its_deadline() -> None:
    async with make_pair(request_timeout_s=0.5) as pair:
        pair.decode.timing.decode_a_s = 0.02
        stream = await pair.http.post("/v1/completions", json={**STREAMED, "max_tokens": 1500})
        assert stream.status_code == 200
        assert json.loads(stream.text.split("data: ")[-1])["error"]["code"] == "request_timeout"
        await pair.decode.idle()
        assert pair.gateway.metric("baton_overdue_requests_total", step="stream") == 1
        pair.decode.timing.transfer_latency_s = 30.0
        answer = await pair.http.post("/v1/completions", json={**BODY, "prompt": "c" + PROMPT})
        assert answer.status_code == 504
        await pair.decode.idle()
        assert pair.gateway.booked() == 0


async def test_a_client_that_reads_no_more_is_given_up() -> None:
    async with make_pair(client_timeout_s=0.2) as pair:
        port = int(pair.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        raw = json.dumps({**STREAMED, "max_tokens": 30000}).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw)
        labels = {"route": "completions", "model": "m", "outcome": "stuck"}
        await until(lambda: pair.gateway.metric("baton_requests_total", **labels) == 1, 30)
        await pair.decode.idle()
        assert pair.gateway.booked() == 0
        received = await reader.read()
        assert received
        assert not received.endswith(b"0\r\n\r\n"), "half an answer looks like a whole one"
        writer.close()
        await writer.wait_closed()


async def test_a_fleet_that_must_prefill_refuses_when_it_cannot() -> None:
    async with make_pair(require_prefill=True) as pair:
        await pair.prefill.die()
        await until(lambda: pair.gateway.app.fleet.engines["p0"].offers is None, 2)
        answer = await pair.http.post("/v1/completions", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_prefill_engine")
        whole = await pair.http.post("/v1/completions", json={**BODY, "n": 2, "temperature": 1.0})
        assert whole.status_code == 200


class Nonsense:
    """A policy that is wrong in every way, by turns."""

    turn = 0

    def place(self, request: Request, fleet: Fleet) -> Placement:
        Nonsense.turn += 1
        name = fleet.decoders[0].name
        match Nonsense.turn % 4:
            case 0:
                raise RuntimeError("a plugin's mistake")
            case 1:
                return Placement(decode="nobody", reason="x")
            case 2:
                return Placement(decode=name, prefill=name, reason="x")
            case _:
                return None  # type: ignore[return-value]


async def test_a_bad_policy_never_fails_a_request() -> None:
    async with make_pair(policy="tests.gateway.test_failures:Nonsense") as pair:
        for number in range(8):
            answer = await pair.http.post("/v1/completions", json={**BODY, "prompt": f"{number} {PROMPT}"})
            assert answer.status_code == 200
        name = "tests.gateway.test_failures:Nonsense"
        assert pair.gateway.metric("baton_policy_errors_total", policy=name, cause="raised") == 2
        assert pair.gateway.metric("baton_policy_errors_total", policy=name, cause="nonsense") == 6

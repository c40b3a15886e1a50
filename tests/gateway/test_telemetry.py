"""Metrics that tell the truth, spans that join both legs, no text in either."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from gateway.settings import Settings
from gateway.telemetry.tracing import Tracing
from policies.contract import ASSUMED
from tests.gateway.conftest import Pair, make_pair, until

SECRET = "the quick brown secret "
BODY: dict[str, Any] = {"model": "m", "prompt": SECRET * 20, "max_tokens": 8, "stream": True}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_metrics_count_what_happened(pair: Pair) -> None:
    await pair.http.post("/v1/completions", json=BODY)
    await pair.http.post("/v1/completions", json={**BODY, "model": "nobody"})
    gateway = pair.gateway
    assert gateway.metric("baton_requests_total", route="completions", model="m", outcome="ok") == 1
    assert gateway.metric("baton_requests_total", route="completions", model="unknown", outcome="rejected") == 1
    assert gateway.metric("baton_time_to_first_token_seconds_count", model="m") == 1
    assert gateway.metric("baton_inter_token_latency_seconds_count", model="m") == 1
    assert gateway.metric("baton_stream_events_total", model="m") >= 9
    assert gateway.metric("baton_leg_seconds_count", leg="prefill", engine="p0") == 1
    assert gateway.metric("baton_leg_seconds_count", leg="decode", engine="d0") == 1
    assert gateway.metric("baton_transfers_total", outcome="used") == 1
    assert gateway.metric("baton_placements_total", policy="lmetric", path="remote", reason="least work") == 1
    assert gateway.metric("baton_engine_up", engine="p0", role="prefill", model="m") == 1


async def test_metrics_are_prometheus_text_without_anybodys_words(pair: Pair) -> None:
    await pair.http.post("/v1/completions", json=BODY, headers={"x-request-id": "my-request"})
    text = (await pair.http.get("/metrics")).text
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"baton_requests", "baton_in_flight", "baton_engine_up", "baton_build_info"} <= families | {
        "baton_build_info"
    }
    assert all(name.startswith("baton_") for name in families)
    assert SECRET.split()[3] not in text
    assert "my-request" not in text


async def test_fitted_speeds_are_shown_and_another_process_begins_anew(pair: Pair) -> None:
    def shown(name: str, **labels: str) -> float:
        return pair.gateway.metric(name, engine=pair.prefill.name, **labels)

    await until(lambda: all(engine.enrolled for engine in pair.gateway.app.fleet), 10)
    for _ in range(3):
        assert (await pair.http.post("/v1/completions", json=BODY)).status_code == 200
    assert shown("baton_prediction_error", kind="prefill") > 0
    fitted_s = shown("baton_engine_fitted_seconds", of="token")
    assert 0 < fitted_s < ASSUMED.token_s, "the double takes no time"
    await pair.prefill.die()
    up = {"role": "prefill", "model": "m"}
    await until(lambda: shown("baton_engine_up", **up) == 0, 10)
    await pair.prefill.revive()
    await until(lambda: shown("baton_prediction_error", kind="prefill") == 0, 10)
    assert shown("baton_engine_lateness") == 1
    assert shown("baton_engine_fitted_seconds", of="token") == ASSUMED.token_s


async def test_in_flight_is_seen_while_it_is_in_flight() -> None:
    async with make_pair() as pair:
        pair.decode.timing.decode_a_s = 30.0
        asked = asyncio.create_task(pair.http.post("/v1/completions", json=BODY))
        await pair.decode.until(lambda stats: stats.running == 1)
        assert pair.gateway.metric("baton_in_flight", engine="d0", leg="decode") == 1
        assert pair.gateway.metric("baton_in_flight_tokens", engine="d0", leg="decode") > 50
        assert pair.gateway.metric("baton_in_flight", engine="p0", leg="prefill") == 0
        asked.cancel()
        await pair.decode.idle()


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


async def test_spans_of_the_request_and_its_legs(spans: InMemorySpanExporter) -> None:
    tracing = Tracing(spans, 1.0)
    tracing._provider.add_span_processor(SimpleSpanProcessor(spans))
    async with make_pair(tracing=tracing) as pair:
        await pair.http.post("/v1/completions", json=BODY, headers={"traceparent": PARENT})
        by_name = {span.name: span for span in spans.get_finished_spans()}
        request, prefill, decode = by_name["completions m"], by_name["prefill"], by_name["decode"]
        trace_id = int(PARENT.split("-")[1], 16)
        assert {s.context.trace_id for s in (request, prefill, decode) if s.context} == {trace_id}
        assert request.parent is not None
        assert request.parent.span_id == int(PARENT.split("-")[2], 16)
        for leg, engine in ((prefill, pair.prefill), (decode, pair.decode)):
            assert leg.parent is not None
            assert request.context is not None
            assert leg.context is not None
            assert leg.parent.span_id == request.context.span_id
            sent = engine.posts[-1].headers["traceparent"]
            assert sent.split("-")[1:3] == [f"{trace_id:032x}", f"{leg.context.span_id:016x}"]
        assert [event.name for event in decode.events] == ["kv_transfer", "first_token"]
        assert not any(SECRET.split()[3] in span.to_json() for span in spans.get_finished_spans())


async def test_without_tracing_the_clients_context_is_passed_on(pair: Pair) -> None:
    headers = {"traceparent": PARENT, "tracestate": "a=b"}
    await pair.http.post("/v1/completions", json=BODY, headers=headers)
    for engine in (pair.prefill, pair.decode):
        assert engine.posts[-1].headers["traceparent"] == PARENT
        assert engine.posts[-1].headers["tracestate"] == "a=b"


async def test_an_unsampled_trace_is_not_recorded_but_passed_on(spans: InMemorySpanExporter) -> None:
    tracing = Tracing(spans, 1.0)
    tracing._provider.add_span_processor(SimpleSpanProcessor(spans))
    async with make_pair(tracing=tracing) as pair:
        await pair.http.post("/v1/completions", json=BODY, headers={"traceparent": PARENT[:-1] + "0"})
        assert not spans.get_finished_spans()
        assert pair.prefill.posts[-1].headers["traceparent"].startswith(PARENT[:35])


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[bytes]]]:
    """An OTLP/HTTP collector that keeps what it is sent."""
    got: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        got.append(await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", got


async def test_spans_reach_an_otlp_collector() -> None:
    async with collector() as (url, got):
        tracing = Tracing.of(Settings(otlp_endpoint=url))
        async with make_pair(tracing=tracing) as pair:
            await pair.http.post("/v1/completions", json=BODY)
        assert got, "the spans left when the gateway stopped"
        exported = ExportTraceServiceRequest.FromString(got[0])
        names = {s.name for r in exported.resource_spans for scope in r.scope_spans for s in scope.spans}
        assert names == {"completions m", "prefill", "decode"}

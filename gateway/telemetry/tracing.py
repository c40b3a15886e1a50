"""OpenTelemetry spans: the request (SERVER) and its two legs (CLIENT). Off unless an OTLP endpoint is set.

Names and attributes follow the GenAI semantic conventions (development status). No prompt or completion text, ever.
Off, a client's `traceparent` is passed on to the engines as it came.
"""

import random
import re
from collections.abc import Mapping
from typing import Protocol

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.settings import Settings

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-([0-9a-f]{2}).*")
"""Of any version (W3C Trace Context, section 3.2); the group is the flags, of which the lowest bit is `sampled`."""

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """A step being traced, or nothing."""

    def context(self) -> tuple[tuple[bytes, bytes], ...]:
        """Headers that make an engine's own spans children of this one."""
        ...

    def leg(self, name: str, engine: str) -> "Span": ...
    def event(self, name: str, attributes: Attributes | None = None) -> None: ...
    def end(self, attributes: Attributes | None = None, error: str = "") -> None: ...


class Untraced:
    """Passes the client's context on and records nothing."""

    __slots__ = ("_context",)

    def __init__(self, context: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self._context = context

    def context(self) -> tuple[tuple[bytes, bytes], ...]:
        return self._context

    def leg(self, name: str, engine: str) -> Span:
        return self

    def event(self, name: str, attributes: Attributes | None = None) -> None: ...
    def end(self, attributes: Attributes | None = None, error: str = "") -> None: ...


class Traced:
    """An OpenTelemetry span."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    def context(self) -> tuple[tuple[bytes, bytes], ...]:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(self._span))
        return tuple((name.encode(), value.encode()) for name, value in carrier.items())

    def leg(self, name: str, engine: str) -> Span:
        span = self._tracer.start_span(
            name, trace.set_span_in_context(self._span), SpanKind.CLIENT, {"baton.engine": engine}
        )
        return Traced(self._tracer, span)

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        self._span.add_event(name, attributes)

    def end(self, attributes: Attributes | None = None, error: str = "") -> None:
        if attributes:
            self._span.set_attributes(attributes)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class Tracing:
    """Starts the span of each request."""

    def __init__(self, exporter: SpanExporter | None, ratio: float) -> None:
        self._tracer: trace.Tracer | None = None
        self._ratio = ratio
        if exporter is None:
            return
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create({"service.name": "baton"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("baton")

    @classmethod
    def of(cls, settings: Settings) -> "Tracing":
        """Tracing as the settings want it."""
        if not settings.otlp_endpoint:
            return cls(None, 0)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return cls(OTLPSpanExporter(settings.otlp_endpoint.rstrip("/") + "/v1/traces"), settings.trace_ratio)

    def begin(self, operation: str, model: str, headers: Mapping[bytes, bytes]) -> Span:
        """The span of a request: a child of the client's, and recorded if that is, if it sent `traceparent`.

        What is not to be recorded is decided here, before the SDK is asked: its spans cost 30 µs each even then.
        """
        context = tuple((name, headers[name]) for name in (b"traceparent", b"tracestate") if name in headers)
        if self._tracer is None:
            return Untraced(context)
        known = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
        if known is not None:
            if not int(known[1], 16) & 1:
                return Untraced(context)
        elif random.random() >= self._ratio:
            name = b"00-%032x-%016x-00" % (random.getrandbits(128) or 1, random.getrandbits(64) or 1)
            return Untraced(((b"traceparent", name),))  # whoever comes after us shall not start a trace of its own
        parent = TraceContextTextMapPropagator().extract({n.decode("latin-1"): v.decode("latin-1") for n, v in context})
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": model,
            "gen_ai.provider.name": "vllm",
        }
        return Traced(
            self._tracer, self._tracer.start_span(f"{operation} {model}", parent, SpanKind.SERVER, attributes)
        )

    def close(self) -> None:
        """Send what is left."""
        if self._tracer is not None:
            self._provider.shutdown()

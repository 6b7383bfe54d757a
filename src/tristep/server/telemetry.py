"""Traces for OpenTelemetry: a span for every request and every socket, told to a collector.

Where the collector is, what this server is called there and how many traces are kept is said by the environment
(`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`), as OpenTelemetry has it. A span holds the
route, the status and when the first bytes left; never a query, a header or what was said.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import tristep

FAILED = 500


class Traced:
    """The app, with a span around whatever it answers; it goes on from the span that a client names."""

    def __init__(self, app: ASGIApp, provider: trace.TracerProvider) -> None:
        self.app = app
        self.tracer = provider.get_tracer("tristep", tristep.__version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        method = scope.get("method", "WS")
        given = extract(headers(scope["headers"]))
        attributes = {"http.request.method": method, "network.protocol.name": scope["type"]}
        with self.tracer.start_as_current_span(method, given, trace.SpanKind.SERVER, attributes) as span:
            told = Told(span, send)
            await self.app(scope, receive, told)
            if route := getattr(scope.get("route"), "path", None):
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)


class Told:
    """What is sent in answer, noted in a span on its way."""

    def __init__(self, span: trace.Span, send: Send) -> None:
        self.span, self.send = span, send
        self._has_begun = False

    async def __call__(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self._note("http.response.status_code", message["status"])
            case "websocket.accept":
                self._note("http.response.status_code", 101)
            case "websocket.close":
                self._note("websocket.close_code", message.get("code", 1000))
            case "http.response.body" | "websocket.send" if not self._has_begun and message.get("body", b"-"):
                self._has_begun = True
                self.span.add_event("first bytes")
        await self.send(message)

    def _note(self, name: str, value: int) -> None:
        self.span.set_attribute(name, value)
        if name.endswith("status_code") and value >= FAILED:
            self.span.set_status(trace.StatusCode.ERROR)


def headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Read headers for those who look for a trace in them."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


def collector() -> TracerProvider:
    """Begin to tell spans to the collector that the environment names.

    Raises:
        ModuleNotFoundError: If the extra is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    os.environ.setdefault("OTEL_SERVICE_NAME", "tristep")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider

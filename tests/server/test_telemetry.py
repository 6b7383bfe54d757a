"""Traces: a span for whatever is answered, and nothing in it that is nobody's business."""

from __future__ import annotations

import asyncio
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from server.toys import KEY
from starlette.testclient import TestClient, WebSocketDenialResponse

from tristep.server.app import create_app
from tristep.server.service import Service
from tristep.server.settings import Settings
from tristep.server.telemetry import Traced, collector

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Watched:
    """An app whose processes are not started, and its spans."""

    def __init__(self, toy: Path) -> None:
        self.exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.app = Traced(create_app(Service(Settings(model=str(toy), api_keys=(KEY,)))), provider)

    def get(self, path: str, **headers: str) -> ReadableSpan:
        """Ask for a path, and return the span of that."""

        async def main() -> None:
            transport = httpx2.ASGITransport(self.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                await client.get(path, headers={"authorization": f"Bearer {KEY}", **headers})

        asyncio.run(main())
        (span,) = self.exporter.get_finished_spans()
        return span


@pytest.fixture
def watched(toy: Path) -> Watched:
    return Watched(toy)


def test_a_request_is_a_span_that_names_its_route_and_status(watched: Watched) -> None:
    span = watched.get("/v1/models/org/unknown?token=secret", traceparent=CALLER)
    assert span.name == "GET /models/{name:path}"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 404
    assert [event.name for event in span.events] == ["first bytes"]
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == CALLER.split("-")[1]
    assert "secret" not in span.to_json()
    assert KEY not in span.to_json()


def test_a_request_that_is_refused_at_the_gate_is_a_span_too(watched: Watched) -> None:
    span = watched.get("/v1/models", authorization="Bearer wrong")
    assert span.name == "GET"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 401


def test_a_refused_socket_is_a_span(watched: Watched) -> None:
    socket = TestClient(watched.app).websocket_connect("/v1/realtime", headers={"host": "127.0.0.1"})
    with pytest.raises(WebSocketDenialResponse), socket:
        pass
    (span,) = watched.exporter.get_finished_spans()
    assert span.attributes is not None
    assert (span.name, span.attributes["http.response.status_code"]) == ("WS", 401)


def test_spans_are_told_to_the_collector_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        provider = collector()
        provider.get_tracer("test").start_span("a span").end()
        provider.shutdown()
        server.shutdown()
    ((path, body),) = told
    assert path == "/v1/traces"
    assert b"a span" in body
    assert b"tristep" in body

"""Each request is a span, sent where OpenTelemetry's variables say."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.gateway.conftest import GatewayProcess, NeuronThread, eventually

CHAT = "/v1/chat/completions"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(ThreadingHTTPServer):
    """Takes spans."""

    daemon_threads = True

    def __init__(self) -> None:
        self.spans: list[Any] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def attributes(span: Any) -> dict[str, Any]:
    def value(given: Any) -> Any:
        kind = given.WhichOneof("value")
        found = getattr(given, kind)
        return [value(each) for each in found.values] if kind == "array_value" else found

    return {each.key: value(each.value) for each in span.attributes}


def test_a_request_is_a_span_below_its_clients(
    neuron: NeuronThread, tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    process = GatewayProcess(tmp_path, neuron.endpoint)
    try:
        process.wait_ready()
        body = {"messages": [{"role": "user", "content": "one two three"}], "temperature": 0.5}
        for model in ("echo", "fails/queue_full", "nobody's"):
            headers = {"traceparent": PARENT}
            httpx.post(process.base + CHAT, json={"model": model} | body, headers=headers, trust_env=False)
        unknown, good, bad = eventually(
            lambda: len(collector.spans) == 3 and sorted(collector.spans, key=lambda span: span.name),
            "all are exported",
        )
    finally:
        process.stop()
    said = attributes(good)
    assert good.name == "chat echo"
    assert good.trace_id.hex() == PARENT.split("-")[1]
    assert good.parent_span_id.hex() == PARENT.split("-")[2]
    assert said["gen_ai.request.model"] == said["gen_ai.response.model"] == "echo"
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (3, 3)
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert (said["gen_ai.request.temperature"], said["cortex.neuron"]) == (0.5, "fake")
    assert 0 < good.start_time_unix_nano < good.end_time_unix_nano
    assert attributes(bad)["error.type"] == "queue_full"
    assert bad.status.code == unknown.status.code == 2
    assert (unknown.name, attributes(unknown)["error.type"]) == ("chat", "model_not_found")
    assert attributes(unknown)["gen_ai.request.model"] == "nobody's"
    assert "gen_ai.response.model" not in attributes(unknown)


def test_nothing_is_said_of_traces_where_nobody_asked(gateway: GatewayProcess) -> None:
    assert "traces" not in gateway.log.read_text()

"""A span of OpenTelemetry for each request, with the names that it has for generative AI (`gen_ai.*`).

On where an exporter is told where to send them (`OTEL_EXPORTER_OTLP_ENDPOINT` and the other variables of the
OpenTelemetry SDK) and the extra `otel` is installed; else it costs a comparison a request.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

logger = logging.getLogger("gateway.telemetry.traces")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def start() -> None:
    """Begin to export, in a process that serves, where the environment says where to."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("traces are not exported: OpenTelemetry is not installed; pip install '.[otel]'")
        return
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
    provider = TracerProvider(resource=Resource.create({"service.name": "cortex"} | _named()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: TracerProvider | None) -> None:
    """Have spans made by `provider`; None: none are."""
    global _provider, _tracer
    _provider = provider
    _tracer = provider.get_tracer("cortex") if provider is not None else None


def stop() -> None:
    """Send what is left."""
    if _provider is not None:
        _provider.shutdown()
    use(None)


def is_on() -> bool:
    """Whether spans are made at all."""
    return _tracer is not None


def record(name: str, seconds: float, attributes: dict[str, Any], parent: str | None, error: str) -> None:
    """A request that has just ended.

    Args:
        seconds: that it took.
        attributes: of its span; those that are None or empty are left out.
        parent: the `traceparent` header that it came with.
        error: the code of its error; empty: it had none.
    """
    if _tracer is None:
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    ended = time.time_ns()
    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    kept = {key: value for key, value in attributes.items() if value not in (None, "", ())}
    if error:
        kept["error.type"] = error
    span = _tracer.start_span(name, context, SpanKind.SERVER, kept, start_time=ended - round(seconds * 1e9))
    if error:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(ended)


def _named() -> dict[str, str]:
    """The service's name, where the environment has one: the SDK would take ours instead."""
    name = os.environ.get("OTEL_SERVICE_NAME")
    return {"service.name": name} if name else {}

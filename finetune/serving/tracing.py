"""One span a request, where OpenTelemetry is installed and set up; nothing otherwise. Knows heads; knows no
texts."""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

logger = logging.getLogger(__name__)
NAME, EXPORTER = "finetune.serving", "opentelemetry.exporter.otlp.proto.http"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class RequestSpan:
    """From a request's head to the end of its answer, below the caller's own span where it sent one
    (W3C's `traceparent`)."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self._span: Any = None
        # The API alone has spans that do nothing, so that an unconfigured server loses no time.
        if importlib.util.find_spec("opentelemetry") is None:
            return
        from opentelemetry import propagate, trace

        head = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._span = trace.get_tracer(NAME).start_span(
            scope["method"], context=propagate.extract(head), kind=trace.SpanKind.SERVER
        )

    def end(self, name: str, route: str, status: int) -> None:
        """Close it.

        Args:
            name: of the request, as in the log and in X-Request-Id.
            route: as it is declared: a path itself would make names without end.
        """
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        told = {"http.route": route, "http.response.status_code": status, "request.id": name}
        self._span.set_attributes(told)
        # A client's mistake is no failure of the server's.
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def begin_tracing() -> None:
    """Send spans to where OTEL_EXPORTER_OTLP_ENDPOINT says; OpenTelemetry reads its other variables."""
    if not os.environ.get(ENDPOINT):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("%s is set, and %s is not installed: no spans. Install the extra 'tracing'",
                       ENDPOINT, EXPORTER)  # fmt: skip
        return
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

"""Figures of every request for `/metrics`, by prometheus_client. Knows no routes and no models."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# Doubles the series with times of making that nobody reads.
disable_created_metrics()


class Figures:
    """What `/metrics` tells; a registry of its own, so that two servers in one process don't meet."""

    def __init__(self) -> None:
        self.registry, self.running = CollectorRegistry(), 0
        options = {"registry": self.registry, "namespace": "finetune"}
        self._requests = Counter("requests", "Requests by route and status.", ["path", "status"], **options)
        self._seconds = Histogram(
            "request_seconds", "Time of whole requests.", ["path"], buckets=SECONDS, **options
        )
        self._first = Histogram(
            "first_token_seconds", "Time to a text's first token.", ["adapter"], buckets=SECONDS, **options
        )
        self._written = Histogram(
            "text_seconds", "Time of whole texts.", ["adapter"], buckets=SECONDS, **options
        )
        self._tokens = Counter("adapter_tokens", "Tokens written.", ["adapter"], **options)
        self._values: dict[str, Any] = {}
        self._counted: dict[str, float] = {}

    def note(self, path: str, status: int, seconds: float) -> None:
        """A request that has been answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def note_first(self, adapter: str, seconds: float) -> None:
        """A text's first token has been written."""
        self._first.labels(adapter).observe(seconds)

    def note_text(self, adapter: str, seconds: float, tokens: int) -> None:
        """A text has been written to its end."""
        self._written.labels(adapter).observe(seconds)
        self._tokens.labels(adapter).inc(tokens)

    def text(self, values: dict[str, float]) -> bytes:
        """All figures in Prometheus' text format, with values as they are now."""
        for name, value in (values | {"requests_running": self.running}).items():
            # Prometheus tells by the kind whether a figure may fall.
            kind: Any = Counter if name.endswith("_total") else Gauge
            if name not in self._values:
                described = name.replace("_", " ").capitalize() + "."
                self._values[name] = kind(name, described, registry=self.registry, namespace="finetune")
            if kind is Counter:  # it only takes what came since the last time
                self._values[name].inc(value - self._counted.get(name, 0.0))
                self._counted[name] = value
            else:
                self._values[name].set(value)
        return generate_latest(self.registry)

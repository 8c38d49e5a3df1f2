"""Figures of every request for `/metrics`, in Prometheus' text format. Knows no routes and no models."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

BUCKETS = (0.01, 0.05, 0.25, 1.0, 5.0, 30.0)


@dataclass
class Figures:
    """Counts for `/metrics`."""

    requests: Counter = field(default_factory=Counter)
    seconds: Counter = field(default_factory=Counter)
    running: int = 0

    def note(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        for bucket in (*BUCKETS, float("inf")):
            if seconds <= bucket:
                self.seconds["+Inf" if bucket == float("inf") else f"{bucket:g}"] += 1
        self.seconds["sum"] += seconds  # type: ignore[assignment]

    def text(self, gauges: dict[str, float]) -> str:
        """All figures in Prometheus' text format 0.0.4."""
        lines = ["# TYPE finetune_requests_total counter"]
        lines += [
            f'finetune_requests_total{{path="{p}",status="{s}"}} {n}'
            for (p, s), n in sorted(self.requests.items())
        ]
        lines += ["# TYPE finetune_request_seconds histogram"]
        for bucket in [*(f"{b:g}" for b in BUCKETS), "+Inf"]:
            lines.append(f'finetune_request_seconds_bucket{{le="{bucket}"}} {self.seconds[bucket]}')
        lines += [f"finetune_request_seconds_sum {float(self.seconds['sum']):.6f}"]
        lines += [f"finetune_request_seconds_count {self.seconds['+Inf']}"]
        for name, value in (gauges | {"requests_running": self.running}).items():
            lines += [
                f"# TYPE finetune_{name} {'counter' if name.endswith('_total') else 'gauge'}",
                f"finetune_{name} {value:g}",
            ]
        return "\n".join(lines) + "\n"

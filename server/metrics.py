"""Prometheus metrics of one process, in a registry that is passed in and never global."""

import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from open_llm_proxy.server.call_result import CallResult

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
# Numbers of the log's status that are gauges under the same name; see queue/log_queue.py.
LOG_GAUGES = {
    "accepted_rows": "Rows accepted by the log queue since the process started",
    "queued_rows": "Rows that wait in the log queue",
    "queued_bytes": "Bytes that wait in the log queue",
    "oldest_age_seconds": "Age of the oldest row that waits in the log queue",
    "open_calls": "Calls that have a request row and no response row yet",
    "uploaded_rows": "Rows confirmed by the store since the process started",
    "upload_failures": "Uploads that failed and were or will be tried again",
    "damaged_rows": "Rows found damaged and replaced by a row that says so",
    "quarantined_files": "Queue files that could not be read and were moved to quarantine",
    "stdout_lines_dropped": "Lines that stdout did not take; the queue has them",
}


class Metrics:
    """Counts calls and refusals; takes the log's numbers from its status when asked."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.calls = Counter(
            "proxy_calls",
            "Calls that got their closing entry",
            ["provider", "endpoint", "outcome"],
            registry=self._registry,
        )
        self.refused = Counter(
            "proxy_refused", "Requests refused before a call", ["code"], registry=self._registry
        )
        self.latency = Histogram(
            "proxy_call_seconds",
            "Time from the request's arrival to its closing entry",
            ["provider"],
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._log = {
            name: Gauge(f"proxy_log_{name}", text, registry=self._registry)
            for name, text in LOG_GAUGES.items()
        }

    def count_call(self, provider: str, endpoint: str, result: CallResult) -> None:
        self.calls.labels(provider, endpoint, result.outcome).inc()
        self.latency.labels(provider).observe(time.monotonic() - result.started)

    def page(self, log_status: Mapping[str, Any]) -> bytes:
        """The text exposition format, with the log's numbers of this moment."""
        for name, gauge in self._log.items():
            gauge.set(log_status.get(name) or 0)
        return generate_latest(self._registry)

"""Prometheus metrics of one process, in a registry that is passed in and never global.

Every time series exists from the start, with 0: a rule such as ``rate(…) > 0`` then sees the first
failure too. Labels come from config.json and from this file only, never from a request, so that no
client can add series; the names of dropped headers are the exception, and there are at most 100 of
them. docs/monitoring.md lists all of them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from open_llm_proxy.archive.entry import Outcome
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.counted_series import Count, Counter, Distribution, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "open_llm_proxy_"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
TOKEN_KINDS = ("prompt", "completion", "cached", "reasoning")
# Codes of the refusals that can be counted; any other one is counted as `other`.
REFUSALS = (
    "invalid_api_key",
    "too_many_wrong_keys",
    "key_expired",
    "model_not_allowed",
    "rate_limit_exceeded",
    "proxy_key_missing",
    "log_queue_unavailable",
    "shutting_down",
    "ambiguous_framing",
    "request_too_large",
    "too_many_bodies",
    "invalid_json",
    "invalid_type",
    "duplicate_name",
    "too_many_values",
    "model_not_found",
    "provider_not_configured",
    "other",
)
MAX_HEADER_NAMES = 100
REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OVERHEAD_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

# Numbers of the log's status, see queue/log_queue.py: key -> (name, is a counter, help).
LOG_NUMBERS: dict[str, tuple[str, bool, str]] = {
    "queued_rows": ("queue_rows", False, "Log rows that are not uploaded yet"),
    "queued_bytes": ("queue_bytes", False, "Bytes of log rows that are not uploaded yet"),
    "oldest_age_seconds": (
        "queue_oldest_age_seconds",
        False,
        "Age of the oldest log row that is not uploaded yet",
    ),
    "open_calls": ("queue_open_calls", False, "Calls with a request row and no response row yet"),
    "last_upload_at": (
        "last_upload_timestamp_seconds",
        False,
        "Unix time of the last successful upload; 0 = none since the start",
    ),
    "uploaded_rows": ("uploaded_rows", True, "Log rows that were uploaded"),
    "damaged_rows": ("damaged_rows", True, "Log rows that were found damaged and replaced"),
    "adopted_files": ("recovered_queues", True, "Queues of ended processes that were recovered"),
    "quarantined_files": ("quarantined_queues", True, "Queues that could not be read"),
    "left_rows": ("log_left_rows", False, "Log rows on the disk that nobody uploads"),
    "left_queues": ("log_left_queues", False, "Queues on the disk that nobody uploads"),
    "left_uncounted_queues": (
        "log_left_uncounted_queues",
        False,
        "Those of them whose rows cannot be counted",
    ),
    "left_oldest_age_seconds": (
        "log_left_oldest_age_seconds",
        False,
        "Age of the oldest log row, or of the oldest queue in the quarantine, that nobody uploads",
    ),
    "quarantined_queues": ("log_quarantined", False, "Queues in the quarantine"),
    "oldest_uncommitted_seconds": (
        "queue_oldest_uncommitted_seconds",
        False,
        "Wait of the oldest log entry that is not committed yet; from 5 on calls are refused",
    ),
    "last_commit_seconds": ("queue_last_commit_seconds", False, "Duration of the last commit"),
    "last_commit_appends": ("queue_last_commit_group", False, "Appends in the last commit"),
    "stdout_lines_dropped": ("stdout_dropped_lines", True, "Log lines that stdout did not accept"),
}


class _Series(NamedTuple):
    """The series that calls with the same labels count in."""

    requests: Count
    endpoints: Count
    seconds: Distribution
    ttft_seconds: Distribution
    tokens: list[tuple[str, Count]]


class Metrics:
    """Counts calls and refusals; takes the numbers of the log from its status when asked.

    `models` are the pairs of provider and model label that can occur, see `Router.labels`.
    """

    def __init__(
        self,
        models: Iterable[tuple[str, str]] = (),
        *,
        version: str = "",
        config_sha256: str = "",
        queue_max_bytes: int = 0,
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Calls with a response row, by outcome", "provider", "model", "outcome"
        )
        self._endpoints = self._counter(
            "endpoint_requests", "The same calls by endpoint", "endpoint", "outcome"
        )
        self._refused = self._counter(
            "refused", "Requests that the proxy refused, by error code", "code"
        )
        self._tokens = self._counter(
            "tokens", "Tokens that providers reported", "provider", "model", "kind"
        )
        self._request_seconds = self._histogram(
            "request_seconds",
            "Time from a call's arrival until its response row is stored",
            REQUEST_BUCKETS,
            "provider",
        )
        self._ttft_seconds = self._histogram(
            "time_to_first_token_seconds",
            "Time from a call's arrival until the first content of its answer",
            TTFT_BUCKETS,
            "provider",
        )
        self._overhead_seconds = self._histogram(
            "overhead_seconds",
            "Time that the proxy adds to a call: until the call is forwarded, and from the end of "
            "the provider's answer until the response row is stored",
            OVERHEAD_BUCKETS,
        ).labels()
        self._series: dict[tuple[str, str, str, str], _Series] = {}
        self._in_flight = self._gauge("requests_in_flight", "Calls in progress")
        self._draining = self._gauge("draining", "1 while the server shuts down")
        self._refusing = self._gauge("refusing", "1 while new calls get 503: the log is not stored")
        self._gauge("build_info", "Version of the program", "version").labels(version).set(1)
        self._gauge("config_info", "SHA-256 of config.json", "sha256").labels(config_sha256).set(1)
        self._log = _LogCollector(queue_max_bytes)
        self._registry.register(self._log)
        self._dropped_headers = {"other": 0}
        self._registry.register(_DroppedHeaders(self._dropped_headers))
        self._begin(list(models))

    def count_call(self, provider: str, model: str, endpoint: str, result: CallResult) -> None:
        """Count a call whose response row is stored; `model` is a label of `Router.labels`."""
        now = time.monotonic()
        series = self._series_of(provider, model, endpoint, result.outcome)
        series.requests.value += 1
        series.endpoints.value += 1
        series.seconds.observe(now - result.started)
        if result.first_content_at is not None:
            series.ttft_seconds.observe(result.first_content_at - result.started)
        if (overhead := result.overhead_seconds(now)) is not None:
            self._overhead_seconds.observe(overhead)
        counts = result.token_counts
        if counts is not None:
            for kind, tokens in series.tokens:
                tokens.value += getattr(counts, kind) or 0

    def _series_of(self, provider: str, model: str, endpoint: str, outcome: str) -> "_Series":
        """What a call counts in, looked up once for all calls that have the same labels."""
        labels = (provider, model, endpoint, outcome)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(
                self._requests.labels(provider, model, outcome),
                self._endpoints.labels(endpoint, outcome),
                self._request_seconds.labels(provider),
                self._ttft_seconds.labels(provider),
                [
                    (f"{kind}_tokens", self._tokens.labels(provider, model, kind))
                    for kind in TOKEN_KINDS
                ],
            )
        return series

    def count_refusal(self, code: str) -> None:
        """Count a request that the proxy refused with this error code."""
        self._refused.labels(code if code in REFUSALS else "other").value += 1

    def count_dropped_header(self, name: str) -> None:
        """Count a client's header that did not go to the provider."""
        counts = self._dropped_headers
        if name not in counts and len(counts) > MAX_HEADER_NAMES:
            name = "other"
        counts[name] = counts.get(name, 0) + 1

    def page(
        self,
        log_status: Mapping[str, Any],
        *,
        in_flight: int = 0,
        draining: bool = False,
        refusing: bool = False,
    ) -> bytes:
        """The text exposition format, with the numbers of this moment."""
        self._in_flight.set(in_flight)
        self._draining.set(draining)
        self._refusing.set(refusing)
        self._log.status = log_status
        return generate_latest(self._registry)

    def _begin(self, models: list[tuple[str, str]]) -> None:
        """Make all series, with 0."""
        for provider, model in models:
            for outcome in get_args(Outcome):
                self._requests.labels(provider, model, outcome)
            for kind in TOKEN_KINDS:
                self._tokens.labels(provider, model, kind)
        for provider in {provider for provider, _ in models}:
            self._request_seconds.labels(provider)
            self._ttft_seconds.labels(provider)
        for endpoint in ENDPOINTS:
            for outcome in get_args(Outcome):
                self._endpoints.labels(endpoint, outcome)
        for code in REFUSALS:
            self._refused.labels(code)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(PREFIX + name, text, labels)
        self._registry.register(counter)
        return counter

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        histogram = Histogram(PREFIX + name, text, labels, buckets)
        self._registry.register(histogram)
        return histogram


class _LogCollector(Collector):
    """The log's numbers: counters that are kept elsewhere cannot be `Counter` objects here."""

    def __init__(self, queue_max_bytes: int) -> None:
        self.status: Mapping[str, Any] = {}
        self._queue_max_bytes = queue_max_bytes

    def collect(self) -> Iterator[Metric]:
        for key, (name, is_counter, text) in LOG_NUMBERS.items():
            if key in self.status:
                kind = CounterMetricFamily if is_counter else GaugeMetricFamily
                yield kind(PREFIX + name, text, value=self.status[key] or 0)
        if self.status.get("sink") is None:
            return
        uploads = CounterMetricFamily(PREFIX + "uploads", "Uploads of objects", labels=["result"])
        uploads.add_metric(["ok"], self.status["batches_uploaded"])
        uploads.add_metric(["failed"], self.status["upload_failures"])
        yield uploads
        text = "Maximum size of the queue (LOG_QUEUE_MAX_BYTES)"
        yield GaugeMetricFamily(PREFIX + "queue_capacity_bytes", text, value=self._queue_max_bytes)


class _DroppedHeaders(Collector):
    """A counter that costs a call no more than an entry of a dict."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            PREFIX + "dropped_headers",
            "Headers of clients that did not go to the provider",
            labels=["name"],
        )
        for name, count in self._counts.items():
            family.add_metric([name.lower()], count)
        yield family

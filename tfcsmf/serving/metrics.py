"""Prometheus metrics, with TensorFlow Serving's names where it has them."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics_core import Metric

# Where TensorFlow Serving has its metrics by default.
PATH = "/monitoring/prometheus/metrics"
# Microseconds.
_LATENCIES = [10 * 1.8**power for power in range(33)]
_ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # Exposed as TensorFlow Serving's dashboards ask for them: hence no registry.
        self._requests = Counter(
            ":tensorflow:serving:request_count",
            "Answered requests.",
            ["model_name", "status"],
            registry=None,
        )
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Time from the first byte of a request to its answer, in microseconds.",
            ["model_name", "API", "entrypoint"],
            buckets=_LATENCIES,
            registry=None,
        )
        self._registry.register(_AsServing(self._requests, self._latency))
        self.loads = Counter(
            "tfcsmf_serving_loads",
            "Versions loaded, by outcome.",
            ["model_name", "status"],
            registry=self._registry,
        )
        self.version = Gauge(
            "tfcsmf_serving_version",
            "Newest version that is served; 0: none.",
            ["model_name"],
            registry=self._registry,
        )
        self.batch_rows = Histogram(
            "tfcsmf_serving_batch_rows",
            "Rows of a joined run.",
            ["model_name"],
            buckets=_ROWS,
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "tfcsmf_serving_requests_in_flight",
            "Requests accepted and not yet answered.",
            registry=self._registry,
        )

    def observe(
        self, model: str, api: str, entrypoint: str, status: str, seconds: float
    ) -> None:
        """Counts one answered request."""
        self._requests.labels(model, status).inc()
        if status == "OK":
            self._latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def text(self) -> bytes:
        """Returns the page Prometheus reads."""
        return generate_latest(self._registry)


class _AsServing:
    """Counts without "_total", and limits of buckets in six digits."""

    def __init__(self, requests: Counter, latency: Histogram) -> None:
        self._requests, self._latency = requests, latency

    def collect(self) -> Iterable[Metric]:
        for family in self._requests.collect():
            plain = Metric(family.name, family.documentation, "unknown")
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    plain.add_sample(family.name, sample.labels, sample.value)
            yield plain
        for family in self._latency.collect():
            short = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                labels = dict(sample.labels)
                if labels.get("le", "+Inf") != "+Inf":
                    labels["le"] = f"{float(labels['le']):.6g}"
                short.add_sample(sample.name, labels, sample.value)
            yield short

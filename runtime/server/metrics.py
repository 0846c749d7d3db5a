"""What is counted, and told to Prometheus: sums and durations, nothing of what was asked.

Labels are names of models, paths of endpoints as they are declared, and statuses: nothing that a
client chooses, or it could have the server keep as many series as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ..scheduler import Job

CONTENT_TYPE = CONTENT_TYPE_LATEST
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

Gauge = tuple[str, str, dict[str, float]]  # name, what it is, its value by model


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "pocketlm_requests",
            "Requests that were answered, by endpoint and status; 0 for who left before",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.reused_tokens = self._counter(
            "reused_tokens", "Tokens of prompts that were not computed, since they had been before"
        )
        self.generated_tokens = self._counter("generated_tokens", "Tokens that were generated")
        self.refused = self._counter("refused_texts", "Texts that found no place in the queue")
        self.texts = self._counter("texts", "Texts that ended, by what ended them", "reason")
        self.first_token_seconds = Histogram(
            "pocketlm_first_token_seconds",
            "From a request to the first token of its text",
            ("model",),
            buckets=FIRST_TOKEN_SECONDS,
            registry=self._registry,
        )
        self.token_seconds = Histogram(
            "pocketlm_token_seconds",
            "For each token of a text after its first, on the average of the text",
            ("model",),
            buckets=TOKEN_SECONDS,
            registry=self._registry,
        )

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"pocketlm_{name}", what, ("model", *labels), registry=self._registry)

    def request(self, endpoint: str, status: int) -> None:
        """A request of the path ``endpoint``, as it is declared, has ended."""
        self._requests.labels(endpoint, str(status)).inc()

    def of_model(self, name: str) -> ModelMetrics:
        """Where what a model does is counted."""
        return ModelMetrics(self, name)

    def watch(self, look: Callable[[], Iterable[Gauge]]) -> None:
        """Tells also what ``look`` finds whenever it is asked."""
        self._registry.register(_Watched(look))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class ModelMetrics:
    """What one model does; each method is called from the event loop."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def refused(self, count: int) -> None:
        """Texts found no place."""
        self._metrics.refused.labels(self._name).inc(count)

    def ended(self, job: Job) -> None:
        """A text has, well or not."""
        metrics, name, timings = self._metrics, self._name, job.timings
        metrics.texts.labels(name, job.finish_reason or "error").inc()
        if not timings.new_tokens:
            return
        metrics.prompt_tokens.labels(name).inc(timings.prompt_tokens)
        metrics.reused_tokens.labels(name).inc(timings.reused_tokens)
        metrics.generated_tokens.labels(name).inc(timings.new_tokens)
        metrics.first_token_seconds.labels(name).observe(timings.first_token_seconds)
        if timings.new_tokens > 1:
            seconds = timings.decode_seconds / (timings.new_tokens - 1)
            metrics.token_seconds.labels(name).observe(seconds)


class _Watched(Collector):
    def __init__(self, look: Callable[[], Iterable[Gauge]]) -> None:
        self._look = look

    def describe(self) -> Iterable[Metric]:
        return ()  # or registering would look

    def collect(self) -> Iterator[Metric]:
        for name, what, values in self._look():
            gauge = GaugeMetricFamily(f"pocketlm_{name}", what, labels=("model",))
            for model, value in values.items():
                gauge.add_metric([model], value)
            yield gauge

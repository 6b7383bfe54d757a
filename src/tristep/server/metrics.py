"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector
from starlette.types import Scope

from tristep.engine.transcription import Segment

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
LENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0)
FACTORS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 5.0)


class Metrics(Collector):
    """The counts and times of one server, or of one replica of it."""

    def __init__(self, replica: str = "") -> None:
        self.labels = {"replica": replica} if replica else {}
        """Of every sample."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tristep_requests", "Requests by what answered and status.", ["handler", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "tristep_request_seconds", "Time to the last byte.", ["handler"], buckets=SECONDS, registry=self.registry
        )
        self.time_to_first_audio = Histogram(
            "tristep_time_to_first_audio_seconds",
            "Time from a request for speech to its first samples.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.time_to_first_token = Histogram(
            "tristep_time_to_first_token_seconds",
            "Time from a request to the first of its words: a transcript's that is streamed (asr), an answer's (chat).",
            ["mode"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.acceptance_length = Histogram(
            "tristep_acceptance_length",
            "Tokens of a transcript's segment that a pass of the backbone settled; 1 without drafts.",
            buckets=LENGTHS,
            registry=self.registry,
        )
        self.real_time_factor = Histogram(
            "tristep_real_time_factor",
            "Time taken for a second of sound; below 1 is faster than it sounds.",
            ["mode"],
            buckets=FACTORS,
            registry=self.registry,
        )
        self.audio_seconds = Counter(
            "tristep_audio_seconds", "Sound heard (asr) and said (tts).", ["mode"], registry=self.registry
        )
        self.queue = Gauge("tristep_queue", "Requests that are worked on or wait.", registry=self.registry)
        self.sessions = Gauge("tristep_sessions", "Realtime sessions that are open.", registry=self.registry)
        self.time_to_answer = Histogram(
            "tristep_realtime_first_audio_seconds",
            "Time from the end of a user's turn to the first sound of the answer.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request by the function that answered it; all that match none are one."""
        handler = getattr(scope.get("endpoint"), "__name__", "none")
        self.requests.labels(handler, status).inc()
        self.request_seconds.labels(handler).observe(seconds)

    def worked(self, mode: str, audio_s: float, seconds: float) -> None:
        """Count a sound that was dealt with in some time."""
        self.audio_seconds.labels(mode).inc(audio_s)
        if audio_s:
            self.real_time_factor.labels(mode).observe(seconds / audio_s)

    def heard(self, segments: Iterable[Segment]) -> None:
        """Count how the segments of a transcript were written."""
        for segment in segments:
            if segment.num_passes:
                self.acceptance_length.observe(segment.acceptance_length)

    def collect(self) -> Iterator[Metric]:
        """Return all samples."""
        for metric in self.registry.collect():
            metric.samples = [sample._replace(labels={**sample.labels, **self.labels}) for sample in metric.samples]
            yield metric


class Gathered(Collector):
    """The counts and times of several replicas: each metric once, with the samples of all."""

    def __init__(self, parts: Iterable[Iterable[Metric]]) -> None:
        self.metrics: dict[str, Metric] = {}
        for metric in chain.from_iterable(parts):
            if metric.name in self.metrics:
                self.metrics[metric.name].samples += metric.samples
            else:
                self.metrics[metric.name] = metric

    def collect(self) -> Iterable[Metric]:
        """Return all samples."""
        return self.metrics.values()


def exposition(found: Collector) -> bytes:
    """Write it all in Prometheus' text format."""
    return generate_latest(found)

"""What `/metrics` says. Latencies are named by OpenTelemetry's GenAI conventions, the rest by Prometheus'.

Every label is bounded: services and replicas by what is declared, codes and reasons by lists in this code.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# OpenTelemetry semantic conventions for generative AI, metrics: the advised bucket boundaries, in seconds.
TIME_TO_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60)
TIME_PER_OUTPUT_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300, 900, 3600)
HOLD_S = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
START_UP_S = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


class Distribution:
    """A histogram that is counted in plain Python: an observation takes a fifth of the library's time."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value`."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Say it as Prometheus wants it: cumulated."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(floatToGoString, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets=buckets, sum_value=self._sum)


class ServiceTally:
    """What is counted of one service's requests."""

    __slots__ = ("cached_tokens", "duration", "estimated", "first_token", "held", "input_tokens", "output_tokens",
                 "per_token", "prefix_blocks", "prefix_hits")  # fmt: skip

    def __init__(self) -> None:
        self.duration = Distribution(DURATION_S)
        self.first_token = Distribution(TIME_TO_FIRST_TOKEN_S)
        self.per_token = Distribution(TIME_PER_OUTPUT_TOKEN_S)
        self.held = Distribution(HOLD_S)
        self.input_tokens = self.cached_tokens = self.output_tokens = self.estimated = 0
        self.prefix_blocks = self.prefix_hits = 0


# Names, help texts and where the number is, of what is counted a service.
_HISTOGRAMS = (
    ("gen_ai_server_request_duration_seconds", "From a request's arrival to the end of its answer.", "duration"),
    (
        "gen_ai_server_time_to_first_token_seconds",
        "From a request's arrival, waiting included, to the first byte of a streamed answer's body.",
        "first_token",
    ),
    (
        "gen_ai_server_time_per_output_token_seconds",
        "Mean time of a streamed answer's tokens after the first.",
        "per_token",
    ),
    ("pilotage_hold_seconds", "How long requests waited for a place.", "held"),
)
_COUNTERS = (
    ("pilotage_input_tokens", "Prompt tokens of answered requests, cached ones included.", "input_tokens"),
    ("pilotage_cached_input_tokens", "Prompt tokens that an engine's cache held.", "cached_tokens"),
    ("pilotage_output_tokens", "Generated tokens, cut answers included.", "output_tokens"),
    ("pilotage_requests_estimated", "Answers whose engine told no usage (prompts estimated).", "estimated"),
    ("pilotage_prefix_blocks", "Prefix blocks of admitted requests.", "prefix_blocks"),
    (
        "pilotage_prefix_blocks_cached",
        "Prefix blocks that the chosen replica was expected to hold.",
        "prefix_hits",
    ),
)


class GatewayMetrics(Collector):
    """What the gateway measures of requests: counted in plain Python, shown in Prometheus' form when asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests: Counts[tuple[str, str, str]] = Counts()
        self._services: dict[str, ServiceTally] = {}
        self.waiting = Gauge(
            "pilotage_requests_waiting", "Requests waiting for a place now.", ("service",), registry=registry
        )
        self.running = Gauge(
            "pilotage_replica_requests_running", "Requests running now, as the gateway counts.",
            ("service", "replica"), registry=registry,
        )  # fmt: skip
        ProcessCollector(namespace="pilotage_picker", registry=registry)
        registry.register(self)

    def count(self, service: str, code: str, reason: str) -> None:
        """One request was answered with this HTTP status, for this reason."""
        self._requests[service, code, reason] += 1

    def of(self, service: str) -> ServiceTally:
        """What is counted of `service`."""
        tally = self._services.get(service)
        if tally is None:
            tally = self._services[service] = ServiceTally()
        return tally

    def collect(self) -> Iterator[Metric]:
        """All of it, for the registry."""
        requests = CounterMetricFamily(
            "pilotage_requests", "Requests by HTTP status and what became of them.",
            labels=("service", "code", "reason"),
        )  # fmt: skip
        for labels, value in self._requests.items():
            requests.add_metric(labels, value)
        yield requests
        for name, text, field in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=("service",))
            for service, tally in self._services.items():
                getattr(tally, field).add_to(histogram, (service,))
            yield histogram
        for name, text, field in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=("service",))
            for service, tally in self._services.items():
                counter.add_metric((service,), getattr(tally, field))
            yield counter

    def forget(self, service: str) -> None:
        """Drop the gauges of a service that is gone."""
        self.waiting.remove_by_labels({"service": service})
        self.running.remove_by_labels({"service": service})


class PlatformMetrics:
    """What the control loop knows of replicas."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.replicas = Gauge(
            "pilotage_replicas", "Replicas by phase of life.", ("service", "phase"), registry=registry
        )
        self.start_up = Histogram(
            "pilotage_replica_startup_seconds", "Duration of each phase of a replica's start.", ("service", "phase"),
            buckets=START_UP_S, registry=registry,
        )  # fmt: skip
        self.restarts = Counter(
            "pilotage_replica_restarts", "Replicas replaced because they failed.", ("service", "reason"),
            registry=registry,
        )  # fmt: skip
        self.engine_running = Gauge(
            "pilotage_engine_requests_running", "Requests running now, as the engine counts.", ("service", "replica"),
            registry=registry,
        )  # fmt: skip
        self.engine_waiting = Gauge(
            "pilotage_engine_requests_waiting", "Requests queued in the engine now.", ("service", "replica"),
            registry=registry,
        )  # fmt: skip
        self.engine_memory = Gauge(
            "pilotage_engine_resident_memory_bytes", "Resident memory of the engine's process.",
            ("service", "replica"), registry=registry,
        )  # fmt: skip
        ProcessCollector(namespace="pilotage_daemon", registry=registry)

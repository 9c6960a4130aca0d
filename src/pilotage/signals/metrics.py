"""What `/metrics` says. Latencies are named by OpenTelemetry's GenAI conventions, the rest by Prometheus'.

Every label is bounded: services and replicas by what is declared, codes and reasons by lists in this code.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

# OpenTelemetry semantic conventions for generative AI, metrics: the advised bucket boundaries, in seconds.
TIME_TO_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60)
TIME_PER_OUTPUT_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300, 900, 3600)
HOLD_S = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
START_UP_S = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


class GatewayMetrics:
    """What the gateway measures of requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "pilotage_requests", "Requests by HTTP status and what became of them.",
            ("service", "code", "reason"), registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds", "From a request's arrival to the end of its answer.",
            ("service",), buckets=DURATION_S, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "From a request's arrival, waiting included, to the first "
            "byte of a streamed answer's body.", ("service",), buckets=TIME_TO_FIRST_TOKEN_S, registry=registry,
        )  # fmt: skip
        self.per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Mean time of a streamed answer's tokens after the first.",
            ("service",), buckets=TIME_PER_OUTPUT_TOKEN_S, registry=registry,
        )  # fmt: skip
        self.held = Histogram(
            "pilotage_hold_seconds", "How long requests waited for a place.", ("service",), buckets=HOLD_S,
            registry=registry,
        )  # fmt: skip
        self.input_tokens = Counter(
            "pilotage_input_tokens", "Prompt tokens of answered requests, cached ones included.", ("service",),
            registry=registry,
        )  # fmt: skip
        self.cached_tokens = Counter(
            "pilotage_cached_input_tokens", "Prompt tokens that an engine's cache held.", ("service",),
            registry=registry,
        )  # fmt: skip
        self.output_tokens = Counter(
            "pilotage_output_tokens", "Generated tokens, cut answers included.", ("service",), registry=registry
        )  # fmt: skip
        self.estimated = Counter(
            "pilotage_requests_estimated", "Answers whose engine told no usage (prompts estimated).", ("service",),
            registry=registry,
        )  # fmt: skip
        self.prefix_blocks = Counter(
            "pilotage_prefix_blocks", "Prefix blocks of admitted requests.", ("service",), registry=registry
        )  # fmt: skip
        self.prefix_hits = Counter(
            "pilotage_prefix_blocks_cached", "Prefix blocks that the chosen replica was expected to hold.",
            ("service",), registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "pilotage_requests_waiting", "Requests waiting for a place now.", ("service",), registry=registry
        )
        self.running = Gauge(
            "pilotage_replica_requests_running", "Requests running now, as the gateway counts.",
            ("service", "replica"), registry=registry,
        )  # fmt: skip
        ProcessCollector(namespace="pilotage_picker", registry=registry)

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

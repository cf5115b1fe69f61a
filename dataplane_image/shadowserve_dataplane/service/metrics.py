"""The data plane's Prometheus metrics: few series, no key, tenant or request in a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, disable_created_metrics

from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.report import ChunkResult

_STAGES = ("receive", "decompress", "dequantize", "place")
disable_created_metrics()  # type: ignore[no-untyped-call]  # half as many series


class DataPlaneMetrics:
    """A `PipelineObserver` that counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._stage_seconds = Summary(
            "shadowserve_stage_seconds",
            "Time that a landed chunk spent in each stage.",
            ["stage"],
            registry=registry,
        )
        self._chunks = Counter("shadowserve_chunks", "Chunks by how their fetch ended.", ["result"], registry=registry)
        self._in_flight = Gauge("shadowserve_in_flight_chunks", "Chunks without a result yet.", registry=registry)
        self.store_connections = Gauge(
            "shadowserve_store_connections", "Connections to the store that are open.", registry=registry
        )
        self._round_trip: Gauge | None = None
        for stage in _STAGES:
            self._stage_seconds.labels(stage)
        for outcome in ChunkOutcome:
            self._chunks.labels(outcome.value)

    def round_trip(self, verified: bool) -> None:
        """A canary was made. Before the first nothing is told: 0 would be an alert."""
        if self._round_trip is None:
            help_text = "Whether the last canary came back (1), or not (0)."
            self._round_trip = Gauge("shadowserve_round_trip_verified", help_text, registry=None)
            self._round_trip.set(verified)
            self._registry.register(self._round_trip)
        self._round_trip.set(verified)

    def chunk_began(self) -> None:
        """A chunk was submitted."""
        self._in_flight.inc()

    def chunk_ended(self, result: ChunkResult) -> None:
        """A chunk got its result."""
        self._in_flight.dec()
        self._chunks.labels(result.outcome.value).inc()
        if result.outcome is not ChunkOutcome.LANDED:
            return
        for stage in _STAGES:
            self._stage_seconds.labels(stage).observe(getattr(result.stages, stage))

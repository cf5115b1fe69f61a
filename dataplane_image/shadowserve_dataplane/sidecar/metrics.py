"""Prometheus metrics of the sidecar; names and labels are part of the public API.

Times are summaries (count and sum) and label values appear when they first happen, so that a pod has fewer than 20
series. No key, tenant or request is ever a label.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, disable_created_metrics

from shadowserve_dataplane.errors import ChunkOutcome, SettingsError
from shadowserve_dataplane.fetch.telling import Answer, told_over_http
from shadowserve_dataplane.landing import SlotState
from shadowserve_dataplane.sidecar.store_policy import DropReason
from shadowserve_dataplane.sidecar.switch import Place


class LookupResult(StrEnum):
    """How a look-up ended: all chunks there, some, none, no answer in time, the store failed, or not asked at all."""

    HIT = "hit"
    PARTIAL = "partial"
    MISS = "miss"
    LATE = "late"
    ERROR = "error"
    REFUSED = "refused"


class SidecarMetrics:
    """The sidecar's counters, in a registry of their own."""

    def __init__(self, landing_slots: Callable[[], Mapping[SlotState, int]]) -> None:
        """`landing_slots` counts the slots by state; it is called at every scrape, on another thread."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._lookups = Counter("shadowserve_lookups", "Look-ups by result", ["result"], registry=self.registry)
        self._lookup_seconds = Summary("shadowserve_lookup_seconds", "Time of a look-up", registry=self.registry)
        self._fetches = Counter(
            "shadowserve_fetches", "Fetch jobs by the worst outcome of their chunks", ["result"], registry=self.registry
        )
        self._fetch_seconds = Summary("shadowserve_fetch_seconds", "Time of a fetch job", registry=self.registry)
        self._fetched = Counter("shadowserve_fetched_bytes", "Bytes of landed chunks", ["kind"], registry=self.registry)
        self._stored = Counter("shadowserve_stored_bytes", "Encoded bytes put into the store", registry=self.registry)
        self._dropped = Counter(
            "shadowserve_stores_dropped", "Chunks not stored, by reason", ["reason"], registry=self.registry
        )
        slots = Gauge("shadowserve_landing_slots", "Landing slots by state", ["state"], registry=self.registry)
        for state in SlotState:
            slots.labels(state.value).set_function(partial(_count, landing_slots, state))
        self._placement = Gauge(
            "shadowserve_placement_info", "Where chunks are restored now", ["place"], registry=self.registry
        )
        self._refused = Counter(
            "shadowserve_messages_refused", "Messages that could not be understood or served", registry=self.registry
        )

    def looked_up(self, result: LookupResult, seconds: float) -> None:
        """Count a look-up."""
        self._lookups.labels(result.value).inc()
        self._lookup_seconds.observe(seconds)

    def fetched(self, outcome: ChunkOutcome, seconds: float) -> None:
        """Count a finished fetch job."""
        self._fetches.labels(outcome.value).inc()
        self._fetch_seconds.observe(seconds)

    def landed(self, encoded_bytes: int, values_bytes: int) -> None:
        """Count the bytes of a landed chunk: as they came from the store, and as the engine's own values."""
        self._fetched.labels("encoded").inc(encoded_bytes)
        self._fetched.labels("values").inc(values_bytes)

    def stored(self, encoded_bytes: int) -> None:
        """Count a chunk that is in the store now because of us."""
        self._stored.inc(encoded_bytes)

    def dropped(self, reason: DropReason) -> None:
        """Count a chunk that was not stored."""
        self._dropped.labels(reason.value).inc()

    def refused(self) -> None:
        """Count a message that was not served."""
        self._refused.inc()

    def placed_at(self, place: Place) -> None:
        """Show where the next fetch would run."""
        self._placement.clear()
        self._placement.labels(place.value).set(1)

    @contextmanager
    def served(self, port: int, port_file: Path | None, answers: Mapping[str, Answer]) -> Iterator[int]:
        """Serve the metrics over HTTP, on any free port if `port` is 0; yield the port, and write it to the file.

        `answers` are told at paths of their own. Raises `SettingsError` when the port is taken.
        """
        with ExitStack() as stack:
            try:
                bound = stack.enter_context(told_over_http("0.0.0.0", port, self.registry, answers))
            except OSError as error:
                raise SettingsError(f"metricsPort {port}: {error.strerror}; choose another, or 0 for any") from error
            if port_file is not None:
                port_file.write_text(str(bound))
                stack.callback(port_file.unlink, missing_ok=True)
            yield bound


def _count(landing_slots: Callable[[], Mapping[SlotState, int]], state: SlotState) -> float:
    return landing_slots().get(state, 0)

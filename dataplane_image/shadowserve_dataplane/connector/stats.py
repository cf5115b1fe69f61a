"""Counters of the connector in vLLM's own log and metrics: `vllm:shadowserve_connector_events_total{event}`."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats


class ConnectorStats(KVConnectorStats):  # type: ignore[misc]
    """How often each event happened (a chunk landed, was missing, a store was dropped, ...) in an interval."""

    data: dict[str, int]

    def reset(self) -> None:
        """Forget all counts."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Add the counts of `other`."""
        for event, times in other.data.items():
            self.data[event] = self.data.get(event, 0) + times
        return self

    def reduce(self) -> dict[str, int | float]:
        """Return the counts, as they are logged."""
        return dict(sorted(self.data.items()))

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not self.data


class ConnectorMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The same counts for Prometheus; events are a small fixed set, so the label is safe."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._events = self._counter_cls(
            name="vllm:shadowserve_connector_events",
            documentation="What happened to KV chunks in the ShadowServe connector.",
            labelnames=[*self._labelnames, "event"],
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add the counts of one interval."""
        labels = self.per_engine_labelvalues[engine_idx]
        for event, times in transfer_stats_data.items():
            self._events.labels(*labels, event).inc(times)

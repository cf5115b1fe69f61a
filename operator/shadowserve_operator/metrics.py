"""The operator's own metrics. Names are public: the dashboard and the alert rules use them."""

from datetime import datetime
from time import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)


class OperatorMetrics:
    """One set of metrics in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kind = ["kind"]
        self._seconds = Histogram(
            "shadowserve_reconcile_seconds",
            "Time of one reconcile",
            [*kind, "result"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._writes = Counter(
            "shadowserve_reconcile_writes", "Objects written by reconciles", kind, registry=self.registry
        )
        self._resources = Gauge(
            "shadowserve_resources",
            "Resources by what their conditions say",
            ["namespace", *kind, "condition", "status"],
            registry=self.registry,
        )
        self._expiry = Gauge(
            "shadowserve_certificate_expiry_seconds",
            "Time until the first certificate of a PrefixCache expires",
            ["namespace", "name"],
            registry=self.registry,
        )
        self._leader = Gauge(
            "shadowserve_operator_leader",
            "Whether this operator acts (1), or stands by (0)",
            registry=self.registry,
        )
        self._expiring: set[tuple[str, str]] = set()
        self._conditions: dict[tuple[str, str, str], dict[str, str]] = {}

    def leads(self, acts: bool) -> None:
        """Tell whether this operator acts now."""
        self._leader.set(acts)

    def reconciled(self, kind: str, result: str, seconds: float, writes: int) -> None:
        """Count a reconcile; `result` is settled, waiting or error."""
        self._seconds.labels(kind, result).observe(seconds)
        self._writes.labels(kind).inc(writes)

    def say(self, kind: str, namespace: str, name: str, conditions: dict[str, str]) -> None:
        """Count a resource by its conditions (type -> status); none when it is gone."""
        for condition, status in self._conditions.pop((kind, namespace, name), {}).items():
            self._resources.labels(namespace, kind, condition, status).dec()
        for condition, status in conditions.items():
            self._resources.labels(namespace, kind, condition, status).inc()
        if conditions:
            self._conditions[kind, namespace, name] = conditions

    def expires(self, namespace: str, name: str, when: datetime | None) -> None:
        """Tell when the first certificate of a resource expires; None: it has none, or is gone."""
        if when is None:
            if (namespace, name) in self._expiring:
                self._expiring.remove((namespace, name))
                self._expiry.remove(namespace, name)
            return
        self._expiring.add((namespace, name))
        expiry = when.timestamp()
        self._expiry.labels(namespace, name).set_function(lambda: expiry - time())


class InjectionMetrics:
    """What the admission webhook counts, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._injections = Counter(
            "shadowserve_injections", "Pods that came for admission, by result", ["result"], registry=self.registry
        )

    def count(self, result: str) -> None:
        """Count a review; `result` is injected, skipped, untouched or failed."""
        self._injections.labels(result).inc()

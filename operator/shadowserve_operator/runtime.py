"""What handlers share: ready-made collaborators, put together once by `main`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shadowserve_operator.cluster import Cluster
from shadowserve_operator.metrics import OperatorMetrics
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.worker import Pokes

_MOST_AT_ONCE = 16
"""Reconciles at the same time: more would only wait for the API server, and hold what they have read meanwhile."""


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Runtime:
    """One operator process."""

    cluster: Cluster
    settings: OperatorSettings
    metrics: OperatorMetrics
    pokes: Pokes = field(default_factory=Pokes)
    clock: Callable[[], datetime] = utc_now
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MOST_AT_ONCE))
    """Whoever reconciles holds one."""
    _seen: dict[tuple[str, str, str], Any] = field(default_factory=dict)

    def news(self, kind: str, namespace: str, name: str, what: Any) -> bool:
        """Return whether this of an object differs from what was last seen: most events are heartbeats and statuses."""
        before = self._seen.get((kind, namespace, name))
        self._seen[kind, namespace, name] = what
        return bool(before != what)

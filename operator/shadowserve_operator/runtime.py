"""What handlers share: ready-made collaborators, put together once by `main`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shadowserve_operator.cluster import Cluster
from shadowserve_operator.metrics import OperatorMetrics
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.worker import Pokes


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
    nodes: dict[str, Any] = field(default_factory=dict)
    """What was last seen of every node, to tell changes from heartbeats."""

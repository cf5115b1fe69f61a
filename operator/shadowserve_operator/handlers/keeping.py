"""What every kind has: one worker an object, which looks again when the object changes."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import kopf

from shadowserve_crds import names
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.kinds import Kind
from shadowserve_operator.reconcile import Result
from shadowserve_operator.runtime import Runtime
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.worker import keep

Reconcile = Callable[[Cluster, str, str, OperatorSettings, Callable[[], datetime]], Awaitable[Result]]
"""Makes the cluster be as one object says: `(cluster, namespace, name, settings, clock)`."""


def register_kind(registry: kopf.OperatorRegistry, runtime: Runtime, kind: Kind, reconcile: Reconcile) -> None:
    """Tell kopf to keep every object of a kind reconciled."""
    place = (names.GROUP, names.VERSION, kind.plural)

    @kopf.daemon(*place, id=f"keep_{kind.name.lower()}", registry=registry, cancellation_timeout=10.0)
    async def keep_object(namespace: str | None, name: str, **_: Any) -> None:
        space = namespace or ""

        async def in_turn() -> Result:
            async with runtime.slots:
                return await reconcile(runtime.cluster, space, name, runtime.settings, runtime.clock)

        await keep(
            (kind.name, space, name),
            in_turn,
            runtime.pokes,
            runtime.metrics,
            runtime.settings.drift_interval,
        )

    @kopf.on.event(*place, id=f"{kind.name.lower()}_changed", registry=registry)
    async def object_changed(namespace: str | None, name: str, **_: Any) -> None:
        runtime.pokes.poke(kind.name, namespace or "", name)

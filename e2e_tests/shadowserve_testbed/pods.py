"""What pods of a PrefixCache and an InferencePool are there, and since when."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shadowserve_crds import names
from shadowserve_testbed.kubectl import Kubectl


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that is not going away. `started` is when its main container did, `ready` since when it serves."""

    name: str
    node: str
    started: datetime | None
    ready: datetime | None
    told: str


def engines(kubectl: Kubectl, namespace: str, pool: str) -> list[Pod]:
    """Return the pool's engine pods, by name."""
    return _pods(kubectl, namespace, f"{names.POOL_LABEL}={pool}")


def data_planes(kubectl: Kubectl, namespace: str, cache: str) -> list[Pod]:
    """Return the cache's data-plane pods, by name."""
    return _pods(kubectl, namespace, f"{names.CACHE_LABEL}={cache},{names.COMPONENT_LABEL}=data-plane")


def _pods(kubectl: Kubectl, namespace: str, selector: str) -> list[Pod]:
    found = kubectl.items("pods", "--namespace", namespace, "--selector", selector)
    alive = [body for body in found if not body["metadata"].get("deletionTimestamp")]
    return sorted((_pod(body) for body in alive), key=lambda pod: pod.name)


def _pod(body: dict[str, Any]) -> Pod:
    status = body.get("status", {})
    states = [each.get("state", {}) for each in status.get("containerStatuses", ())]
    started = [state["running"]["startedAt"] for state in states if "running" in state]
    ready = [
        each["lastTransitionTime"]
        for each in status.get("conditions", ())
        if each["type"] == "Ready" and each["status"] == "True"
    ]
    return Pod(
        body["metadata"]["name"],
        body["spec"].get("nodeName", ""),
        datetime.fromisoformat(min(started)) if started else None,
        datetime.fromisoformat(ready[0]) if ready else None,
        (body["metadata"].get("annotations") or {}).get(names.DATA_PLANE_ANNOTATION, ""),
    )

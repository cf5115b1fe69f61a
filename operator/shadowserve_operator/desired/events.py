"""Events: what a person should know, in the words of the condition that changed."""

from datetime import UTC, datetime

from shadowserve_crds import names
from shadowserve_crds.base import Resource
from shadowserve_crds.conditions import Condition, ConditionStatus
from shadowserve_operator.desired.labels import digest
from shadowserve_operator.desired.left_out import why_left_out
from shadowserve_operator.kinds import Json

_WITHOUT_SIDECAR = "WithoutSidecar"
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def condition_event(owner: Resource, changed: Condition, now: datetime) -> Json:
    """Return the event that says what a condition says now."""
    about = {
        "apiVersion": names.API_VERSION,
        "kind": owner.kind_name,
        "name": owner.name,
        "namespace": owner.namespace,
        "uid": owner.metadata.uid,
    }
    when = now.astimezone(UTC).strftime(_TIME)
    kind = "Normal" if changed.status is ConditionStatus.TRUE else "Warning"
    name = f"{owner.name[:200]}.{digest([about, changed.dump(), when])}"
    return _event(name, about, (kind, changed.reason, changed.message), now)


def skipped_event(pod: Json, now: datetime) -> Json | None:
    """Return the event of a pod that asks for a cache by a label and has no sidecar, None for any other pod.

    It has the same name every time, so that it is recorded once a pod, whatever is written into its annotation later.
    """
    reason = why_left_out(pod)
    if not reason:
        return None
    metadata = pod["metadata"]
    about = {"apiVersion": "v1", "kind": "Pod"} | {key: metadata[key] for key in ("name", "namespace", "uid")}
    message = f"runs without the sidecar: {reason}"
    name = f"{metadata['name'][:200]}.{digest([about, _WITHOUT_SIDECAR])}"
    return _event(name, about, ("Warning", _WITHOUT_SIDECAR, message), now)


def _event(name: str, about: Json, says: tuple[str, str, str], now: datetime) -> Json:
    kind, reason, message = says
    when = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.get("namespace") or "default"},
        "involvedObject": about,
        "type": kind,
        "reason": reason,
        "message": message[:1024],
        "source": {"component": names.MANAGED_BY},
        "firstTimestamp": when,
        "lastTimestamp": when,
        "count": 1,
    }

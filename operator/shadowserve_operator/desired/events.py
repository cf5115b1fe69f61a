"""Events: what a person should know, in the words of the condition that changed."""

from datetime import UTC, datetime

from shadowserve_crds import names
from shadowserve_crds.base import Resource
from shadowserve_crds.conditions import Condition, ConditionStatus
from shadowserve_operator.desired.labels import digest
from shadowserve_operator.kinds import Json

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

    It has the same name every time, so that it is recorded once.
    """
    metadata, phase = pod["metadata"], pod.get("status", {}).get("phase", "Pending")
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    asks = names.CACHE_LABEL in labels and labels.get(names.MANAGED_BY_LABEL) != names.MANAGED_BY
    gone = metadata.get("deletionTimestamp") or phase not in ("Pending", "Running")
    if not asks or gone or names.INJECTED_ANNOTATION in annotations:
        return None
    about = {"apiVersion": "v1", "kind": "Pod"} | {key: metadata[key] for key in ("name", "namespace", "uid")}
    unseen = "the admission webhook did not see it when it was made; delete it, so that it is made anew"
    message = f"runs without the sidecar: {annotations.get(names.SKIPPED_ANNOTATION, unseen)}"
    name = f"{metadata['name'][:200]}.{digest([about, message])}"
    return _event(name, about, ("Warning", "WithoutSidecar", message), now)


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

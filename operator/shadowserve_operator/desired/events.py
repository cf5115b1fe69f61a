"""Events: what a person should know, in the words of the condition that changed."""

from datetime import UTC, datetime

from shadowserve_crds import names
from shadowserve_crds.base import Resource
from shadowserve_crds.conditions import Condition, ConditionStatus
from shadowserve_operator.desired.labels import digest
from shadowserve_operator.kinds import Json


def condition_event(owner: Resource, changed: Condition, now: datetime) -> Json:
    """Return the event that says what a condition says now."""
    when = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    about = {
        "apiVersion": names.API_VERSION,
        "kind": owner.kind_name,
        "name": owner.name,
        "namespace": owner.namespace,
        "uid": owner.metadata.uid,
    }
    namespace = owner.namespace or "default"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{owner.name[:200]}.{digest([about, changed.dump(), when])}", "namespace": namespace},
        "involvedObject": about,
        "type": "Normal" if changed.status is ConditionStatus.TRUE else "Warning",
        "reason": changed.reason,
        "message": changed.message[:1024],
        "source": {"component": names.MANAGED_BY},
        "firstTimestamp": when[:19] + "Z",
        "lastTimestamp": when[:19] + "Z",
        "count": 1,
    }

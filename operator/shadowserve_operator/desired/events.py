"""Events: what a person should know, in the words of the condition that changed."""

from collections.abc import Iterable
from datetime import UTC, datetime

from shadowserve_crds import names
from shadowserve_crds.base import Resource
from shadowserve_crds.conditions import Condition, ConditionStatus
from shadowserve_operator.desired.labels import digest
from shadowserve_operator.desired.left_out import why_left_out
from shadowserve_operator.desired.wording import first_few
from shadowserve_operator.kinds import Json

_WITHOUT_SIDECAR = "WithoutSidecar"
_MOST_NAMES = 5
_REFERENCE = ("apiVersion", "kind", "namespace", "name", "uid")
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


def left_out_events(pods: Iterable[Json], now: datetime) -> list[Json]:
    """Return the events of pods that ask for a cache by a label and have no sidecar; there are none of other pods.

    Several of one controller, as a Deployment's ReplicaSet, are one event about it: they are all alike, and a hundred
    events would hide what else happens. The same pod or controller has the same event every time, so that it is
    recorded once, whatever is written into an annotation later.
    """
    groups: dict[str, list[tuple[Json, str]]] = {}
    for pod in pods:
        if reason := why_left_out(pod):
            metadata = pod["metadata"]
            groups.setdefault((_controller(metadata) or metadata)["uid"], []).append((metadata, reason))
    return [_left_out_event(group, now) for group in groups.values()]


def _left_out_event(group: list[tuple[Json, str]], now: datetime) -> Json:
    ordered = sorted(group, key=lambda each: str(each[0]["name"]))
    metadata, reason = ordered[0]
    about, message = {"apiVersion": "v1", "kind": "Pod", **metadata}, f"runs without the sidecar: {reason}"
    if len(ordered) > 1:
        named = first_few((str(each["name"]) for each, _ in ordered), _MOST_NAMES)
        about = _controller(metadata) or about
        message = f"{len(ordered)} pods run without the sidecar: {named}. Pod {metadata['name']}: {reason}"
    about = {"namespace": metadata["namespace"]} | {key: about[key] for key in _REFERENCE if key in about}
    name = f"{about['name'][:200]}.{digest([about, _WITHOUT_SIDECAR])}"
    return _event(name, about, ("Warning", _WITHOUT_SIDECAR, message), now)


def _controller(metadata: Json) -> Json | None:
    """Return the owner that made a pod, and would make it anew."""
    return next((owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")), None)


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

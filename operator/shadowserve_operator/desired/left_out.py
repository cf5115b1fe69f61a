"""Pods that ask for a cache by a label and run without the sidecar: which, why, what the cache says of them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from shadowserve_crds import names
from shadowserve_crds.conditions import Condition, Reason, condition
from shadowserve_crds.prefixcache import PrefixCacheCondition
from shadowserve_operator.desired.wording import first_few
from shadowserve_operator.kinds import Json

UNSEEN = "the admission webhook did not see it when it was made; delete it, so that it is made anew"
_MOST_NAMES = 5
_MOST_CHARACTERS = 500
"""Of what an annotation says: anybody who may write the pod may write that."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A pod that runs without the sidecar, and why in words: the webhook's, if it said something."""

    name: str
    reason: str


def why_left_out(pod: Json) -> str:
    """Return why a pod runs without the sidecar that it asks for by a label; nothing for any other pod."""
    metadata, phase = pod["metadata"], pod.get("status", {}).get("phase", "Pending")
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    asks = names.CACHE_LABEL in labels and labels.get(names.MANAGED_BY_LABEL) != names.MANAGED_BY
    gone = metadata.get("deletionTimestamp") or phase not in ("Pending", "Running")
    if not asks or gone or names.INJECTED_ANNOTATION in annotations:
        return ""
    said = " ".join(str(annotations.get(names.SKIPPED_ANNOTATION, "")).split())
    return said[:_MOST_CHARACTERS] or UNSEEN


def left_out(pods: Iterable[Json]) -> tuple[LeftOut, ...]:
    """Return those of a cache's pods that run without the sidecar, in the order of their names."""
    found = [LeftOut(pod["metadata"]["name"], reason) for pod in pods if (reason := why_left_out(pod))]
    return tuple(sorted(found, key=lambda each: each.name))


def injected_condition(pods: tuple[LeftOut, ...]) -> Condition:
    """Return what the cache says: the names of the first of them, and why the first one is."""
    kind = PrefixCacheCondition.PODS_INJECTED
    if not pods:
        return condition(kind, True, Reason.SUCCEEDED, "every pod that asks for it by a label has the sidecar")
    named = first_few((each.name for each in pods), _MOST_NAMES)
    message = f"these pods ask for it by a label and run without the sidecar: {named}"
    return condition(kind, False, "PodsWithoutSidecar", f"{message}. Pod {pods[0].name}: {pods[0].reason}")

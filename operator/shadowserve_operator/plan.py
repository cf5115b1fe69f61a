"""What to do about the difference between what should be and what is. Pure; every step says why, also doing nothing.

An object is as it should be when it carries the hash of what was rendered and every field that was rendered has its
value still: so a newer operator's rendering and an edit by hand are both seen, and what the API server or another
controller added is nobody's business.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shadowserve_crds import names
from shadowserve_crds.quantities import Quantity
from shadowserve_operator.kinds import Json, Ref, ref_of


class Action(StrEnum):
    """What is done to one object."""

    CREATE = "create"
    CHANGE = "change"
    REPLACE = "replace"
    SCALE = "scale"
    """Only its replicas are set."""
    DELETE = "delete"
    KEEP = "keep"
    LEAVE = "leave"
    """It is somebody else's: nothing is done, and the status says so."""


_FIXED = {
    "StatefulSet": (".spec.selector", ".spec.serviceName", ".spec.volumeClaimTemplates", ".spec.podManagementPolicy"),
    "DaemonSet": (".spec.selector",),
    "Deployment": (".spec.selector",),
    "Service": (".spec.clusterIP",),
    "Secret": (".type",),
}
"""Fields that the API server does not let change: the object is made anew."""
_ENTRY_KEYS = ("name", "containerPort", "mountPath", "key", "type")


@dataclass(frozen=True, slots=True)
class Step:
    """One object. `manifest` is what should be, None for a deletion; `uid` is that of what is."""

    action: Action
    ref: Ref
    reason: str
    manifest: Json | None = None
    uid: str = ""

    @property
    def writes(self) -> bool:
        """Whether the cluster is changed."""
        return self.action not in (Action.KEEP, Action.LEAVE)

    def __str__(self) -> str:
        return f"{self.action} {self.ref}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order in which they are done."""

    steps: tuple[Step, ...] = ()

    @property
    def writes(self) -> tuple[Step, ...]:
        """Those that change something."""
        return tuple(step for step in self.steps if step.writes)

    @property
    def foreign(self) -> tuple[Step, ...]:
        """Those that meet somebody else's object."""
        return tuple(step for step in self.steps if step.action is Action.LEAVE)

    def sentences(self) -> list[str]:
        """Return what is done, one line a step that changes something."""
        return [str(step) for step in self.writes]


def plan_changes(wanted: Sequence[Json], live: Iterable[Json]) -> Plan:
    """Return how `live` becomes `wanted`: deletions first, then the others in the order in which they were rendered.

    `live` is everything of ours that is there, and whatever has the name of something that is wanted.
    """
    existing = {ref_of(manifest): manifest for manifest in live}
    names_wanted = {ref_of(manifest) for manifest in wanted}
    gone = [
        Step(Action.DELETE, ref, "nothing asks for it any more", uid=existing[ref]["metadata"]["uid"])
        for ref in sorted(existing)
        if ref not in names_wanted and is_ours(existing[ref]) and not _on_its_way_out(existing[ref])
    ]
    return Plan((*gone, *(_step(manifest, existing.get(ref_of(manifest))) for manifest in wanted)))


def scaling(live: Json, replicas: int) -> Step:
    """Return how a workload gets so many replicas, and stays as it is otherwise."""
    ref, uid, now = ref_of(live), live["metadata"]["uid"], live["spec"].get("replicas", 1)
    if now == replicas or _on_its_way_out(live) or not live["metadata"].get("ownerReferences"):
        return Step(Action.KEEP, ref, "only its replicas may change now", uid=uid)
    metadata = {key: live["metadata"][key] for key in ("name", "namespace", "labels", "ownerReferences")}
    body = {"apiVersion": ref.kind.api_version, "kind": ref.kind.name, "metadata": metadata}
    reason = f".spec.replicas is {now} instead of {replicas}"
    return Step(Action.SCALE, ref, reason, {**body, "spec": {"replicas": replicas}}, uid)


def is_ours(manifest: Mapping[str, Any]) -> bool:
    """Return whether the operator made it."""
    labels: Mapping[str, str] = manifest["metadata"].get("labels") or {}
    return labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY


def first_difference(wanted: Any, live: Any, path: str = "") -> str | None:
    """Return where `live` lacks something that `wanted` has, as a sentence that begins with the path; None if nowhere.

    What only `live` has does not count, except in lists, whose length counts. Values of Secrets are never told.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return f"{path} is missing" if wanted and live is None else (f"{path} differs" if wanted else None)
        nested = (first_difference(value, live.get(key), f"{path}.{key}") for key, value in wanted.items())
        return next((found for found in nested if found), None)
    if isinstance(wanted, list):
        if not wanted and live is None:
            return None
        if not isinstance(live, list) or len(live) != len(wanted):
            there = len(live) if isinstance(live, list) else 0
            return f"{path} has {there} entries instead of {len(wanted)}"
        pairs = zip(wanted, live, strict=True)
        entries = (first_difference(one, other, f"{path}[{_entry(one, i)}]") for i, (one, other) in enumerate(pairs))
        return next((found for found in entries if found), None)
    if _same(wanted, live):
        return None
    return f"{path} is missing" if live is None else f"{path} is {_shown(live)} instead of {_shown(wanted)}"


def _step(wanted: Json, live: Json | None) -> Step:
    ref = ref_of(wanted)
    if live is None:
        return Step(Action.CREATE, ref, "it does not exist", wanted)
    uid = live["metadata"]["uid"]
    if not is_ours(live) and not _same_owner(wanted, live):
        return Step(Action.LEAVE, ref, "it exists, but the operator did not make it: rename or delete it", wanted, uid)
    if _on_its_way_out(live):
        return Step(Action.KEEP, ref, "it is being deleted, and made anew once it is gone", wanted, uid)
    difference = _difference(ref, wanted, live)
    if difference is None:
        return Step(Action.KEEP, ref, "it is as it should be", wanted, uid)
    if difference.startswith(_FIXED.get(ref.kind.name, ())):
        return Step(Action.REPLACE, ref, f"{difference}, which cannot be changed in place", wanted, uid)
    return Step(Action.CHANGE, ref, difference, wanted, uid)


def taken(wanted: Json, live: Json) -> bool:
    """Return whether an object that was applied is as it should be: entries that others added to lists stay."""
    return _difference(ref_of(wanted), wanted, live) is None


def _same_owner(wanted: Json, live: Json) -> bool:
    """Return whether the live object was made for the same resource: somebody may have taken our label off."""
    owners = {owner["uid"] for owner in wanted["metadata"].get("ownerReferences") or ()}
    return any(owner["uid"] in owners for owner in live["metadata"].get("ownerReferences") or ())


def _difference(ref: Ref, wanted: Json, live: Json) -> str | None:
    hidden = ref.kind.name == "Secret"
    contents = {key: value for key, value in wanted.items() if key not in ("apiVersion", "kind", "metadata")}
    found = first_difference(contents, live)
    if found is not None:
        return found.split(" is ")[0] + " differs" if hidden else found
    metadata = {key: wanted["metadata"].get(key, {}) for key in ("labels", "annotations", "ownerReferences")}
    return first_difference(metadata, live["metadata"], ".metadata")


def _on_its_way_out(live: Json) -> bool:
    return bool(live["metadata"].get("deletionTimestamp"))


def _same(wanted: Any, live: Any) -> bool:
    """Compare values as the API server does: it writes quantities its own way, and omits what is empty."""
    if wanted == live or (live is None and wanted in ("", False, 0)):
        return True
    if not (isinstance(wanted, str) and isinstance(live, str | int)):
        return False
    try:
        return Quantity(wanted) == Quantity(str(live))
    except ValueError:
        return False


def _entry(value: Any, index: int) -> str:
    if isinstance(value, Mapping):
        return next((str(value[key]) for key in _ENTRY_KEYS if key in value), str(index))
    return str(index)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

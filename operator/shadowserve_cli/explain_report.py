"""What `shadowserve explain` says of one pod: pure. Every answer is the operator's own function, or its own word."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shadowserve_cli.picture import Picture
from shadowserve_cli.status_report import assignments, has_older_settings, shown_place, troubles_of, why
from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.desired.admission import CacheSeen
from shadowserve_operator.desired.sidecar import Unchanged, inject
from shadowserve_operator.kinds import Json
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.webhook_identity import HOOK


@dataclass(frozen=True, slots=True)
class Finding:
    """A question about the pod, and its answer; `good`: nothing has to be done about it."""

    question: str
    answer: str
    good: bool = True


@dataclass(frozen=True, slots=True)
class Explanation:
    """All there is to say of one pod."""

    namespace: str
    pod: str
    findings: tuple[Finding, ...]


def explanation(picture: Picture, pod: Json, namespace_labels: Mapping[str, str], now: datetime) -> Explanation:
    """Return why a pod has the sidecar or not, and where it restores. `namespace_labels` are its namespace's."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    found = [_asks(picture, pod)]
    cache = _cache(picture, pod)
    if names.INJECTED_ANNOTATION in _annotations(pod):
        found += [*_with_sidecar(pod), *_settings(picture, pod, cache), *_data_plane(picture, pod, cache, now)]
    elif found[0].good and _wanted(picture, pod):
        found.append(Finding("Has it the sidecar?", f"no: {_why_not(picture, pod, cache, namespace_labels)}", False))
    if cache is not None:
        troubles = [f"{each.about}: {each.problem}" for each in troubles_of(cache, "pfc")]
        answer = "; ".join(troubles) or "the operator finds nothing wrong with it"
        found.append(Finding(f"Is PrefixCache {cache.name} well?", answer, not troubles))
    return Explanation(namespace, name, tuple(found))


def _asks(picture: Picture, pod: Json) -> Finding:
    question, labels = "Does it ask for a cache?", _labels(pod)
    pool_name, wanted = labels.get(names.POOL_LABEL), _wanted(picture, pod)
    if pool_name and wanted:
        return Finding(question, f"yes: InferencePool {pool_name} uses PrefixCache {wanted}")
    if pool_name:
        return Finding(question, f"no: InferencePool {pool_name} has no spec.cacheRef, its engines are plain vLLM")
    if wanted:
        return Finding(question, f"yes: its label {names.CACHE_LABEL} names PrefixCache {wanted}")
    there = ", ".join(each.name for each in picture.caches) or "none yet"
    hint = f"give the pod's template the label {names.CACHE_LABEL}; PrefixCaches of its namespace: {there}"
    return Finding(question, f"no: {hint}")


def _wanted(picture: Picture, pod: Json) -> str:
    """Return the name of the PrefixCache that a pod should have."""
    labels = _labels(pod)
    pool = picture.pool(pod["metadata"]["namespace"], labels.get(names.POOL_LABEL, ""))
    if pool is not None and pool.spec.cache_ref is not None:
        return pool.spec.cache_ref.name
    return labels.get(names.CACHE_LABEL, "")


def _cache(picture: Picture, pod: Json) -> PrefixCache | None:
    return picture.cache(pod["metadata"]["namespace"], _wanted(picture, pod))


def _with_sidecar(pod: Json) -> Iterable[Finding]:
    version = _annotations(pod)[names.INJECTED_ANNOTATION]
    how = "its InferencePool's template" if names.POOL_LABEL in _labels(pod) else "the admission webhook"
    yield Finding("Has it the sidecar?", f"yes: version {version}, by {how}")
    for status in pod.get("status", {}).get("initContainerStatuses", ()):
        if status["name"] == names.SIDECAR_CONTAINER:
            yield _running(status)


def _running(status: Mapping[str, Any]) -> Finding:
    question, state, restarts = "Does the sidecar run?", status.get("state", {}), status.get("restartCount", 0)
    again = f", after {restarts} restarts" if restarts else ""
    if "running" in state:
        ready = "" if status.get("started", True) else ", but has not answered yet"
        return Finding(question, f"yes{again}{ready}", not restarts)
    detail = state.get("waiting") or state.get("terminated") or {}
    said = f"{detail.get('reason', 'not started')} {detail.get('message', '')}".strip()
    return Finding(question, f"no: {said}{again}", False)


def _settings(picture: Picture, pod: Json, cache: PrefixCache | None) -> Iterable[Finding]:
    if cache is None:
        return
    question = "Has it its cache's settings?"
    written = picture.settings(cache)
    if written is None:
        yield Finding(question, "unknown: those of now are not written yet, or may not be read")
        return
    if not has_older_settings(pod, written):
        yield Finding(question, "yes: those of now")
        return
    older = f"no: older ones than PrefixCache {cache.name} gives now"
    if names.POOL_LABEL in _labels(pod):
        yield Finding(question, f"{older}; its InferencePool is replacing it", False)
    else:
        yield Finding(question, f"{older}. Delete the pod, or restart its workload, so that it is made anew", False)


def _data_plane(picture: Picture, pod: Json, cache: PrefixCache | None, now: datetime) -> Iterable[Finding]:
    question, told = "Where does it restore?", _annotations(pod).get(names.DATA_PLANE_ANNOTATION)
    if cache is None:
        wanted = _wanted(picture, pod)
        yield Finding(question, f"PrefixCache {wanted} is gone: it keeps its last settings until it is replaced", False)
        return
    found = [each for each in assignments(picture, cache, now) if each.pod.uid == pod["metadata"].get("uid")]
    if not pod["spec"].get("nodeName") or not found:
        yield Finding(question, "nowhere yet: it is not scheduled, or on its way out")
        return
    where = f"{shown_place(told, cache)}{f' ({told})' if told else ''}"
    yield Finding(question, f"{where}: {why(found[0])}", not found[0].changes)


def _why_not(picture: Picture, pod: Json, cache: PrefixCache | None, namespace_labels: Mapping[str, str]) -> str:
    namespace, wanted = pod["metadata"]["namespace"], _wanted(picture, pod)
    pool = picture.pool(namespace, _labels(pod).get(names.POOL_LABEL, ""))
    if pool is not None:
        said = next((each.message for each in pool.status.conditions if each.type == "CacheAttached"), "")
        return said or "the operator has said nothing about its pool yet: see `shadowserve doctor`"
    skipped = _annotations(pod).get(names.SKIPPED_ANNOTATION, "")
    if cache is None:
        missing = f"there is no PrefixCache {wanted} in namespace {namespace}: create it, then make the pod anew"
        return skipped or missing
    terms = CacheSeen(cache, picture.config_map(cache)).terms(OperatorSettings())
    if isinstance(terms, str):
        return terms
    obstacle = inject(pod, terms)
    if isinstance(obstacle, Unchanged):
        return obstacle.reason
    if skipped:
        return f"{skipped}. That does not hold any more: delete the pod, so that it is made anew"
    if reason := _not_asked(picture, pod, namespace_labels):
        return reason
    return (
        "the webhook did not answer when the pod was made, or the pod is older than it. Delete the pod, so that it is "
        "made anew; `shadowserve doctor` tries the webhook"
    )


def _not_asked(picture: Picture, pod: Json, namespace_labels: Mapping[str, str]) -> str:
    """Return why the API server does not ask the webhook about such a pod; nothing if it does."""
    if picture.hook is None:
        return "the webhook is not installed, or its configuration may not be read: see `shadowserve doctor`"
    hook = next((each for each in picture.hook.get("webhooks", ()) if each["name"] == HOOK), None)
    if hook is None:
        return f"the webhook's configuration has no {HOOK}: see `shadowserve doctor`"
    if not hook.get("clientConfig", {}).get("caBundle"):
        return "the API server was never told the webhook's authority: see `shadowserve doctor`"
    if unmatched := unselected(hook.get("namespaceSelector") or {}, namespace_labels):
        return f"pods of this namespace are left alone: {unmatched}"
    if unmatched := unselected(hook.get("objectSelector") or {}, _labels(pod)):
        return f"the webhook leaves such pods alone: {unmatched}"
    return ""


def unselected(selector: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return what of a label selector does not hold, in words; nothing when it selects."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return f"the label {key} is not {value}"
    for each in selector.get("matchExpressions") or ():
        key, operator, values = each["key"], each["operator"], each.get("values") or []
        holds = {
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
        }
        if not holds.get(operator, True):
            shown = f" {', '.join(values)}" if values else ""
            return f"the label {key} has to be {operator}{shown}, and is {labels.get(key, 'not there')}"
    return ""


def _labels(pod: Json) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def _annotations(pod: Json) -> Mapping[str, str]:
    return pod["metadata"].get("annotations") or {}

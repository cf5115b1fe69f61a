"""What the admission webhook answers: pure, from a review and what is known of the pod's PrefixCache.

A pod is never refused. What cannot be injected is admitted as it is, with the reason in an annotation.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.desired.config import missing_secrets, written_settings
from shadowserve_operator.desired.scope import owner_scope
from shadowserve_operator.desired.sidecar import Injected, SidecarTerms, inject
from shadowserve_operator.desired.terms import sidecar_terms
from shadowserve_operator.kinds import Json
from shadowserve_operator.settings import OperatorSettings

_MAX_REASON = 500


class BadReview(Exception):
    """What came is no AdmissionReview of a pod; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a pod that came for admission asks for. `uid` names the review; `cache` None: nothing."""

    uid: str
    namespace: str
    cache: str | None
    pod: Json


@dataclass(frozen=True, slots=True)
class CacheSeen:
    """A PrefixCache, and its ConfigMap with config.json, None while there is none."""

    cache: PrefixCache
    config_map: Json | None = None

    def terms(self, settings: OperatorSettings) -> SidecarTerms | str:
        """Return what it gives its pods, or why nothing.

        Pods of a cache that was just made or edited are injected: the kubelet waits for a ConfigMap that is not there.
        Only for a Secret that a person has yet to make no pod waits.
        """
        written = written_settings(self.cache, self.config_map)
        if written is None and (missing := missing_secrets(self.cache)):
            return f"PrefixCache {self.cache.name} has no settings yet: {missing}, then make the pod anew"
        return sidecar_terms(self.cache, settings, written or "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer; `skipped` is why a pod that asked for a cache does not get the sidecar."""

    response: Json
    injected: bool = False
    skipped: str = ""


def read_review(review: Mapping[str, Any]) -> Wish:
    """Return what the pod asks for. Raises `BadReview`."""
    try:
        request = review["request"]
        pod = request["object"]
        uid, namespace, kind = request["uid"], request.get("namespace", ""), pod["kind"]
        labels = pod["metadata"].get("labels") or {}
        containers = pod["spec"]["containers"]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadReview(f"not an AdmissionReview of a pod: {error!r}") from error
    if kind != "Pod" or not containers:
        raise BadReview(f"a {kind} with {len(containers)} containers is not a pod that can run")
    return Wish(uid, namespace, labels.get(names.CACHE_LABEL), pod)


def decide(wish: Wish, terms: SidecarTerms | str | None) -> Verdict:
    """Return the answer. `terms` are those of the cache that the pod asks for, or why there are none, in words."""
    if wish.cache is None or terms is None:
        return Verdict(_response(wish.uid, []))
    if isinstance(terms, str):
        return _skipped(wish, terms)
    result = inject(wish.pod, terms, owner_scope(wish.pod))
    if isinstance(result, Injected):
        return Verdict(_response(wish.uid, _changes(wish.pod, result.pod)), injected=True)
    return Verdict(_response(wish.uid, [])) if result.settled else _skipped(wish, result.reason)


def _skipped(wish: Wish, reason: str) -> Verdict:
    annotations = {**(wish.pod["metadata"].get("annotations") or {}), names.SKIPPED_ANNOTATION: reason[:_MAX_REASON]}
    change = {"op": "add", "path": "/metadata/annotations", "value": annotations}
    return Verdict(_response(wish.uid, [change]), skipped=reason)


def _changes(before: Json, after: Json) -> list[Json]:
    """Return a JSON patch (RFC 6902) that replaces what injection touches; "add" replaces what is there."""
    now, then = after["metadata"], before["metadata"]
    changed = [part for part in ("labels", "annotations") if now.get(part) != then.get(part)]
    return [
        {"op": "replace", "path": "/spec", "value": after["spec"]},
        *({"op": "add", "path": f"/metadata/{part}", "value": now[part]} for part in changed),
    ]


def _response(uid: str, changes: list[Json]) -> Json:
    response: Json = {"uid": uid, "allowed": True}
    if changes:
        response |= {"patchType": "JSONPatch", "patch": b64encode(json.dumps(changes).encode()).decode()}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

"""Small pictures of a cluster for the tests of the command line: one cache, one card, its host."""

from datetime import UTC, datetime, timedelta
from typing import Any

from shadowserve_cli.picture import Picture
from shadowserve_crds import names
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.desired.config import config_map
from shadowserve_operator.desired.pairing import Node
from shadowserve_operator.kinds import Json
from shadowserve_operator.webhook_identity import HOOK

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def condition(kind: str, status: str, reason: str = "Succeeded", message: str = "") -> Json:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def cache(*conditions: Json, **spec: Any) -> PrefixCache:
    said = list(conditions) or [condition("Ready", "True")]
    metadata = {"name": "kv", "namespace": "default", "generation": 1, "uid": "1"}
    status = {"observedGeneration": 1, "conditions": said}
    return PrefixCache.parse({"metadata": metadata, "spec": spec, "status": status})


def settings(**spec: Any) -> str:
    """Return the digest of the settings that a cache gives."""
    return str(config_map(cache(**spec))["metadata"]["annotations"][names.CONFIG_ANNOTATION])


def pool(*conditions: Json, **spec: Any) -> InferencePool:
    source = {"type": "HuggingFace", "huggingFace": {"repository": "a/b"}}
    metadata = {"name": "chat", "namespace": "default", "generation": 1, "uid": "2"}
    body = {"model": {"name": "m", "source": source}, "engine": {"image": "vllm:1"}, **spec}
    status = {"observedGeneration": 1, "conditions": list(conditions) or [condition("Ready", "True")]}
    return InferencePool.parse({"metadata": metadata, "spec": body, "status": status})


def pod(name: str, told: str | None = None, injected: bool = True, **more: Any) -> Json:
    made = {names.INJECTED_ANNOTATION: "0.1.0", names.CONFIG_ANNOTATION: settings()}
    annotations = made if injected else {}
    annotations |= {} if told is None else {names.DATA_PLANE_ANNOTATION: told}
    labels = {names.CACHE_LABEL: "kv"}
    metadata = {"name": name, "namespace": "default", "uid": name, "labels": labels, "annotations": annotations}
    spec = {"nodeName": "host-0", "containers": [{"name": "engine", "image": "vllm:1"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Running"}}
    return {**body, **more}


def data_plane(ready: bool = True) -> Json:
    labels = {names.CACHE_LABEL: "kv", names.COMPONENT_LABEL: "data-plane", names.MANAGED_BY_LABEL: names.MANAGED_BY}
    metadata = {"name": "plane", "namespace": "default", "uid": "plane", "labels": labels}
    since = (NOW - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = [{"type": "Ready", "status": str(ready), "lastTransitionTime": since}]
    status = {"phase": "Running", "podIP": "10.1.0.9", "conditions": said}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
    return {**body, "spec": {"nodeName": "card-0", "containers": [{"name": "data-plane", "image": "x"}]}}


def nodes(ready: bool = True) -> tuple[Node, ...]:
    return (Node("card-0", {names.DEFAULT_HOST_LABEL: "host-0"}, ready), Node("host-0", {}, True))


def lease(age: float = 1.0) -> Json:
    renewed = (NOW - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"spec": {"holderIdentity": "operator-1", "leaseDurationSeconds": 15, "renewTime": renewed}}


def hook(**changes: Any) -> Json:
    one = {"name": HOOK, "failurePolicy": "Ignore", "clientConfig": {"caBundle": "eA=="}, **changes}
    return {"metadata": {"name": "shadowserve"}, "webhooks": [one]}


def picture(**changes: Any) -> Picture:
    found: dict[str, Any] = {"caches": (cache(),), "nodes": nodes(), "lease": lease(), "hook": hook(), **changes}
    found.setdefault("config_maps", tuple(config_map(each) for each in found["caches"]))
    return Picture(**found)

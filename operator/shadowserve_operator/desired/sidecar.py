"""A pod with the sidecar in it. One pure function, for pods of an InferencePool and for the admission webhook.

It adds the connector, the sidecar and their volumes, and never changes what the user wrote: where the two collide, the
pod stays as it is and the answer says why, in words for an event. A second pass changes nothing.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shadowserve_crds import names
from shadowserve_crds.quantities import Quantity
from shadowserve_operator.desired.pods import UNPRIVILEGED_USER, fixed, restricted
from shadowserve_operator.kinds import Json

_TRANSFER_FLAG = "--kv-transfer-config"
_RUN, _LANDING, _CONNECTOR = "shadowserve-run", "shadowserve-landing", "shadowserve-connector"
_CONFIG, _POD, _SECRETS, _TLS, _SHM = (
    "shadowserve-config",
    "shadowserve-pod",
    "shadowserve-secrets",
    "shadowserve-tls",
    "shadowserve-shm",
)
_SHELLS = frozenset({"sh", "bash", "dash", "ash"})
_SHM_SIZE = "1Gi"
_START_SECONDS = 120
_PROBE_SECONDS = 1
"""The engine waits for the sidecar's first answer."""


@dataclass(frozen=True, slots=True)
class SidecarTerms:
    """What a PrefixCache gives its pods. `memory` is the pipeline's own; the buffers (bytes) come on top.

    `config_map` holds config.json, `secret` the store's password and the tenants' salt, `tls_secret` a certificate.
    `config_digest` stands in the pod, so that a template changes when what sidecars read at their start does.
    """

    version: str
    image: str
    cache: str
    config_map: str
    secret: str
    tls_secret: str | None
    cpu: Quantity
    memory: Quantity
    landing_bytes: int
    staging_bytes: int
    chunk_tokens: int = 256
    config_digest: str = ""

    @property
    def buffer_bytes(self) -> int:
        """Memory of landing and staging buffer: tmpfs pages, charged to the sidecar, which touches them first."""
        return self.landing_bytes + self.staging_bytes


@dataclass(frozen=True, slots=True)
class Injected:
    """The pod as it should be created."""

    pod: Json


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The pod stays as it is. `reason` is for people; `settled`: it has the sidecar already, nothing is wrong."""

    reason: str
    settled: bool = False


def inject(pod: Mapping[str, Any], terms: SidecarTerms, scope: str = "") -> Injected | Unchanged:
    """Return `pod` with the sidecar, or why not. The pod that was given is left alone.

    Pods of one `scope` share chunks, also where the cache keeps pools apart; "" is a pod of its own.
    """
    annotations = pod.get("metadata", {}).get("annotations") or {}
    if version := annotations.get(names.INJECTED_ANNOTATION):
        return Unchanged(f"version {version} of the sidecar is in it already", settled=True)
    engine = _engine_container(pod, annotations)
    if isinstance(engine, str):
        return Unchanged(engine)
    changed = copy.deepcopy(dict(pod))
    container = changed["spec"]["containers"][engine]
    if obstacle := _obstacle(changed["spec"], container):
        return Unchanged(obstacle)
    _prepare_engine(changed["spec"], container, terms.chunk_tokens)
    spec = changed["spec"]
    spec["initContainers"] = [*_own_containers(terms, scope), *(spec.get("initContainers") or [])]
    spec["volumes"] = [*(spec.get("volumes") or []), *_volumes(terms)]
    metadata = changed.setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), names.CACHE_LABEL: terms.cache}
    ours = {names.INJECTED_ANNOTATION: terms.version, names.CONFIG_ANNOTATION: terms.config_digest}
    metadata["annotations"] = {**annotations, **ours}
    return Injected(changed)


def _engine_container(pod: Mapping[str, Any], annotations: Mapping[str, str]) -> int | str:
    """Return the index of the engine's container, or why it cannot be told."""
    found = [container["name"] for container in pod["spec"]["containers"]]
    wanted = annotations.get(names.ENGINE_CONTAINER_ANNOTATION)
    if wanted is None and len(found) == 1:
        return 0
    if wanted is None:
        return (
            f"the pod has {len(found)} containers ({', '.join(found)}): name the engine's by the annotation "
            f"{names.ENGINE_CONTAINER_ANNOTATION}"
        )
    if wanted not in found:
        return f"annotation {names.ENGINE_CONTAINER_ANNOTATION} names {wanted!r}; the containers are {', '.join(found)}"
    return found.index(wanted)


def _obstacle(spec: Json, container: Json) -> str:
    """Return why the sidecar cannot be added without changing what the user wrote; nothing if it can."""
    name = container["name"]
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    if any(word.split("=")[0] == _TRANSFER_FLAG for word in words):
        return f"container {name} sets {_TRANSFER_FLAG} itself: remove it, or the label {names.CACHE_LABEL}"
    command = container.get("command") or []
    if command and command[0].rsplit("/", 1)[-1] in _SHELLS:
        return f"container {name} runs a shell, to which no argument can be added: give vllm's arguments in args"
    for variable in container.get("env") or []:
        if variable["name"] == "PYTHONPATH" and "valueFrom" in variable:
            return f"container {name} takes PYTHONPATH from elsewhere: set it to a plain value"
    ours = {names.CONNECTOR_CONTAINER, names.SIDECAR_CONTAINER}
    for each in [*spec["containers"], *(spec.get("initContainers") or [])]:
        if each["name"] in ours:
            return f"the pod has a container {each['name']} of its own: rename it"
    for volume in spec.get("volumes") or []:
        if volume["name"].startswith("shadowserve-"):
            return f"the pod has a volume {volume['name']} of its own: rename it"
    return ""


def _prepare_engine(spec: Json, container: Json, chunk_tokens: int) -> None:
    """Let the engine's container find the connector and the buffers."""
    container["args"] = [*(container.get("args") or []), _TRANSFER_FLAG, json.dumps(_transfer_config(chunk_tokens))]
    container["env"] = _environment(container.get("env") or [])
    mounts = [*(container.get("volumeMounts") or [])]
    if not any(mount["mountPath"].rstrip("/") == "/dev/shm" for mount in mounts):
        mounts.append({"name": _SHM, "mountPath": "/dev/shm"})
        memory = {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": _SHM_SIZE}}
        spec["volumes"] = [*(spec.get("volumes") or []), memory]
    mounts += _shared_mounts()
    mounts.append({"name": _CONNECTOR, "mountPath": names.CONNECTOR_FOLDER, "readOnly": True})
    container["volumeMounts"] = mounts


def _environment(variables: list[Json]) -> list[Json]:
    values = {variable["name"]: variable.get("value", "") for variable in variables}
    path = ":".join(filter(None, [names.CONNECTOR_FOLDER, values.get("PYTHONPATH")]))
    kept = [variable for variable in variables if variable["name"] != "PYTHONPATH"]
    added = [{"name": "PYTHONPATH", "value": path}]
    if "PYTHONHASHSEED" not in values:
        added.append({"name": "PYTHONHASHSEED", "value": "0"})
    return [*kept, *added]


def _transfer_config(chunk_tokens: int) -> Json:
    return {
        "kv_connector": "ShadowServeConnector",
        "kv_connector_module_path": "shadowserve_dataplane.connector.connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"socket": names.SOCKET_PATH, "chunk_tokens": chunk_tokens},
    }


def _own_containers(terms: SidecarTerms, scope: str) -> list[Json]:
    """Return the copy of the connector, and the sidecar as a native one: it starts before the engine, ends after it."""
    copies: Json = {
        "name": names.CONNECTOR_CONTAINER,
        "image": terms.image,
        "command": ["shadowserve-copy-connector", names.CONNECTOR_FOLDER],
        "securityContext": restricted(UNPRIVILEGED_USER),
        # it runs before the sidecar, so the pod is asked for no more; with less, Python would take seconds to start
        "resources": fixed({"cpu": str(terms.cpu), "memory": str(64 << 20)}),
        "volumeMounts": [{"name": _CONNECTOR, "mountPath": names.CONNECTOR_FOLDER}],
    }
    mounts = [
        *_shared_mounts(),
        {"name": _CONFIG, "mountPath": names.CONFIG_PATH, "subPath": "config.json", "readOnly": True},
        {"name": _POD, "mountPath": names.ANNOTATIONS_PATH.rsplit("/", 1)[0], "readOnly": True},
        {"name": _SECRETS, "mountPath": names.SECRETS_FOLDER, "readOnly": True},
    ]
    if terms.tls_secret:
        mounts.append({"name": _TLS, "mountPath": names.TLS_FOLDER, "readOnly": True})
    probe = {
        "httpGet": {"path": "/metrics", "port": "metrics"},
        "periodSeconds": _PROBE_SECONDS,
        "failureThreshold": _START_SECONDS // _PROBE_SECONDS,
    }
    sidecar: Json = {
        "name": names.SIDECAR_CONTAINER,
        "image": terms.image,
        "command": ["shadowserve-sidecar", "--config", names.CONFIG_PATH],
        "restartPolicy": "Always",
        "env": [_scope(scope)],
        "securityContext": restricted(UNPRIVILEGED_USER),
        "ports": [{"name": "metrics", "containerPort": names.SIDECAR_METRICS_PORT}],
        "startupProbe": probe,
        "resources": fixed({"cpu": str(terms.cpu), "memory": str(int(terms.memory) + terms.buffer_bytes)}),
        "volumeMounts": mounts,
    }
    return [copies, sidecar]


def _scope(scope: str) -> Json:
    """Return the variable that tells the sidecar whose chunks these are; only the kubelet knows a pod's own uid."""
    if scope:
        return {"name": names.SCOPE_VARIABLE, "value": scope}
    return {"name": names.SCOPE_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}


def _shared_mounts() -> list[Json]:
    return [{"name": _RUN, "mountPath": names.RUN_FOLDER}, {"name": _LANDING, "mountPath": names.LANDING_FOLDER}]


def _volumes(terms: SidecarTerms) -> list[Json]:
    annotations = [{"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}}]
    volumes: list[Json] = [
        {"name": _RUN, "emptyDir": {}},
        {"name": _LANDING, "emptyDir": {"medium": "Memory", "sizeLimit": str(terms.buffer_bytes)}},
        {"name": _CONNECTOR, "emptyDir": {}},
        {"name": _CONFIG, "configMap": {"name": terms.config_map}},
        {"name": _POD, "downwardAPI": {"items": annotations}},
        {"name": _SECRETS, "secret": {"secretName": terms.secret}},
    ]
    if terms.tls_secret:
        volumes.append({"name": _TLS, "secret": {"secretName": terms.tls_secret}})
    return volumes

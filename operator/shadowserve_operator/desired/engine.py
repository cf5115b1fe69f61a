"""The engines of an InferencePool: Deployment, Service, disruption budget; pods have the sidecar from the start."""

import json
from dataclasses import dataclass

from shadowserve_crds import names
from shadowserve_crds.inferencepool import GatewayPool, InferencePool, SourceType
from shadowserve_operator.desired.labels import rendered
from shadowserve_operator.desired.merge import merged
from shadowserve_operator.desired.pods import restricted, tolerant_anti_affinity, writable
from shadowserve_operator.desired.sidecar import Injected, SidecarTerms, Unchanged, inject
from shadowserve_operator.kinds import GATEWAY_POOL, Json

ENGINE_CONTAINER = "engine"
_COMPONENT = "engine"
_MODEL_FOLDER = "/model"
_PROBE_SECONDS, _START_PROBE_SECONDS = 5, 2
_LOAD_SECONDS = 600
"""A large model may take so long to load before the pod counts as failed."""
_PICKER_PORT = 9002
"""Where endpoint pickers listen, by the inference extension's own chart."""
_USER = 1000
"""Engines run as nobody in particular; `engine.podTemplate` can say otherwise."""
_STOP_SECONDS = 15
"""Beyond the drain: for the engine itself to end."""
_OWNED_FLAGS = frozenset({"--port", "--served-model-name", "--model", "--revision"})


@dataclass(frozen=True, slots=True)
class EngineObjects:
    """What should exist for a pool; `detached` says in words why its pods run without the cache, if they do."""

    objects: tuple[Json, ...]
    detached: str = ""


def engine_objects(pool: InferencePool, terms: SidecarTerms | None, gateway: bool = False) -> EngineObjects:
    """Return the pool's objects; `terms` None: plain vLLM. `gateway`: the inference extension's CRD is installed."""
    template = _template(pool)
    detached = ""
    if terms is not None:
        match inject(template, terms, pool.metadata.uid):
            case Injected(pod=injected):
                template = injected
            case Unchanged(reason=reason):
                detached = reason
    engines = rendered(pool, _deployment(pool, template))
    return EngineObjects((engines, *around_engines(pool, gateway)), detached)


def around_engines(pool: InferencePool, gateway: bool = False) -> tuple[Json, ...]:
    """Return the pool's objects but for the engines' Deployment: they do not depend on the PrefixCache."""
    bodies = [_service(pool)]
    if pool.spec.replicas > 1:
        bodies.append(_disruption_budget(pool))
    if gateway and wants_gateway_pool(pool):
        bodies.append(_gateway_pool(pool))
    return tuple(rendered(pool, body) for body in bodies)


def wants_gateway_pool(pool: InferencePool) -> bool:
    """Return whether the Gateway API inference extension is to have a pool of these pods."""
    return pool.spec.gateway.inference_pool is GatewayPool.CREATE


def refused_flags(pool: InferencePool) -> list[str]:
    """Return the arguments of the user that the operator sets itself, from fields of the resource."""
    return [word for word in pool.spec.engine.args if word.split("=")[0] in _OWNED_FLAGS]


def pod_selector(pool: InferencePool) -> dict[str, str]:
    """Return the labels of the pool's engine pods; they never change."""
    return {names.COMPONENT_LABEL: _COMPONENT, names.POOL_LABEL: pool.name}


def _labels(pool: InferencePool) -> dict[str, str]:
    return {names.MANAGED_BY_LABEL: names.MANAGED_BY, **pod_selector(pool)}


def _deployment(pool: InferencePool, template: Json) -> Json:
    rollout = pool.spec.rollout
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": pool.name, "labels": _labels(pool)},
        "spec": {
            "replicas": pool.spec.replicas,
            "progressDeadlineSeconds": _LOAD_SECONDS + 60,
            "selector": {"matchLabels": pod_selector(pool)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable},
            },
            "template": template,
        },
    }


def _service(pool: InferencePool) -> Json:
    ports = [{"name": "http", "port": pool.spec.port, "targetPort": "http", "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": pool.name, "labels": _labels(pool)},
        "spec": {"selector": pod_selector(pool), "ports": ports},
    }


def _disruption_budget(pool: InferencePool) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": pool.name, "labels": _labels(pool)},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pod_selector(pool)}},
    }


def _gateway_pool(pool: InferencePool) -> Json:
    """Return the extension's own InferencePool; while its endpoint picker is not there, requests go to any engine."""
    picker = {"name": f"{pool.name}-epp", "port": {"number": _PICKER_PORT}, "failureMode": "FailOpen"}
    return {
        "apiVersion": GATEWAY_POOL.api_version,
        "kind": GATEWAY_POOL.name,
        "metadata": {"name": pool.name, "labels": _labels(pool)},
        "spec": {
            "selector": {"matchLabels": pod_selector(pool)},
            "targetPorts": [{"number": pool.spec.port}],
            "endpointPickerRef": picker,
        },
    }


def _template(pool: InferencePool) -> Json:
    """Return the pod template without the sidecar: ours, and the user's fragment over it."""
    drain = round(pool.spec.rollout.drain.seconds)
    spec: Json = {
        "affinity": tolerant_anti_affinity(pod_selector(pool)),
        "automountServiceAccountToken": False,
        "containers": [_container(pool, drain)],
        "terminationGracePeriodSeconds": drain + _STOP_SECONDS,
    }
    if volume := _model_volume(pool):
        spec["volumes"] = [volume]
    ours: Json = {"metadata": {"labels": _labels(pool)}, "spec": spec}
    whole = merged(ours, pool.spec.engine.pod_template)
    annotations = whole["metadata"].setdefault("annotations", {})
    if len(whole["spec"]["containers"]) > 1:
        annotations.setdefault(names.ENGINE_CONTAINER_ANNOTATION, ENGINE_CONTAINER)
    return whole


def _container(pool: InferencePool, drain: int) -> Json:
    engine, model = pool.spec.engine, pool.spec.model
    probe: Json = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": _PROBE_SECONDS, "timeoutSeconds": 5}
    starting = {"periodSeconds": _START_PROBE_SECONDS, "failureThreshold": _LOAD_SECONDS // _START_PROBE_SECONDS}
    flags = ["--served-model-name", model.name, "--port", str(pool.spec.port)]
    if model.source.type is SourceType.HUGGING_FACE:
        flags += ["--revision", model.revision]
    container: Json = {
        "name": ENGINE_CONTAINER,
        "image": engine.image,
        "command": ["vllm", "serve"],
        "args": [_model_argument(pool), *flags, *engine.args],
        "env": [*_home(pool), *_model_environment(pool), *engine.env],
        "ports": [{"name": "http", "containerPort": pool.spec.port}],
        "startupProbe": {**probe, **starting},
        "readinessProbe": dict(probe),
        "livenessProbe": {**probe, "failureThreshold": 6},
        # endpoints go at once, so no request comes in meanwhile; those under way may finish
        "lifecycle": {"preStop": {"sleep": {"seconds": drain}}},
        "securityContext": writable(restricted(_USER)),
    }
    if engine.resources:
        container["resources"] = json.loads(json.dumps(engine.resources))
    if _model_volume(pool):
        container["volumeMounts"] = [{"name": "model", "mountPath": _MODEL_FOLDER, "readOnly": True}]
    return container


def _model_argument(pool: InferencePool) -> str:
    source = pool.spec.model.source
    if source.hugging_face is not None:
        return source.hugging_face.repository
    if source.persistent_volume_claim is not None:
        return f"{_MODEL_FOLDER}/{source.persistent_volume_claim.path.strip('/')}".rstrip("/")
    return _MODEL_FOLDER


def _home(pool: InferencePool) -> list[Json]:
    """Return where the engine keeps what it downloads and compiles: its user has no home in most images."""
    set_already = {variable.get("name") for variable in pool.spec.engine.env}
    return [] if "HOME" in set_already else [{"name": "HOME", "value": "/tmp"}]


def _model_environment(pool: InferencePool) -> list[Json]:
    source = pool.spec.model.source.hugging_face
    if source is None or source.token_secret_ref is None:
        return []
    token = {"secretKeyRef": {"name": source.token_secret_ref.name, "key": "token"}}
    return [{"name": "HF_TOKEN", "valueFrom": token}]


def _model_volume(pool: InferencePool) -> Json | None:
    source = pool.spec.model.source
    if source.persistent_volume_claim is not None:
        claim = {"claimName": source.persistent_volume_claim.claim_name, "readOnly": True}
        return {"name": "model", "persistentVolumeClaim": claim}
    if source.image is not None:
        return {"name": "model", "image": {"reference": source.image.reference}}
    return None

"""What the operator renders, judged by a real API server: every object is taken, also under restricted Pod Security."""

import json
from typing import Any

import pytest

from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_crds.samples import valid_samples
from shadowserve_operator.desired.config import config_map
from shadowserve_operator.desired.dataplane import dataplane_objects
from shadowserve_operator.desired.engine import engine_objects
from shadowserve_operator.desired.secrets import SecretValues, secret_manifests
from shadowserve_operator.desired.store import store_objects
from shadowserve_operator.desired.terms import sidecar_terms
from shadowserve_operator.settings import OperatorSettings
from shadowserve_testbed.api_server import ApiServer

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built

_NAMESPACE = "restricted"
_SETTINGS = OperatorSettings()
_VALUES = SecretValues("a", "b", b"c")


@pytest.fixture(scope="module")
def namespace(api: ApiServer) -> str:
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": _NAMESPACE, "labels": label}
    api.kubectl("create", "-f", "-", manifest={"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    return _NAMESPACE


def _cache(name: str) -> PrefixCache:
    return PrefixCache.parse(_placed(valid_samples()[name]))


def _placed(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "metadata": {**body["metadata"], "namespace": _NAMESPACE, "uid": "0-1-2"}}


def _objects(cache: PrefixCache) -> list[dict[str, Any]]:
    own = [config_map(cache), *secret_manifests(cache, _VALUES)]
    return [*own, *store_objects(cache, _SETTINGS), *dataplane_objects(cache, _SETTINGS)]


def _pod_of(workload: dict[str, Any]) -> dict[str, Any]:
    """Return a pod as the workload's controller would make it."""
    template = workload["spec"]["template"]
    metadata = {**template["metadata"], "generateName": "pod-", "namespace": _NAMESPACE}
    claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())]
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": f"{claim}-0"}} for claim in claims]
    spec = {**template["spec"], "volumes": [*template["spec"].get("volumes", ()), *volumes]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _dry_run(api: ApiServer, body: dict[str, Any]) -> dict[str, Any]:
    options = ("--server-side", "--dry-run=server", "--validate=strict", "--field-manager=test", "-o", "json")
    found: dict[str, Any] = json.loads(api.kubectl("apply", *options, "-f", "-", manifest=body))
    return found


def _created(api: ApiServer, body: dict[str, Any]) -> dict[str, Any]:
    options = ("--dry-run=server", "--validate=strict", "-o", "json")
    found: dict[str, Any] = json.loads(api.kubectl("create", *options, "-f", "-", manifest=body))
    return found


@pytest.mark.parametrize("name", [name for name, body in valid_samples().items() if body["kind"] == "PrefixCache"])
def test_everything_of_a_cache_is_taken_and_its_pods_are_restricted(api: ApiServer, namespace: str, name: str) -> None:
    for body in _objects(_cache(name)):
        assert _dry_run(api, body)["metadata"]["namespace"] == namespace
        if "template" in body.get("spec", {}):
            _created(api, _pod_of(body))


@pytest.mark.parametrize("cached", [True, False])
def test_everything_of_a_pool_is_taken_and_its_pods_are_restricted(
    api: ApiServer, namespace: str, cached: bool
) -> None:
    pool = InferencePool.parse(_placed(valid_samples()["inferencepool"]))
    terms = sidecar_terms(_cache("prefixcache-managed"), _SETTINGS) if cached else None
    objects = engine_objects(pool, terms)
    assert objects.detached == ""
    for body in objects.objects:
        assert _dry_run(api, body)["metadata"]["namespace"] == namespace
    pod = _created(api, _pod_of(objects.objects[0]))
    assert len(pod["spec"].get("initContainers", ())) == (2 if cached else 0)

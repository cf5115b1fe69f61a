"""Whose chunks a pod reads: from the rendered pod to the roots of its engine's key chains."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeCluster
from test_operator_inferencepool import ENGINES, NOW, POOL, a_cluster, pool, put_cache, until_quiet

from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.identity import CacheIdentity, ModelSource
from shadowserve_dataplane.connector.messages import Welcome
from shadowserve_dataplane.sidecar.settings import namespace_salt, parse_config, scoped
from shadowserve_operator.desired.admission import decide, read_review
from shadowserve_operator.desired.config import sidecar_config
from shadowserve_operator.desired.scope import owner_scope
from shadowserve_operator.desired.terms import sidecar_terms
from shadowserve_operator.kinds import DEPLOYMENT, PREFIX_CACHE, Json, Ref
from shadowserve_operator.pool_reconcile import reconcile_inferencepool
from shadowserve_operator.settings import OperatorSettings

KV = Ref(PREFIX_CACHE, "default", "kv")


def variable(pod_spec: Json) -> Json:
    """Return the variable that tells the sidecar its scope."""
    (sidecar,) = [each for each in pod_spec["initContainers"] if each["name"] == names.SIDECAR_CONTAINER]
    (found,) = [each for each in sidecar["env"] if each["name"] == names.SCOPE_VARIABLE]
    return dict(found)


def root(cluster: FakeCluster, engines: Ref, folder: Path) -> bytes:
    """Return the root of the key chain of an engine in a pod of that Deployment."""
    scope = variable(cluster.objects[engines]["spec"]["template"]["spec"])["value"]
    salt = folder / "salt"
    salt.write_bytes(b"the cache's secret")
    written = sidecar_config(PrefixCache.parse(cluster.objects[KV]))
    config = parse_config(json.dumps(written | ({"saltFile": str(salt)} if "saltFile" in written else {})))
    welcome = Welcome(1, 1, None, None, 20, 5000, config.isolation, namespace_salt(scoped(config, scope)))
    roots = CacheIdentity(ModelSource(list, given=b"model"), KvShape(2, 2, 8), 1).roots(welcome, None, None)
    assert roots is not None
    return bytes(roots[0])


async def two_pools(**tenancy: str) -> tuple[FakeCluster, Ref]:
    cluster = a_cluster()
    put_cache(cluster, tenancy=tenancy)
    second = pool()
    cluster.put({**second, "metadata": {**second["metadata"], "name": "other"}})
    await until_quiet(cluster)
    await reconcile_inferencepool(cluster, "default", "other", OperatorSettings(), lambda: NOW)
    return cluster, Ref(DEPLOYMENT, "default", "other")


@pytest.mark.parametrize(("isolation", "share"), [("PerPool", False), ("PerTenant", False), ("Shared", True)])
async def test_pools_of_one_cache_share_chunks_only_where_it_is_shared(
    isolation: str, share: bool, tmp_path: Path
) -> None:
    cluster, other = await two_pools(isolation=isolation)
    assert (root(cluster, ENGINES, tmp_path) == root(cluster, other, tmp_path)) is share


async def test_a_pool_keeps_its_chunks_until_it_is_deleted(tmp_path: Path) -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    before = root(cluster, ENGINES, tmp_path)
    cluster.put(pool(replicas=5, engine={"image": "vllm:2"}))
    await until_quiet(cluster)
    assert root(cluster, ENGINES, tmp_path) == before, "neither new pods nor a new operator lose them"
    cluster.remove(POOL)
    assert ENGINES not in cluster.objects
    cluster.put(pool())
    await until_quiet(cluster)
    assert root(cluster, ENGINES, tmp_path) != before


def owned(kind: str, name: str, uid: str, api: str = "apps/v1", **labels: str) -> Json:
    owner = {"apiVersion": api, "kind": kind, "name": name, "uid": uid, "controller": True}
    watching = {**owner, "uid": "not-the-controller", "controller": False}
    return {"metadata": {"labels": labels, "ownerReferences": [watching, owner]}}


@pytest.mark.parametrize(
    ("pod", "scope"),
    [
        (owned("ReplicaSet", "chat-7f9c", "1", **{"pod-template-hash": "7f9c"}), "Deployment/chat"),
        (owned("ReplicaSet", "chat-b2d4", "2", **{"pod-template-hash": "b2d4"}), "Deployment/chat"),
        (owned("ReplicaSet", "alone", "3"), "owner/3"),
        (owned("ReplicaSet", "alone", "3", **{"pod-template-hash": "7f9c"}), "owner/3"),
        (owned("ReplicaSet", "chat-7f9c", "4", "other.io/v1", **{"pod-template-hash": "7f9c"}), "owner/4"),
        (owned("StatefulSet", "chat", "5"), "owner/5"),
        ({"metadata": {"name": "bare"}}, ""),
        ({"metadata": {"name": "bare", "ownerReferences": None, "labels": None}}, ""),
    ],
)
def test_pods_of_one_workload_share_also_after_a_rollout(pod: Json, scope: str) -> None:
    assert owner_scope(pod) == scope


def admitted(metadata: Json) -> Json:
    """Return the spec of a pod that came for admission."""
    terms = sidecar_terms(PrefixCache.parse({"metadata": {"name": "kv", "namespace": "llm"}}), OperatorSettings())
    metadata = {**metadata, "labels": {**metadata.get("labels", {}), names.CACHE_LABEL: "kv"}}
    body = {"kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "vllm", "image": "i"}]}}
    review: dict[str, Any] = {"request": {"uid": "1", "namespace": "llm", "object": body}}
    (spec, *_) = json.loads(b64decode(decide(read_review(review), terms).response["response"]["patch"]))
    assert spec["path"] == "/spec"
    return dict(spec["value"])


async def test_a_pod_that_says_it_is_a_pools_own_does_not_get_its_scope() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    of_pool = variable(cluster.objects[ENGINES]["spec"]["template"]["spec"])["value"]
    uid = cluster.objects[POOL]["metadata"]["uid"]
    for claimed in (uid, of_pool):
        claims = owned("InferencePool", POOL.name, claimed, names.API_VERSION)["metadata"]
        assert variable(admitted(claims))["value"] != of_pool


def test_a_pod_that_opts_in_has_the_scope_of_its_workload_and_alone_its_own_uid() -> None:
    of_deployment = owned("ReplicaSet", "chat-7f9c", "1", **{"pod-template-hash": "7f9c"})["metadata"]
    assert variable(admitted(of_deployment))["value"] == "Deployment/chat"
    assert variable(admitted({"name": "bare"}))["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}

"""A PrefixCache on a cluster in memory: its nodes, pods and what Kubernetes' controllers would do."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fakes import FakeCluster, FakeNetwork

from shadowserve_crds import names
from shadowserve_operator.kinds import (
    DAEMON_SET,
    POD,
    PREFIX_CACHE,
    STATEFUL_SET,
    Json,
    Kind,
    Ref,
)
from shadowserve_operator.reconcile import Result, reconcile_prefixcache
from shadowserve_operator.settings import OperatorSettings

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SETTINGS = OperatorSettings()
CACHE = Ref(PREFIX_CACHE, "default", "kv")


def cache(name: str = "kv", **spec: Any) -> Json:
    metadata = {"name": name, "namespace": "default", "generation": 1}
    return {"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": spec}


def node(name: str, ready: bool = True, **labels: str) -> Json:
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-11-24T11:00:00Z"}
    metadata = {"name": name, "labels": {key.replace("__", "/"): value for key, value in labels.items()}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": {"conditions": [condition]}}


def card(name: str, host: str, ready: bool = True) -> Json:
    body = node(name, ready)
    body["metadata"]["labels"] = {names.DEFAULT_HOST_LABEL: host}
    return body


def plane(on: str, ready: bool = True, since: datetime = NOW - timedelta(hours=1)) -> Json:
    labels = {names.CACHE_LABEL: "kv", names.COMPONENT_LABEL: "data-plane", names.MANAGED_BY_LABEL: names.MANAGED_BY}
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": since.isoformat()}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"plane-{on}", "namespace": "default", "labels": labels},
        "spec": {"nodeName": on},
        "status": {"phase": "Running", "podIP": "10.1.0.9", "conditions": [condition]},
    }


def engine(name: str, on: str) -> Json:
    metadata = {
        "name": name,
        "namespace": "default",
        "labels": {names.CACHE_LABEL: "kv"},
        "annotations": {names.INJECTED_ANNOTATION: "1"},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": on}, "status": {}}


def a_cluster() -> FakeCluster:
    cluster = FakeCluster("default")
    cluster.put(node("host-0"))
    cluster.put(card("card-0", "host-0"))
    cluster.put(cache())
    return cluster


async def reconcile(cluster: FakeCluster, now: datetime = NOW, network: FakeNetwork | None = None) -> Result:
    return await reconcile_prefixcache(cluster, "default", "kv", SETTINGS, lambda: now, network or FakeNetwork())


async def until_quiet(cluster: FakeCluster, now: datetime = NOW, network: FakeNetwork | None = None) -> Result:
    for _ in range(10):
        result = await reconcile(cluster, now, network)
        if not result.writes:
            return result
    raise AssertionError(f"still writing: {cluster.writes[-5:]}")


def server(number: int = 0, restarts: int = 0) -> Json:
    labels = {names.CACHE_LABEL: "kv", names.COMPONENT_LABEL: "store", names.MANAGED_BY_LABEL: names.MANAGED_BY}
    metadata = {"name": f"kv-store-{number}", "namespace": "default", "labels": labels}
    status = {"podIP": f"10.2.0.{number}", "containerStatuses": [{"restartCount": restarts}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


def become_ready(cluster: FakeCluster) -> None:
    """Do what Kubernetes' controllers would."""
    cluster.put(server())
    cluster.objects[Ref(STATEFUL_SET, "default", "kv-store")]["status"] = {"readyReplicas": 1}
    cluster.objects[Ref(DAEMON_SET, "default", "kv-data-plane")]["status"] = {"desiredNumberScheduled": 1}
    cluster.put(plane("card-0"))


def conditions(cluster: FakeCluster, ref: Ref = CACHE) -> dict[str, tuple[str, str]]:
    listed = cluster.objects[ref]["status"]["conditions"]
    return {each["type"]: (each["status"], each["reason"]) for each in listed}


def message(cluster: FakeCluster, kind: str) -> str:
    return next(each["message"] for each in cluster.objects[CACHE]["status"]["conditions"] if each["type"] == kind)


def annotation(cluster: FakeCluster, pod: str) -> str | None:
    found: str | None = cluster.objects[Ref(POD, "default", pod)]["metadata"]["annotations"].get(
        names.DATA_PLANE_ANNOTATION
    )
    return found


def kept(cluster: FakeCluster, kind: Kind) -> list[str]:
    return [ref.name for ref in sorted(cluster.objects) if ref.kind == kind]

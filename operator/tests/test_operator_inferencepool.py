"""An InferencePool from creation to scaling on a cluster in memory, faults included."""

from datetime import UTC, datetime
from typing import Any

import pytest
from fakes import FakeCluster, Killed

from shadowserve_crds import names
from shadowserve_crds.inferencepool import InferencePoolStatus
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.desired.config import Login, config_map
from shadowserve_operator.kinds import (
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    GATEWAY_POOL,
    INFERENCE_POOL,
    POD,
    PREFIX_CACHE,
    SERVICE,
    VOLUME_CLAIM,
    Json,
    Ref,
)
from shadowserve_operator.pool_reconcile import reconcile_inferencepool
from shadowserve_operator.reconcile import Result
from shadowserve_operator.settings import OperatorSettings

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
POOL = Ref(INFERENCE_POOL, "default", "chat")
ENGINES = Ref(DEPLOYMENT, "default", "chat")


def pool(**changes: Any) -> Json:
    source = {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "models", "path": "smol"}}
    spec = {"model": {"name": "smol", "source": source}, "engine": {"image": "vllm:1"}, "replicas": 2}
    spec |= {"cacheRef": {"name": "kv"}, **changes}
    metadata = {"name": "chat", "namespace": "default", "generation": 1}
    return {"apiVersion": names.API_VERSION, "kind": "InferencePool", "metadata": metadata, "spec": spec}


def claim() -> Json:
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models", "namespace": "default"}}


def cache(**spec: Any) -> Json:
    metadata = {"name": "kv", "namespace": "default"}
    return {"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": spec}


def a_cluster(**changes: Any) -> FakeCluster:
    cluster = FakeCluster("default")
    cluster.put(claim())
    put_cache(cluster)
    cluster.put(pool(**changes))
    return cluster


def put_cache(cluster: FakeCluster, login: Login = Login(), generation: int = 1, **spec: Any) -> None:
    """Put a PrefixCache there, or edit it, and the settings of its sidecars, as its own reconcile does."""
    body = cache(**spec)
    live = cluster.put({**body, "metadata": {**body["metadata"], "generation": generation}})
    cluster.put(config_map(PrefixCache.parse(live), login))


def pod(name: str, told: str | None = None, injected: bool = True, **status: Any) -> Json:
    labels = {names.COMPONENT_LABEL: "engine", names.POOL_LABEL: "chat"}
    annotations = {names.INJECTED_ANNOTATION: "1"} if injected else {}
    annotations |= {} if told is None else {names.DATA_PLANE_ANNOTATION: told}
    metadata = {"name": name, "namespace": "default", "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


async def reconcile(cluster: FakeCluster) -> Result:
    return await reconcile_inferencepool(cluster, "default", "chat", OperatorSettings(), lambda: NOW)


async def until_quiet(cluster: FakeCluster) -> Result:
    for _ in range(10):
        result = await reconcile(cluster)
        if not result.writes:
            return result
    raise AssertionError(f"still writing: {cluster.writes[-5:]}")


def become_ready(cluster: FakeCluster, replicas: int = 2) -> None:
    """Do what the Deployment's controller would."""
    generation = cluster.objects[ENGINES]["metadata"]["generation"]
    numbers = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas"), replicas)
    cluster.objects[ENGINES]["status"] = {"observedGeneration": generation, **numbers}


def conditions(cluster: FakeCluster) -> dict[str, tuple[str, str]]:
    listed = cluster.objects[POOL]["status"]["conditions"]
    return {each["type"]: (each["status"], each["reason"]) for each in listed}


def message(cluster: FakeCluster, kind: str) -> str:
    return next(str(each["message"]) for each in cluster.objects[POOL]["status"]["conditions"] if each["type"] == kind)


async def test_a_pool_becomes_engines_with_the_sidecar_and_is_ready_when_they_are() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    template = cluster.objects[ENGINES]["spec"]["template"]
    assert names.SIDECAR_CONTAINER in {each["name"] for each in template["spec"]["initContainers"]}
    assert {Ref(SERVICE, "default", "chat"), Ref(DISRUPTION_BUDGET, "default", "chat")} <= set(cluster.objects)
    assert conditions(cluster)["Ready"] == ("False", "Pending")
    become_ready(cluster)
    assert (await until_quiet(cluster)).settled
    assert set(conditions(cluster).values()) == {("True", "Succeeded")}
    assert cluster.objects[POOL]["status"]["readyReplicas"] == 2
    assert cluster.objects[POOL]["status"]["selector"] == f"{names.COMPONENT_LABEL}=engine,{names.POOL_LABEL}=chat"


async def test_a_settled_pool_is_written_to_never() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    become_ready(cluster)
    await until_quiet(cluster)
    before = len(cluster.writes)
    for _ in range(5):
        await reconcile(cluster)
    assert len(cluster.writes) == before


async def test_what_a_user_changes_or_deletes_is_repaired() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    cluster.objects[ENGINES]["spec"]["template"]["spec"]["containers"][0]["image"] = "other"
    cluster.remove(Ref(SERVICE, "default", "chat"))
    await until_quiet(cluster)
    assert cluster.objects[ENGINES]["spec"]["template"]["spec"]["containers"][0]["image"] == "vllm:1"
    assert Ref(SERVICE, "default", "chat") in cluster.objects


async def test_scaling_changes_the_replicas_and_drops_what_one_replica_does_not_need() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    cluster.objects[POOL]["spec"]["replicas"] = 1
    await until_quiet(cluster)
    assert cluster.objects[ENGINES]["spec"]["replicas"] == 1
    assert Ref(DISRUPTION_BUDGET, "default", "chat") not in cluster.objects


async def test_a_cache_that_does_not_exist_is_named_and_heals_when_it_comes() -> None:
    cluster = a_cluster()
    cluster.remove(Ref(PREFIX_CACHE, "default", "kv"))
    await until_quiet(cluster)
    assert conditions(cluster)["CacheAttached"] == ("False", "CacheNotFound")
    assert "PrefixCache kv does not exist in default: create it" in message(cluster, "CacheAttached")
    assert ENGINES not in cluster.objects
    put_cache(cluster)
    await until_quiet(cluster)
    assert ENGINES in cluster.objects


async def test_engines_that_run_are_left_alone_while_their_cache_is_missing() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    before = cluster.objects[ENGINES]
    cluster.remove(Ref(PREFIX_CACHE, "default", "kv"))
    await until_quiet(cluster)
    assert cluster.objects[ENGINES] == before


async def test_a_model_that_is_not_there_is_named() -> None:
    cluster = a_cluster()
    cluster.remove(Ref(VOLUME_CLAIM, "default", "models"))
    await until_quiet(cluster)
    assert conditions(cluster)["EnginesReady"] == ("False", "ModelNotFound")
    assert "PersistentVolumeClaim models does not exist in default: create it" in message(cluster, "EnginesReady")
    cluster.put(claim())
    await until_quiet(cluster)
    assert ENGINES in cluster.objects


async def test_a_pool_without_a_cache_is_plain_vllm() -> None:
    cluster = a_cluster(cacheRef=None)
    await until_quiet(cluster)
    assert "initContainers" not in cluster.objects[ENGINES]["spec"]["template"]["spec"]
    assert conditions(cluster)["CacheAttached"] == ("True", "NotNeeded")


@pytest.mark.parametrize(
    ("engine", "condition", "said"),
    [
        ({"args": ["--port=1"]}, "EnginesReady", "spec.engine.args sets --port=1: use spec.port"),
        ({"blockTokens": 48}, "CacheAttached", "blockTokens 48 does not divide the 256 chunkTokens"),
        ({"args": ["--kv-transfer-config={}"]}, "CacheAttached", "sets --kv-transfer-config itself"),
    ],
)
async def test_what_cannot_work_says_which_field(engine: Json, condition: str, said: str) -> None:
    cluster = a_cluster(engine={"image": "vllm:1", **engine})
    await until_quiet(cluster)
    assert conditions(cluster)[condition][0] == "False"
    assert said in message(cluster, condition)


async def test_pods_that_cannot_start_and_pods_without_the_sidecar_are_told_of() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    cluster.put(pod("chat-a", containerStatuses=[{"name": "engine", "state": waiting}]))
    cluster.put(pod("chat-b", injected=False))
    await until_quiet(cluster)
    failing = "pod chat-a: container engine: ImagePullBackOff no such image; see kubectl -n default describe pod chat-a"
    assert message(cluster, "EnginesReady") == failing
    without = "these pods run without the sidecar: chat-b; see shadowserve explain chat-b -n default"
    assert message(cluster, "CacheAttached") == without


async def test_pods_are_counted_by_where_their_data_plane_is() -> None:
    cluster = a_cluster()
    for body in (pod("a", "10.0.0.1:9464"), pod("b", ""), pod("c"), pod("d", injected=False)):
        cluster.put(body)
    await until_quiet(cluster)
    shown = "1 DPU, 2 host, 1 none"
    assert cluster.objects[POOL]["status"]["dataPlanes"] == {"dpu": 1, "host": 2, "none": 1, "shown": shown}


async def test_somebody_elses_deployment_is_left_alone_and_told_of() -> None:
    cluster = a_cluster()
    theirs = {"name": "chat", "namespace": "default", "labels": {}}
    cluster.put({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": theirs, "spec": {"replicas": 7}})
    await until_quiet(cluster)
    assert cluster.objects[ENGINES]["spec"] == {"replicas": 7}
    assert "the operator did not make it" in message(cluster, "EnginesReady")


async def test_an_invalid_pool_says_why_and_keeps_what_runs() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    cluster.objects[POOL]["spec"]["port"] = "http"
    await until_quiet(cluster)
    assert conditions(cluster) == {"Ready": ("False", "Failed")}
    assert "spec.port" in message(cluster, "Ready")
    known = set(InferencePoolStatus.model_json_schema(by_alias=True)["properties"])
    assert set(cluster.objects[POOL]["status"]) <= known, "the API server refuses fields of another kind"
    assert ENGINES in cluster.objects


async def test_an_operator_killed_at_any_call_leaves_what_the_next_one_completes() -> None:
    whole = a_cluster()
    await until_quiet(whole)
    for call in range(200):
        cluster = a_cluster()
        cluster.die_at = call
        try:
            await until_quiet(cluster)
        except Killed:
            cluster.die_at = None
            await until_quiet(cluster)
        else:
            break
        assert _contents(cluster) == _contents(whole), f"killed at call {call}"
    else:
        raise AssertionError("a reconcile of more than 200 calls")


async def test_an_event_tells_when_the_pool_becomes_ready() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    become_ready(cluster)
    await until_quiet(cluster)
    assert [event["reason"] for event in cluster.events] == ["Pending", "Succeeded"]
    assert cluster.events[-1]["message"] == "2 engines serve smol"


def _contents(cluster: FakeCluster) -> dict[str, Any]:
    bodies = {str(ref): body for ref, body in cluster.objects.items() if ref.kind != POD}
    return {name: {key: body.get(key) for key in ("spec", "status", "data")} for name, body in bodies.items()}


async def test_a_gateway_has_a_pool_of_the_engines_if_it_is_asked_for() -> None:
    cluster = a_cluster(gateway={"inferencePool": "Create"})
    await reconcile(cluster)
    theirs = cluster.objects[Ref(GATEWAY_POOL, "default", "chat")]["spec"]
    service = cluster.objects[Ref(SERVICE, "default", "chat")]["spec"]
    assert theirs["selector"]["matchLabels"] == service["selector"]
    assert theirs["targetPorts"] == [{"number": 8000}]
    assert theirs["endpointPickerRef"]["failureMode"] == "FailOpen"
    cluster.put(pool())
    await reconcile(cluster)
    assert Ref(GATEWAY_POOL, "default", "chat") not in cluster.objects
    assert POOL in cluster.objects, "ours has the same kind and name"


async def test_a_gateway_that_is_not_installed_is_told_and_keeps_nothing_from_running() -> None:
    cluster = a_cluster(gateway={"inferencePool": "Create"}, replicas=0)
    cluster.not_served.add(GATEWAY_POOL)
    await reconcile(cluster)
    await reconcile(cluster)
    assert Ref(GATEWAY_POOL, "default", "chat") not in cluster.objects
    (told,) = [each for each in cluster.objects[POOL]["status"]["conditions"] if each["type"] == "EnginesReady"]
    assert told["status"] == "True"
    assert "not installed" in told["message"]

"""The operator ends at any call of its work, on a real API server, and the next one makes the same of it.

The reconciles are the operator's own; what is in between is a wire that breaks: before the k-th call, or, for calls
that write, after it, when the answer is lost. Whatever chance and time decide is left out of the comparison.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from operator_story import cache, create, node, pool
from shadowserve_crds import names
from shadowserve_operator.cluster import ApiCluster
from shadowserve_operator.kinds import DEPLOYMENT, DPU_BINDING, INFERENCE_POOL, POD, PREFIX_CACHE, Json, Ref
from shadowserve_operator.observe import CHILD_KINDS
from shadowserve_operator.pool_reconcile import reconcile_inferencepool
from shadowserve_operator.reconcile import forget_prefixcache, reconcile_prefixcache
from shadowserve_operator.settings import OperatorSettings
from shadowserve_testbed.api_server import ApiServer

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
_READS, _WRITES = ("get", "list"), ("apply", "overwrite", "delete", "write_status", "annotate", "create_event")
_KINDS = (*CHILD_KINDS, DEPLOYMENT, POD, PREFIX_CACHE, INFERENCE_POOL)
_CARD = Ref(DPU_BINDING, "", "card-0")
_CHANCE = re.compile(
    r'\\?"(uid|resourceVersion|creationTimestamp|generation|clusterIPs?|cacheGeneration|settings'
    r'|shadowserve.io/(?:config|login))\\?": (\\?"[^"\\]*\\?"|\d+|\[[^\]]*\]),? ?'
)
_RESOURCES = ((PREFIX_CACHE, "kv"), (INFERENCE_POOL, "chat"))
_MOST_ROUNDS = 12


class Killed(BaseException):
    """The operator's process ended here."""


@dataclass(slots=True)
class Wire:
    """The way to the API server; breaks at call `at`: before it, or `after` it, when only its answer is lost."""

    cluster: ApiCluster
    at: int | None = None
    after: bool = False
    calls: int = 0
    writes: list[int] | None = None

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        assert method in (*_READS, *_WRITES)

        async def call(*arguments: Any, **named: Any) -> Any:
            number = self.calls
            self.calls += 1
            if number == self.at and not self.after:
                raise Killed
            answer = await getattr(self.cluster, method)(*arguments, **named)
            if method in _WRITES and self.writes is not None:
                self.writes.append(number)
            if number == self.at:
                raise Killed
            return answer

        return call


Work = Callable[[Any, str], Awaitable[int]]
"""One round of the operator's work in a namespace; returns how many objects were written."""


async def keep(wire: Any, namespace: str) -> int:
    """Reconcile what is there, as the operator's workers do."""
    settings = OperatorSettings(namespaces=(namespace,))
    first = await reconcile_prefixcache(wire, namespace, "kv", settings, lambda: NOW)
    second = await reconcile_inferencepool(wire, namespace, "chat", settings, lambda: NOW)
    return first.writes + second.writes


async def forget(wire: Any, namespace: str) -> int:
    """Clean up behind a PrefixCache that is being deleted."""
    return await forget_prefixcache(wire, namespace, "kv", OperatorSettings(namespaces=(namespace,)))


async def until_quiet(work: Work, wire: Any, namespace: str) -> None:
    for _ in range(_MOST_ROUNDS):
        if not await work(wire, namespace):
            return
    raise AssertionError("it never stops writing")


@pytest.fixture
async def cluster(api: ApiServer) -> AsyncIterator[ApiCluster]:
    async with ApiCluster(str(api.kubeconfig)) as connected:
        yield connected


@pytest.fixture(scope="module", autouse=True)
def _card(api: ApiServer) -> Iterator[None]:
    create(api, node("host-0"), node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))
    yield
    api.kubectl("delete", "node", "host-0", "card-0")


async def begun(api: ApiServer, namespace: str, *finalizers: str) -> None:
    """Make a namespace with a cache, a pool, and an injected pod on the card's host."""
    metadata = {"name": "engine", "namespace": namespace, "labels": {names.CACHE_LABEL: "kv"}}
    metadata["annotations"] = {names.INJECTED_ANNOTATION: "0.1.0"}
    spec = {"nodeName": "host-0", "containers": [{"name": "engine", "image": "vllm:1"}]}
    bodies = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        _placed(cache("kv"), namespace, finalizers),
        _placed(pool("chat", replicas=2, cacheRef={"name": "kv"}), namespace, finalizers),
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": bodies}
    await asyncio.to_thread(api.kubectl, "create", "-f", "-", manifest=listed)


def _placed(body: Json, namespace: str, finalizers: tuple[str, ...]) -> Json:
    return {**body, "metadata": {**body["metadata"], "namespace": namespace, "finalizers": list(finalizers)}}


async def ended(cluster: ApiCluster, namespace: str) -> None:
    """Remove what another round would meet; nothing collects garbage here."""
    for kind, name in _RESOURCES:
        await cluster.delete(Ref(kind, namespace, name))
    await cluster.delete(_CARD)


async def released(api: ApiServer, namespace: str) -> None:
    """Do what the operator does when it has cleaned up: let the resources go."""
    nothing = json.dumps({"metadata": {"finalizers": None}})
    for what in ("pfc/kv", "inferencepool.shadowserve.io/chat"):
        await asyncio.to_thread(api.kubectl, "patch", what, "-n", namespace, "--type=merge", "-p", nothing)


async def shape(cluster: ApiCluster, namespace: str) -> dict[str, str]:
    """Return every object, without what chance, time and the namespace's name decide."""
    bodies = [body for kind in _KINDS for body in await cluster.list(kind, namespace)]
    (scope,) = [body["metadata"]["uid"] for body in bodies if body["kind"] == INFERENCE_POOL.name]
    found = {}
    for body in [*bodies, *await cluster.list(DPU_BINDING)]:
        metadata = body["metadata"]
        if body["kind"] == "Secret":
            body["data"] = sorted(body["data"])
        annotations = {key: value for key, value in metadata.get("annotations", {}).items() if "hash" not in key}
        kept = {"labels": metadata.get("labels"), "annotations": annotations, "owners": metadata.get("ownerReferences")}
        text = json.dumps({**body, "metadata": kept}, sort_keys=True).replace(namespace, "NAMESPACE")
        found[f"{body['kind']}/{metadata['name']}"] = _CHANCE.sub("", text.replace(scope, "SCOPE"))
    return found


async def test_ended_at_any_call_of_making_it_becomes_the_same(api: ApiServer, cluster: ApiCluster) -> None:
    await begun(api, "calm")
    calm = Wire(cluster, writes=[])
    await until_quiet(keep, calm, "calm")
    wanted = await shape(cluster, "calm")
    assert {"Deployment/chat", "StatefulSet/kv-store", "DaemonSet/kv-data-plane", "DPUBinding/card-0"} <= set(wanted)
    await ended(cluster, "calm")
    assert calm.calls > 60
    assert calm.writes
    breaks = [(k, False) for k in range(calm.calls)] + [(k, True) for k in calm.writes]
    for k, after in breaks:
        namespace = f"made-{k}-{'after' if after else 'before'}"
        await begun(api, namespace)
        with pytest.raises(Killed):
            await until_quiet(keep, Wire(cluster, k, after), namespace)
        await until_quiet(keep, Wire(cluster), namespace)
        assert await shape(cluster, namespace) == wanted, f"ended {'after' if after else 'before'} call {k}"
        await ended(cluster, namespace)


async def _deleting(cluster: ApiCluster, namespace: str) -> None:
    for kind, name in _RESOURCES:
        await cluster.delete(Ref(kind, namespace, name))


async def _nothing_is_left(cluster: ApiCluster, namespace: str) -> None:
    """Check that only what garbage collection takes is left: objects whose owner is on its way out."""
    owners = [await cluster.get(Ref(kind, namespace, name)) for kind, name in _RESOURCES]
    gone = {owner["metadata"]["uid"] for owner in owners if owner}
    ours = {names.MANAGED_BY_LABEL: names.MANAGED_BY}
    made = [body for kind in _KINDS for body in await cluster.list(kind, namespace, ours)]
    for body in made:
        assert {each["uid"] for each in body["metadata"]["ownerReferences"]} <= gone, body["metadata"]["name"]
    assert await cluster.get(_CARD) is None
    engine = await cluster.get(Ref(POD, namespace, "engine"))
    assert engine is not None
    assert names.DATA_PLANE_ANNOTATION not in engine["metadata"]["annotations"]


async def test_ended_at_any_call_of_cleaning_up_nothing_is_left(api: ApiServer, cluster: ApiCluster) -> None:
    await begun(api, "calmly-gone", names.FINALIZER)
    await until_quiet(keep, Wire(cluster), "calmly-gone")
    await _deleting(cluster, "calmly-gone")
    calm = Wire(cluster, writes=[])
    await until_quiet(forget, calm, "calmly-gone")
    await _nothing_is_left(cluster, "calmly-gone")
    await released(api, "calmly-gone")
    assert calm.writes is not None
    assert len(calm.writes) == 2, "the pod's annotation and the card's binding"
    for k, after in [(k, False) for k in range(calm.calls)] + [(k, True) for k in calm.writes]:
        namespace = f"gone-{k}-{'after' if after else 'before'}"
        await begun(api, namespace, names.FINALIZER)
        await until_quiet(keep, Wire(cluster), namespace)
        await _deleting(cluster, namespace)
        with pytest.raises(Killed):
            await until_quiet(forget, Wire(cluster, k, after), namespace)
        await until_quiet(forget, Wire(cluster), namespace)
        assert await keep(Wire(cluster), namespace) == 0, "nothing is made for what is being deleted"
        await _nothing_is_left(cluster, namespace)
        await released(api, namespace)


async def test_deleted_while_half_made_nothing_is_left(api: ApiServer, cluster: ApiCluster) -> None:
    await begun(api, "whole")
    calm = Wire(cluster, writes=[])
    await until_quiet(keep, calm, "whole")
    await ended(cluster, "whole")
    for k in calm.writes or ():
        namespace = f"half-{k}"
        await begun(api, namespace, names.FINALIZER)
        with pytest.raises(Killed):
            await until_quiet(keep, Wire(cluster, k, after=True), namespace)
        await _deleting(cluster, namespace)
        await until_quiet(forget, Wire(cluster), namespace)
        assert await keep(Wire(cluster), namespace) == 0, "nothing is made for what is being deleted"
        await _nothing_is_left(cluster, namespace)
        await released(api, namespace)

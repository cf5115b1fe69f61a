"""Reads what matters for one InferencePool into a frozen snapshot. Reads only; decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from shadowserve_crds import names
from shadowserve_crds.base import InvalidResource
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.attachment import SidecarPod
from shadowserve_operator.desired.config import config_map_name, written_settings
from shadowserve_operator.desired.engine import pod_selector
from shadowserve_operator.desired.round_trip import sidecar_address
from shadowserve_operator.errors import NotServed
from shadowserve_operator.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    GATEWAY_POOL,
    POD,
    PREFIX_CACHE,
    SECRET,
    SERVICE,
    VOLUME_CLAIM,
    Json,
    Ref,
    ref_of,
)

_TEMPLATE_LABEL = "pod-template-hash"
_CHILD_KINDS = (DEPLOYMENT, SERVICE, DISRUPTION_BUDGET)


@dataclass(frozen=True, slots=True)
class PoolPod:
    """An engine pod. `told` is its data plane's endpoint, "" = told to use none; `trouble` says what keeps it down.

    `sidecar` is where its sidecar can be asked, "" while it does not run; `template` names what the pod was made from,
    `settings` is the digest of those that it was made for.
    """

    name: str
    injected: bool
    told: str | None
    trouble: str
    sidecar: str = ""
    template: str = ""
    settings: str = ""


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """What is. `cache_error` is why the PrefixCache that the pool names cannot be used, in words.

    `missing` are objects that the pool refers to and that do not exist, in words. `gateway`: the kind of pools of the
    Gateway API inference extension is installed. `settings` is the digest of what sidecars read at their start, None
    while it is not written for the cache's spec.
    """

    children: Mapping[Ref, Json]
    pods: tuple[PoolPod, ...] = ()
    cache: PrefixCache | None = None
    cache_error: str = ""
    missing: tuple[str, ...] = ()
    gateway: bool = False
    settings: str | None = ""

    @property
    def sidecars(self) -> tuple[SidecarPod, ...]:
        """The pods whose sidecar can be asked."""
        return tuple(SidecarPod(pod.name, pod.sidecar, pod.template, pod.settings) for pod in self.pods if pod.sidecar)

    @property
    def deployment(self) -> Json | None:
        """The engines' Deployment."""
        return next((body for ref, body in self.children.items() if ref.kind == DEPLOYMENT), None)


async def observe_pool(cluster: Cluster, pool: InferencePool) -> PoolSnapshot:
    """Return the snapshot."""
    mine = {names.POOL_LABEL: pool.name, names.MANAGED_BY_LABEL: names.MANAGED_BY}
    children: dict[Ref, Json] = {}
    for kind in _CHILD_KINDS:
        children |= {ref_of(body): body for body in await cluster.list(kind, pool.namespace, mine)}
    gateway = await _gateway_pools(cluster, pool, mine)
    children |= {ref_of(body): body for body in gateway or ()}
    pods = await cluster.list(POD, pool.namespace, pod_selector(pool))
    cache, error = await _cache(cluster, pool)
    return PoolSnapshot(
        children=children,
        pods=tuple(_pod(body) for body in pods if not body["metadata"].get("deletionTimestamp")),
        cache=cache,
        cache_error=error,
        missing=await _missing(cluster, pool),
        gateway=gateway is not None,
        settings=await _settings(cluster, cache) if cache else "",
    )


async def _gateway_pools(cluster: Cluster, pool: InferencePool, mine: Mapping[str, str]) -> tuple[Json, ...] | None:
    """Return what the Gateway API inference extension has of this pool; None where it is not installed."""
    try:
        return await cluster.list(GATEWAY_POOL, pool.namespace, mine)
    except NotServed:
        return None


async def _cache(cluster: Cluster, pool: InferencePool) -> tuple[PrefixCache | None, str]:
    if pool.spec.cache_ref is None:
        return None, ""
    name = pool.spec.cache_ref.name
    body = await cluster.get(Ref(PREFIX_CACHE, pool.namespace, name))
    if body is None:
        return None, f"PrefixCache {name} does not exist in {pool.namespace}: create it, or correct spec.cacheRef.name"
    try:
        return PrefixCache.parse(body), ""
    except InvalidResource as invalid:
        return None, str(invalid)


async def _settings(cluster: Cluster, cache: PrefixCache) -> str | None:
    return written_settings(cache, await cluster.get(Ref(CONFIG_MAP, cache.namespace, config_map_name(cache))))


async def _missing(cluster: Cluster, pool: InferencePool) -> tuple[str, ...]:
    source = pool.spec.model.source
    wanted: list[Ref] = []
    if source.persistent_volume_claim is not None:
        wanted.append(Ref(VOLUME_CLAIM, pool.namespace, source.persistent_volume_claim.claim_name))
    if source.hugging_face is not None and source.hugging_face.token_secret_ref is not None:
        wanted.append(Ref(SECRET, pool.namespace, source.hugging_face.token_secret_ref.name))
    absent = [ref for ref in wanted if await cluster.get(ref) is None]
    return tuple(f"{ref} does not exist in {pool.namespace}" for ref in absent)


def _pod(body: Json) -> PoolPod:
    annotations = body["metadata"].get("annotations") or {}
    injected = names.INJECTED_ANNOTATION in annotations
    return PoolPod(
        name=body["metadata"]["name"],
        injected=injected,
        told=annotations.get(names.DATA_PLANE_ANNOTATION),
        trouble=_trouble(body),
        sidecar=sidecar_address(body) if injected else "",
        template=(body["metadata"].get("labels") or {}).get(_TEMPLATE_LABEL, ""),
        settings=annotations.get(names.CONFIG_ANNOTATION, ""),
    )


def _trouble(body: Json) -> str:
    """Return why a container does not come up, as the kubelet says it; nothing while it is only starting."""
    status = body.get("status", {})
    for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"container {container['name']}: {waiting['reason']} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"not scheduled: {condition.get('message', '')}"
    return ""

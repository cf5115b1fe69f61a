"""What an InferencePool's status says: a pure function of what is and what was just done. One function a condition."""

from dataclasses import dataclass
from datetime import datetime

from shadowserve_crds.conditions import Condition, Reason, condition, merged, summary
from shadowserve_crds.inferencepool import InferencePool, InferencePoolCondition, InferencePoolStatus, PodsByPlace
from shadowserve_crds.placement import PlaceName
from shadowserve_operator.desired.assignment import place_of
from shadowserve_operator.desired.attachment import EngineState, SidecarSays, attachment_trouble, still_said
from shadowserve_operator.desired.config import unwritten
from shadowserve_operator.desired.engine import pod_selector, refused_flags, wants_gateway_pool
from shadowserve_operator.desired.generation import cache_generation
from shadowserve_operator.desired.wording import first_few, see, see_pods
from shadowserve_operator.kinds import Obstacle
from shadowserve_operator.pool_observe import PoolPod, PoolSnapshot

_MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What was decided and done. `detached` is why pods cannot have the sidecar; `obstacles` is what was refused.

    `attachments` are what sidecars say of their engines; `rolling`: the engines' Deployment was just written.
    """

    detached: str = ""
    obstacles: tuple[Obstacle, ...] = ()
    attachments: tuple[SidecarSays, ...] = ()
    rolling: bool = False


def next_pool_status(
    pool: InferencePool, snapshot: PoolSnapshot, facts: PoolFacts, now: datetime
) -> InferencePoolStatus:
    """Return the whole status."""
    counted = [
        _engines_ready(pool, snapshot, facts),
        _cache_attached(pool, snapshot, facts),
        _rollout_complete(pool, snapshot, facts),
    ]
    ready = summary(counted, f"{pool.spec.replicas} engines serve {pool.spec.model.name}")
    selector = ",".join(f"{key}={value}" for key, value in sorted(pod_selector(pool).items()))
    return InferencePoolStatus(
        observed_generation=pool.metadata.generation,
        replicas=_number(snapshot, "replicas"),
        ready_replicas=_number(snapshot, "readyReplicas"),
        shown=f"{_number(snapshot, 'readyReplicas')}/{pool.spec.replicas}",
        selector=selector,
        cache_generation=cache_generation(pool, snapshot.cache),
        data_planes=_by_place(snapshot),
        conditions=list(merged(pool.status.conditions, [*counted, ready], pool.metadata.generation, now)),
    )


def chunk_mismatch(pool: InferencePool, snapshot: PoolSnapshot) -> str:
    """Return why the engine's blocks do not fit into the cache's chunks; nothing if they do."""
    if snapshot.cache is None:
        return ""
    chunk, block = snapshot.cache.spec.codec.chunk_tokens, pool.spec.engine.block_tokens
    if chunk % block == 0:
        return ""
    name = snapshot.cache.name
    return f"spec.engine.blockTokens {block} does not divide the {chunk} chunkTokens of PrefixCache {name}: correct one"


def _engines_ready(pool: InferencePool, snapshot: PoolSnapshot, facts: PoolFacts) -> Condition:
    kind, wanted = InferencePoolCondition.ENGINES_READY, pool.spec.replicas
    ready = _number(snapshot, "readyReplicas")
    if snapshot.missing:
        return condition(kind, False, "ModelNotFound", f"{'; '.join(snapshot.missing)}: create it")
    if flags := refused_flags(pool):
        fields = "spec.port, spec.model.name, spec.model.source and spec.model.revision"
        return condition(kind, False, Reason.FAILED, f"spec.engine.args sets {', '.join(flags)}: use {fields}")
    if facts.obstacles:
        return condition(kind, False, Reason.ERROR, "; ".join(map(str, facts.obstacles)))
    if snapshot.deployment is None and snapshot.settings is None and snapshot.cache is not None:
        return condition(kind, False, Reason.PENDING, unwritten(snapshot.cache))
    if ready >= wanted:
        lacking = wants_gateway_pool(pool) and not snapshot.gateway
        note = "; no gateway has a pool of them: the CRDs of the Gateway API inference extension are not installed"
        return condition(kind, True, Reason.SUCCEEDED, f"{ready} of {wanted} engines serve{note if lacking else ''}")
    if troubled := [pod for pod in snapshot.pods if pod.trouble]:
        return condition(kind, False, "PodsFailing", _failing(pool, troubled[0]))
    message = f"{ready} of {wanted} engines serve; a model may load for minutes"
    return condition(kind, False, Reason.PENDING, f"{message}; {see_pods(pool.namespace, pod_selector(pool))}")


def _failing(pool: InferencePool, pod: PoolPod) -> str:
    return f"pod {pod.name}: {pod.trouble}; {see('pod', pod.name, pool.namespace)}"


def _cache_attached(pool: InferencePool, snapshot: PoolSnapshot, facts: PoolFacts) -> Condition:
    kind = InferencePoolCondition.CACHE_ATTACHED
    if pool.spec.cache_ref is None:
        return condition(kind, True, Reason.NOT_NEEDED, "the pool uses no PrefixCache")
    if snapshot.cache is None:
        return condition(kind, False, "CacheNotFound", snapshot.cache_error)
    if mismatch := chunk_mismatch(pool, snapshot):
        return condition(kind, False, Reason.FAILED, mismatch)
    if facts.detached:
        return condition(kind, False, "PodsWithoutSidecar", facts.detached)
    if without := [pod for pod in snapshot.pods if not pod.injected]:
        named = first_few((pod.name for pod in without), _MOST_NAMES)
        why = f"see shadowserve explain {without[0].name} -n {pool.namespace}"
        return condition(kind, False, "PodsWithoutSidecar", f"these pods run without the sidecar: {named}; {why}")
    before = next((each for each in pool.status.conditions if each.type == kind), None)
    trouble = attachment_trouble(pool, snapshot.sidecars, facts.attachments, snapshot.settings)
    if trouble := still_said(before, trouble, _silent(snapshot, facts)):
        return trouble
    return condition(kind, True, Reason.SUCCEEDED, f"every pod uses PrefixCache {snapshot.cache.name}")


def _silent(snapshot: PoolSnapshot, facts: PoolFacts) -> set[str]:
    """Return the pods whose sidecar does not run now, or did not answer."""
    unanswered = {each.plane.name for each in facts.attachments if each.state is EngineState.UNREACHABLE}
    return unanswered | {pod.name for pod in snapshot.pods if not pod.sidecar}


def _rollout_complete(pool: InferencePool, snapshot: PoolSnapshot, facts: PoolFacts) -> Condition:
    kind, deployment = InferencePoolCondition.ROLLOUT_COMPLETE, snapshot.deployment
    if snapshot.settings is None and snapshot.cache is not None:
        return condition(kind, False, Reason.PENDING, unwritten(snapshot.cache))
    wanted, updated = pool.spec.replicas, _number(snapshot, "updatedReplicas")
    seen = deployment is not None and deployment.get("status", {}).get("observedGeneration", 0)
    current = deployment is not None and seen == deployment["metadata"].get("generation", 0)
    rollout = f"see kubectl -n {pool.namespace} rollout status deployment {pool.name}"
    if facts.rolling:
        return condition(kind, False, Reason.PENDING, f"what the pods are made of has just changed; {rollout}")
    if current and updated >= wanted and _number(snapshot, "replicas") == updated:
        return condition(kind, True, Reason.SUCCEEDED, "all pods are of the current template")
    return condition(kind, False, Reason.PENDING, f"{updated} of {wanted} pods are of the current template; {rollout}")


def _by_place(snapshot: PoolSnapshot) -> PodsByPlace:
    order = snapshot.cache.spec.placement.order if snapshot.cache else ()
    places = [place_of(pod.told, order) for pod in snapshot.pods if pod.injected]
    on_card, on_host = places.count(PlaceName.DPU), places.count(PlaceName.HOST)
    nowhere = len(snapshot.pods) - on_card - on_host
    parts = [f"{count} {name}" for count, name in ((on_card, "DPU"), (on_host, "host"), (nowhere, "none")) if count]
    return PodsByPlace(dpu=on_card, host=on_host, none=nowhere, shown=", ".join(parts))


def _number(snapshot: PoolSnapshot, field: str) -> int:
    status = snapshot.deployment.get("status", {}) if snapshot.deployment else {}
    return int(status.get(field, 0))

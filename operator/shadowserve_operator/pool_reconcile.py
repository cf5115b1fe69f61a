"""The whole story of an InferencePool, one path for every occasion: observe, decide what should be, plan, act, tell.

While the PrefixCache that a pool names does not exist, its engines are left as they are: started without the cache
they would all be replaced as soon as it comes, and often both are created in the same moment. Likewise after an edit of
it: pods that started before their settings are written would keep the old ones. Meanwhile engines that are there can be
scaled, and what is around them is kept.
"""

import logging

from shadowserve_crds.base import InvalidResource
from shadowserve_crds.inferencepool import InferencePool, InferencePoolStatus
from shadowserve_operator.apply import apply
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.engine import EngineObjects, around_engines, engine_objects, refused_flags
from shadowserve_operator.desired.round_trip import Plane
from shadowserve_operator.desired.terms import sidecar_terms
from shadowserve_operator.kinds import DEPLOYMENT, INFERENCE_POOL, Ref, ref_of
from shadowserve_operator.network import Network, PodNetwork
from shadowserve_operator.observe import with_namesakes
from shadowserve_operator.plan import Plan, Step, plan_changes, scaling
from shadowserve_operator.pool_observe import PoolSnapshot, observe_pool
from shadowserve_operator.pool_status import PoolFacts, chunk_mismatch, next_pool_status
from shadowserve_operator.reconcile import Clock, Result
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.status import settled
from shadowserve_operator.telling import tell_invalid, tell_status

_MOST_SIDECARS = 64
"""So many pods of a pool are asked how their engines attached."""
_log = logging.getLogger(__name__)


async def reconcile_inferencepool(
    cluster: Cluster,
    namespace: str,
    name: str,
    settings: OperatorSettings,
    clock: Clock,
    network: Network = PodNetwork(),
) -> Result:
    """Make the cluster be as the pool says, as far as possible now. Raises `ApiUnavailable` and `Conflict`."""
    body = await cluster.get(Ref(INFERENCE_POOL, namespace, name))
    if body is None:
        return Result()
    try:
        pool = InferencePool.parse(body)
    except InvalidResource as invalid:
        return Result(await tell_invalid(cluster, body, InferencePoolStatus, str(invalid), clock()))
    if pool.metadata.being_deleted:
        return Result()
    snapshot = await observe_pool(cluster, pool)
    wanted = desired_pool(pool, snapshot, settings)
    plan = await _plan(cluster, pool, snapshot, wanted) if wanted is not None else Plan()
    if plan.writes:
        _log.info("InferencePool %s/%s: %s", namespace, name, "; ".join(plan.sentences()))
    outcome = await apply(cluster, plan)
    asked = [Plane(pod.name, pod.address) for pod in snapshot.sidecars[:_MOST_SIDECARS]]
    says = await network.attachments(asked)
    rolling = any(step.ref.kind == DEPLOYMENT for step in plan.writes)
    facts = PoolFacts(wanted.detached if wanted else "", outcome.obstacles, tuple(says), rolling)
    now = clock()
    status = next_pool_status(pool, snapshot, facts, now)
    told = await tell_status(cluster, pool, body, status, now)
    return Result(outcome.writes + told, settled(status) and not outcome.writes, status)


async def _plan(cluster: Cluster, pool: InferencePool, snapshot: PoolSnapshot, wanted: EngineObjects) -> Plan:
    engines, known = snapshot.deployment, dict(snapshot.children)
    scaled: tuple[Step, ...] = ()
    if snapshot.settings is None and engines is not None:
        del known[ref_of(engines)]
        scaled = (scaling(engines, pool.spec.replicas),)
    there = await with_namesakes(cluster, known, wanted.objects)
    return Plan((*plan_changes(wanted.objects, there.values()).steps, *scaled))


def desired_pool(pool: InferencePool, snapshot: PoolSnapshot, settings: OperatorSettings) -> EngineObjects | None:
    """Return what should exist; None: what is there is left as it is, because something that it needs is missing."""
    if snapshot.cache_error or snapshot.missing or refused_flags(pool) or chunk_mismatch(pool, snapshot):
        return None
    if snapshot.settings is None:
        return EngineObjects(around_engines(pool, snapshot.gateway))
    terms = sidecar_terms(snapshot.cache, settings, snapshot.settings) if snapshot.cache else None
    return engine_objects(pool, terms, snapshot.gateway)

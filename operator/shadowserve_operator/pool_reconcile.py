"""The whole story of an InferencePool, one path for every occasion: observe, decide what should be, plan, act, tell.

While the PrefixCache that a pool names does not exist, its engines are left as they are: started without the cache
they would all be replaced as soon as it comes, and often both are created in the same moment.
"""

import logging
from datetime import datetime

from shadowserve_crds.base import InvalidResource
from shadowserve_crds.conditions import READY
from shadowserve_crds.inferencepool import InferencePool, InferencePoolStatus
from shadowserve_operator.apply import apply
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.engine import EngineObjects, engine_objects, refused_flags
from shadowserve_operator.desired.events import condition_event
from shadowserve_operator.desired.terms import sidecar_terms
from shadowserve_operator.kinds import INFERENCE_POOL, Json, Ref, ref_of
from shadowserve_operator.plan import Plan, plan_changes
from shadowserve_operator.pool_observe import PoolSnapshot, observe_pool
from shadowserve_operator.pool_status import PoolFacts, chunk_mismatch, next_pool_status
from shadowserve_operator.reconcile import Clock, Result
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.status import invalid_status, settled

_log = logging.getLogger(__name__)


async def reconcile_inferencepool(
    cluster: Cluster, namespace: str, name: str, settings: OperatorSettings, clock: Clock
) -> Result:
    """Make the cluster be as the pool says, as far as possible now. Raises `ApiUnavailable` and `Conflict`."""
    ref = Ref(INFERENCE_POOL, namespace, name)
    body = await cluster.get(ref)
    if body is None:
        return Result()
    try:
        pool = InferencePool.parse(body)
    except InvalidResource as invalid:
        return await _refuse(cluster, ref, body, str(invalid), clock())
    if pool.metadata.being_deleted:
        return Result()
    snapshot = await observe_pool(cluster, pool)
    wanted = desired_pool(pool, snapshot, settings)
    plan = await _plan(cluster, snapshot, wanted)
    if plan.writes:
        _log.info("InferencePool %s/%s: %s", namespace, name, "; ".join(plan.sentences()))
    outcome = await apply(cluster, plan)
    obstacles = (*outcome.refusals, *(f"{step.ref}: {step.reason}" for step in plan.foreign))
    facts = PoolFacts(wanted.detached if wanted else "", obstacles)
    now = clock()
    status = next_pool_status(pool, snapshot, facts, now)
    told = await _tell(cluster, pool, body, status, now)
    return Result(outcome.writes + told, settled(status) and not outcome.writes, status)


def desired_pool(pool: InferencePool, snapshot: PoolSnapshot, settings: OperatorSettings) -> EngineObjects | None:
    """Return what should exist; None: what is there is left as it is, because something that it needs is missing."""
    if snapshot.cache_error or snapshot.missing or refused_flags(pool) or chunk_mismatch(pool, snapshot):
        return None
    return engine_objects(pool, sidecar_terms(snapshot.cache, settings) if snapshot.cache else None)


async def _plan(cluster: Cluster, snapshot: PoolSnapshot, wanted: EngineObjects | None) -> Plan:
    if wanted is None:
        return Plan()
    there = dict(snapshot.children)
    for ref in (ref_of(manifest) for manifest in wanted.objects):
        if ref not in there and (body := await cluster.get(ref)) is not None:
            there[ref] = body
    return plan_changes(wanted.objects, there.values())


async def _tell(cluster: Cluster, pool: InferencePool, body: Json, status: InferencePoolStatus, now: datetime) -> int:
    if status.dump() == body.get("status"):
        return 0
    await cluster.write_status(Ref(INFERENCE_POOL, pool.namespace, pool.name), status.dump())
    before = next((each for each in pool.status.conditions if each.type == READY), None)
    after = next(each for each in status.conditions if each.type == READY)
    if before is not None and (before.status, before.reason) == (after.status, after.reason):
        return 1
    await cluster.create_event(condition_event(pool, after, now))
    return 2


async def _refuse(cluster: Cluster, ref: Ref, body: Json, message: str, now: datetime) -> Result:
    try:
        before = InferencePoolStatus.model_validate(body.get("status", {})).conditions
    except ValueError:
        before = []
    status = invalid_status(before, body["metadata"].get("generation", 0), message, now)
    if status == body.get("status"):
        return Result()
    await cluster.write_status(ref, status)
    return Result(writes=1)

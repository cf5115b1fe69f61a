"""Writes what a status says, once and only if it changed, and an event when what `Ready` says has changed.

The same for every kind that the operator reconciles; what a status says is decided in `status` and `pool_status`.
"""

from collections.abc import Iterable
from datetime import datetime

from shadowserve_crds.conditions import READY
from shadowserve_crds.inferencepool import InferencePool, InferencePoolStatus
from shadowserve_crds.prefixcache import PrefixCache, PrefixCacheStatus
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.events import condition_event, left_out_events
from shadowserve_operator.errors import Conflict
from shadowserve_operator.kinds import Json, ref_of
from shadowserve_operator.status import invalid_status

Status = PrefixCacheStatus | InferencePoolStatus


async def tell_status(
    cluster: Cluster, owner: PrefixCache | InferencePool, body: Json, status: Status, now: datetime
) -> int:
    """Write the status of `owner`, which was read from `body`; returns how many objects were written."""
    if status.dump() == body.get("status"):
        return 0
    await cluster.write_status(ref_of(body), status.dump())
    before = next((each for each in owner.status.conditions if each.type == READY), None)
    after = next(each for each in status.conditions if each.type == READY)
    if before is not None and (before.status, before.reason) == (after.status, after.reason):
        return 1
    return 1 + await _recorded(cluster, condition_event(owner, after, now))


async def tell_invalid(cluster: Cluster, body: Json, kind: type[Status], message: str, now: datetime) -> int:
    """Write that the resource in `body` cannot be worked with, and why; returns how many objects were written."""
    try:
        before = kind.model_validate(body.get("status", {})).conditions
    except ValueError:
        before = []
    status = invalid_status(kind, before, body["metadata"].get("generation", 0), message, now)
    if status == body.get("status"):
        return 0
    await cluster.write_status(ref_of(body), status)
    return 1


async def tell_left_out(cluster: Cluster, pods: Iterable[Json], now: datetime) -> int:
    """Record which of these pods run without the sidecar that they ask for; returns how many events were news."""
    return sum([await _recorded(cluster, event) for event in left_out_events(pods, now)])


async def _recorded(cluster: Cluster, event: Json) -> bool:
    """Record an event, unless it was before; returns whether it was written."""
    try:
        await cluster.create_event(event)
    except Conflict:
        return False
    return True

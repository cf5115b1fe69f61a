"""The whole story of a PrefixCache, one path for every occasion: observe, decide, plan, act, ask, tell.

Safe to run twice, and to end at any call: whatever is found the next time is where it goes on. What is
decided is in `decision`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from shadowserve_crds import names
from shadowserve_crds.base import InvalidResource
from shadowserve_crds.inferencepool import InferencePoolStatus
from shadowserve_crds.prefixcache import PrefixCache, PrefixCacheStatus
from shadowserve_operator.apply import apply
from shadowserve_operator.bindings import forget_bindings, pairings_of, tell_bindings
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.decision import Decision, Done, Heard, change, decide, facts_of, whom_to_ask
from shadowserve_operator.desired.assignment import Assignment
from shadowserve_operator.desired.attachment import opted_in, read_otherwise
from shadowserve_operator.desired.pairing import binding_manifests
from shadowserve_operator.desired.round_trip import Plane, sidecar_address
from shadowserve_operator.desired.sharding import StoreSeen
from shadowserve_operator.desired.store_grace import grace_left
from shadowserve_operator.errors import Unfinished
from shadowserve_operator.external import External
from shadowserve_operator.kinds import CERTIFICATE, POD, PREFIX_CACHE, Ref, ref_of
from shadowserve_operator.network import Network, PodNetwork
from shadowserve_operator.observe import Snapshot, is_unowned, observe, with_namesakes
from shadowserve_operator.plan import Plan, plan_changes
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.shards import Shards
from shadowserve_operator.status import next_status, settled
from shadowserve_operator.telling import tell_invalid, tell_status

_MOST_OPTED_IN = 64
"""So many pods that opted in are asked what settings they read: the youngest, since they read them only once."""
_SHARDING_SECONDS = 5.0
"""So long a reconcile may move slots; then it looks again whether engines need it more."""
_log = logging.getLogger(__name__)
Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Result:
    """What a reconcile did. `settled`: nothing is expected to change by itself.

    `expires` is when the first of the certificates does, None without any. `again` is after how many seconds at the
    latest something is due that nobody announces, None without any.
    """

    writes: int = 0
    settled: bool = True
    status: PrefixCacheStatus | InferencePoolStatus | None = None
    expires: datetime | None = None
    again: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What was there before anything was done; `store` is what the servers of a managed store said."""

    snapshot: Snapshot
    shards: Shards
    store: StoreSeen


async def reconcile_prefixcache(
    cluster: Cluster,
    namespace: str,
    name: str,
    settings: OperatorSettings,
    clock: Clock,
    network: Network = PodNetwork(),
) -> Result:
    """Make the cluster be as the PrefixCache says, as far as possible now. Raises `ApiUnavailable` and `Conflict`."""
    body = await cluster.get(Ref(PREFIX_CACHE, namespace, name))
    if body is None:
        return Result()
    try:
        cache = PrefixCache.parse(body)
    except InvalidResource as invalid:
        return Result(await tell_invalid(cluster, body, PrefixCacheStatus, str(invalid), clock()))
    if cache.metadata.being_deleted:
        return Result()
    now = clock()
    seen = await _observe(cluster, network, cache, settings)
    decision = decide(cache, seen.snapshot, settings, seen.store.plan.servers, now)
    plan = await _plan(cluster, decision)
    done = await _act(cluster, network, cache, seen, decision, plan)
    heard = await _ask(network, cache, seen.snapshot, decision, done)
    looked = clock()  # a server that is silent is waited for, and its silence must not count from before
    status = next_status(cache, facts_of(cache, seen.snapshot, decision, done, heard), looked)
    told = await _tell_settings(cluster, heard.settings)
    told += await tell_status(cluster, cache, body, status, looked)
    calm = settled(status) and not done.outcome.writes
    return Result(done.writes + told, calm, status, decision.desired.expires, grace_left(status, looked))


async def _observe(cluster: Cluster, network: Network, cache: PrefixCache, settings: OperatorSettings) -> Seen:
    snapshot = await observe(cluster, cache, settings.namespaces)
    shards = Shards.of(cache, snapshot)
    return Seen(snapshot, shards, await shards.bring(network, 0.0))


async def _plan(cluster: Cluster, decision: Decision) -> Plan:
    there = await with_namesakes(cluster, decision.known, decision.wanted)
    return plan_changes(decision.wanted, there.values())


async def _act(
    cluster: Cluster, network: Network, cache: PrefixCache, seen: Seen, decision: Decision, plan: Plan
) -> Done:
    """Do what was decided: objects, what pods and bindings are told, and for a while the slots of the store."""
    if plan.writes:
        _log.info("PrefixCache %s/%s: %s", cache.namespace, cache.name, "; ".join(plan.sentences()))
    outcome = await apply(cluster, plan)
    written = outcome.writes + await _tell_pods(cluster, cache.namespace, decision.assignments)
    written += await tell_bindings(cluster, cache, seen.snapshot, decision.pairings, decision.at)
    written += await forget_bindings(cluster, seen.snapshot, decision.pairings)
    store = seen.store
    if store.plan.steps or store.plan.waiting:
        store = await seen.shards.bring(network, _SHARDING_SECONDS)
    return Done(outcome, written, store)


async def _ask(network: Network, cache: PrefixCache, snapshot: Snapshot, decision: Decision, done: Done) -> Heard:
    """Return what sidecars, endpoints and data planes say, now that what they depend on is done."""
    read = await _read_settings(network, snapshot)
    external = External.of(cache, snapshot)
    endpoints = await external.find_out(network) if external else []
    asked = whom_to_ask(snapshot, decision.assignments, cache.spec.placement.order)
    answers = await network.round_trips(asked, change(cache, snapshot, done.store.layout))
    return Heard(tuple(endpoints), tuple(answers), read)


async def forget_prefixcache(cluster: Cluster, namespace: str, name: str, settings: OperatorSettings) -> int:
    """Remove what garbage collection cannot reach: annotations of running pods, and bindings that nobody needs now.

    Returns how many objects were written. Safe to run again after it was interrupted. Raises `Unfinished` if
    cert-manager may be issuing for the cache still.
    """
    body = await cluster.get(Ref(PREFIX_CACHE, namespace, name))
    if body is None:
        return 0
    cache = PrefixCache.model_validate({"metadata": body["metadata"]})
    snapshot = await observe(cluster, cache, settings.namespaces)
    written = 0
    for pod in snapshot.engines:
        if pod.told is not None:
            await cluster.annotate(Ref(POD, namespace, pod.name), {names.DATA_PLANE_ANNOTATION: None})
            written += 1
    pairings = pairings_of(snapshot)
    plan = plan_changes(binding_manifests(pairings.values(), snapshot.bindings), snapshot.binding_bodies)
    written += await forget_bindings(cluster, snapshot, pairings)
    written += (await apply(cluster, plan)).writes
    return written + await _forget_issued(cluster, snapshot)


async def _forget_issued(cluster: Cluster, snapshot: Snapshot) -> int:
    """Remove what cert-manager was asked for, and then what it made and nobody adopted; returns the writes.

    It may be making a Secret right now that would stay: so this is done until nothing asks. Raises `Unfinished`.
    """
    asked = [body for ref, body in snapshot.children.items() if ref.kind == CERTIFICATE]
    made = [body for body in snapshot.children.values() if is_unowned(body)]
    for body in (*asked, *made):
        await cluster.delete(ref_of(body), body["metadata"]["uid"])
    if asked:
        raise Unfinished(f"cert-manager was asked for {len(asked)} certificates, and may have one to hand over")
    return len(made)


async def _tell_pods(cluster: Cluster, namespace: str, assignments: tuple[Assignment, ...]) -> int:
    changed = [each for each in assignments if each.changes]
    for each in changed:
        _log.info("pod %s/%s: data plane %s: %s", namespace, each.pod.name, each.endpoint or "none", each.reason)
        await cluster.annotate(Ref(POD, namespace, each.pod.name), {names.DATA_PLANE_ANNOTATION: each.endpoint})
    return len(changed)


async def _read_settings(network: Network, snapshot: Snapshot) -> dict[Ref, str]:
    """Return which settings pods that opted in really read, where it is not what they were made for."""
    pods = opted_in(snapshot.pods)[:_MOST_OPTED_IN]
    asked = [Plane(pod["metadata"]["name"], sidecar_address(pod)) for pod in pods]
    read = read_otherwise(pods, await network.attachments(asked))
    found = (Ref(POD, pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in pods)
    return {ref: read[ref.name] for ref in found if ref.name in read}


async def _tell_settings(cluster: Cluster, read: Mapping[Ref, str]) -> int:
    for ref, settings in read.items():
        await cluster.annotate(ref, {names.CONFIG_ANNOTATION: settings})
    return len(read)

"""The whole story of a PrefixCache, one path for every occasion: observe, decide what should be, plan, act, tell.

Safe to run twice, and to end at any call: whatever is found the next time is where it goes on.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from shadowserve_crds import names
from shadowserve_crds.base import InvalidResource
from shadowserve_crds.inferencepool import InferencePoolStatus
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import PrefixCache, PrefixCacheStatus
from shadowserve_operator.apply import Outcome, apply
from shadowserve_operator.bindings import forget_bindings, pairings_of, tell_bindings
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.assignment import Assignment, assign, uses_cards
from shadowserve_operator.desired.attachment import opted_in, read_otherwise
from shadowserve_operator.desired.certificates import Certificate, expired
from shadowserve_operator.desired.config import Login, admin_secret_name, config_map, config_map_name, secret_name
from shadowserve_operator.desired.dataplane import data_plane_workload, dataplane_objects
from shadowserve_operator.desired.left_out import left_out
from shadowserve_operator.desired.pairing import Pairing, binding_manifests, resolve
from shadowserve_operator.desired.round_trip import Plane, change_of, host_planes, sidecar_address
from shadowserve_operator.desired.secrets import SecretValues, secret_manifests
from shadowserve_operator.desired.store import store_objects
from shadowserve_operator.desired.store_grace import grace_left
from shadowserve_operator.errors import Unfinished
from shadowserve_operator.external import External
from shadowserve_operator.identities import Identities
from shadowserve_operator.kinds import CERTIFICATE, CONFIG_MAP, DAEMON_SET, POD, PREFIX_CACHE, SECRET, Json, Ref, ref_of
from shadowserve_operator.network import Network, PodNetwork
from shadowserve_operator.observe import Snapshot, is_unowned, observe, with_namesakes
from shadowserve_operator.pki import fresh_values
from shadowserve_operator.plan import plan_changes
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.shards import Shards
from shadowserve_operator.status import (
    Facts,
    next_status,
    settled,
    store_name,
)
from shadowserve_operator.telling import tell_invalid, tell_status

_MOST_SIDECARS = 8
"""Of a large pool's sidecars so many are asked: they are all alike."""
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
class Desired:
    """What should be, and what was found out on the way.

    `held` are left as they are for now: who starts by them reads Secrets that are not there yet, or not written yet.
    """

    manifests: list[Json] = field(default_factory=list)
    certificates: Mapping[str, Certificate | None] = field(default_factory=dict)
    expired: tuple[str, ...] = ()
    missing_secrets: tuple[str, ...] = ()
    held: frozenset[Ref] = frozenset()


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
    snapshot = await observe(cluster, cache, settings.namespaces)
    shards = Shards.of(cache, snapshot)
    seen = await shards.bring(network, 0.0)
    desired = desired_objects(cache, snapshot, settings, now, seen.plan.servers)
    pairings = pairings_of(snapshot)
    manifests = [*desired.manifests, *binding_manifests(pairings.values(), snapshot.bindings)]
    wanted = [manifest for manifest in manifests if ref_of(manifest) not in desired.held]
    bodies = [*snapshot.children.values(), *snapshot.binding_bodies]
    known = {ref: body for body in bodies if (ref := ref_of(body)) not in desired.held}
    plan = plan_changes(wanted, (await with_namesakes(cluster, known, wanted)).values())
    if plan.writes:
        _log.info("PrefixCache %s/%s: %s", namespace, name, "; ".join(plan.sentences()))
    outcome = await apply(cluster, plan)
    pairing = resolve(snapshot.nodes, snapshot.bindings, cache.spec.placement.dpu)
    order = cache.spec.placement.order
    assignments = assign(snapshot.engines, pairing, snapshot.planes or {}, order, now)
    told = await _tell_pods(cluster, namespace, assignments)
    told += await tell_bindings(cluster, cache, snapshot, pairings, now)
    told += await forget_bindings(cluster, snapshot, pairings)
    told += await _tell_settings(cluster, network, snapshot)
    if seen.plan.steps or seen.plan.waiting:
        seen = await shards.bring(network, _SHARDING_SECONDS)
    facts = _facts(cache, snapshot, desired, (pairing, assignments), outcome)
    external = External.of(cache, snapshot)
    endpoints = await external.find_out(network) if external else []
    answers = await network.round_trips(
        _whom_to_ask(snapshot, assignments, order), _change(cache, snapshot, seen.layout)
    )
    found = replace(facts, round_trips=tuple(answers), shards=seen, endpoints=tuple(endpoints))
    looked = clock()  # a server that is silent is waited for, and its silence must not count from before
    status = next_status(cache, found, looked)
    told += await tell_status(cluster, cache, body, status, looked)
    expires = min((each.not_after for each in desired.certificates.values() if each is not None), default=None)
    calm = settled(status) and not outcome.writes
    return Result(outcome.writes + told, calm, status, expires, grace_left(status, looked))


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


def desired_objects(
    cache: PrefixCache, snapshot: Snapshot, settings: OperatorSettings, now: datetime, servers: int = 0
) -> Desired:
    """Return everything that should exist for the cache, in the order in which it is made.

    `servers` is how many servers the store must have at least: those that still have slots stay.
    """
    stored = _data(snapshot, secret_name(cache)) | _data(snapshot, admin_secret_name(cache))
    values = SecretValues.read(stored, fresh_values())
    external = External.of(cache, snapshot)
    values, more = (external.into(values), external.files) if external else (values, {})
    missing = external.missing if external else ()
    login = Login(external.username if external else None, values.sidecar_password, values.salt)
    identities, made = _identities(cache, snapshot, now)
    manifests = [
        *secret_manifests(cache, values, more),
        *made,
        config_map(cache, login),
    ]
    manifests += store_objects(cache, settings, servers)
    manifests += dataplane_objects(cache, settings, login)
    held = frozenset() if values.are_in(stored) and not missing else _built_on_secrets(cache, snapshot)
    return Desired(manifests, identities.existing, expired(identities.existing, now), missing, held)


def _built_on_secrets(cache: PrefixCache, snapshot: Snapshot) -> frozenset[Ref]:
    """Return what follows once the Secrets are there: what starts those pods anew that read them only then.

    The store's users' list waits, too, but a store's first start does not wait for it.
    """
    space, users = cache.namespace, admin_secret_name(cache)
    found = {Ref(CONFIG_MAP, space, config_map_name(cache)), Ref(DAEMON_SET, space, data_plane_workload(cache))}
    if snapshot.child("Secret", users):
        found.add(Ref(SECRET, space, users))
    return frozenset(found)


def _identities(cache: PrefixCache, snapshot: Snapshot, now: datetime) -> tuple[Identities, list[Json]]:
    """Return the certificates there are, and what makes or asks for those that have to be."""
    if snapshot.issued is not None:
        theirs = Identities.of_others(cache, snapshot.issued)
        return theirs, theirs.requests(cache, snapshot.issued)
    ours = Identities.read(cache, {ref.name: body for ref, body in snapshot.children.items()}, now)
    return ours, ours.manifests(cache, now)


def _facts(
    cache: PrefixCache,
    snapshot: Snapshot,
    desired: Desired,
    found: tuple[Pairing, tuple[Assignment, ...]],
    outcome: Outcome,
) -> Facts:
    pairing, assignments = found
    return Facts(
        store=snapshot.child("StatefulSet", store_name(cache)),
        data_plane=snapshot.child("DaemonSet", data_plane_workload(cache)),
        pairing=pairing,
        planes=snapshot.planes or {},
        assignments=assignments,
        pools=snapshot.pools,
        left_out=left_out(snapshot.pods),
        missing_secrets=desired.missing_secrets,
        expired=desired.expired,
        certificates=desired.certificates,
        issued=snapshot.issued,
        obstacles=outcome.obstacles,
    )


def _whom_to_ask(snapshot: Snapshot, assignments: Iterable[Assignment], order: Sequence[PlaceName]) -> list[Plane]:
    """Return data planes that serve: on cards that are used, and some of the sidecars that restore on the host."""
    planes = (snapshot.planes or {}).values() if uses_cards(order) else ()
    serving = [plane for plane in planes if plane.ready_since is not None]
    found = [
        Plane(f"the data plane on {plane.card}", f"{plane.endpoint.rpartition(':')[0]}:{names.DATA_PLANE_METRICS_PORT}")
        for plane in sorted(serving, key=lambda plane: plane.card)
    ]
    if PlaceName.HOST in order:
        alone = {each.pod.name for each in assignments if not each.endpoint}
        found += host_planes(snapshot.pods, alone)[:_MOST_SIDECARS]
    return found


def _change(cache: PrefixCache, snapshot: Snapshot, layout: str) -> str:
    secrets = {ref.name: body for ref, body in snapshot.children.items() if ref.kind == SECRET}
    secrets |= snapshot.issued.secrets if snapshot.issued else {}
    return change_of(cache, snapshot.store_pods, list(secrets.values()), layout)


async def _tell_pods(cluster: Cluster, namespace: str, assignments: tuple[Assignment, ...]) -> int:
    changed = [each for each in assignments if each.changes]
    for each in changed:
        _log.info("pod %s/%s: data plane %s: %s", namespace, each.pod.name, each.endpoint or "none", each.reason)
        await cluster.annotate(Ref(POD, namespace, each.pod.name), {names.DATA_PLANE_ANNOTATION: each.endpoint})
    return len(changed)


async def _tell_settings(cluster: Cluster, network: Network, snapshot: Snapshot) -> int:
    """Have pods that opted in say which settings they really read: they may have been written as the pod was made."""
    pods = opted_in(snapshot.pods)[:_MOST_OPTED_IN]
    asked = [Plane(pod["metadata"]["name"], sidecar_address(pod)) for pod in pods]
    read = read_otherwise(pods, await network.attachments(asked))
    for pod in (pod for pod in pods if pod["metadata"]["name"] in read):
        metadata = pod["metadata"]
        ref = Ref(POD, metadata["namespace"], metadata["name"])
        await cluster.annotate(ref, {names.CONFIG_ANNOTATION: read[ref.name]})
    return len(read)


def _data(snapshot: Snapshot, name: str) -> dict[str, str]:
    body = snapshot.child("Secret", name)
    return dict(body.get("data") or {}) if body else {}

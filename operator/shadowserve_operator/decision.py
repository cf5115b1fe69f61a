"""What the reconcile of a PrefixCache decides from what was seen: what should be, who restores where, whom to ask.

Waits for nothing and writes nothing; only passwords and keys that are missing are made up here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from shadowserve_crds import names
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.apply import Outcome
from shadowserve_operator.bindings import Pairings, pairings_of
from shadowserve_operator.desired.assignment import Assignment, assign, uses_cards
from shadowserve_operator.desired.certificates import Certificate, expired
from shadowserve_operator.desired.config import Login, admin_secret_name, config_map, config_map_name, secret_name
from shadowserve_operator.desired.dataplane import data_plane_workload, dataplane_objects
from shadowserve_operator.desired.external_store import EndpointSeen
from shadowserve_operator.desired.left_out import left_out
from shadowserve_operator.desired.pairing import Pairing, binding_manifests, resolve
from shadowserve_operator.desired.round_trip import Answer, Plane, change_of, host_planes
from shadowserve_operator.desired.secrets import SecretValues, secret_manifests
from shadowserve_operator.desired.sharding import StoreSeen
from shadowserve_operator.desired.store import store_objects
from shadowserve_operator.external import External
from shadowserve_operator.identities import Identities
from shadowserve_operator.kinds import CONFIG_MAP, DAEMON_SET, SECRET, Json, Ref, ref_of
from shadowserve_operator.observe import Snapshot
from shadowserve_operator.pki import fresh_values
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.status import Facts, store_name

_MOST_SIDECARS = 8
"""Of a large pool's sidecars so many are asked: they are all alike."""


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

    @property
    def expires(self) -> datetime | None:
        """When the first of the certificates does, None without any."""
        return min((each.not_after for each in self.certificates.values() if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is decided before anything is done. `wanted` and `known` are what a plan compares, without what is held."""

    at: datetime
    desired: Desired
    wanted: tuple[Json, ...]
    known: Mapping[Ref, Json]
    pairings: Pairings
    pairing: Pairing
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """What was done: how the plan went, how many objects were written in all, and how the store's servers are now."""

    outcome: Outcome
    writes: int
    store: StoreSeen


@dataclass(frozen=True, slots=True)
class Heard:
    """What those said who were asked when all was done: endpoints of an external store, data planes, sidecars.

    `settings` are the digests of those that pods really read, where their annotation has another.
    """

    endpoints: tuple[EndpointSeen, ...] = ()
    round_trips: tuple[Answer, ...] = ()
    settings: Mapping[Ref, str] = field(default_factory=dict)


def decide(cache: PrefixCache, snapshot: Snapshot, settings: OperatorSettings, servers: int, now: datetime) -> Decision:
    """Return what should be, and where pods restore. `servers` is how many the store must have at least."""
    desired = desired_objects(cache, snapshot, settings, now, servers)
    pairings = pairings_of(snapshot)
    manifests = [*desired.manifests, *binding_manifests(pairings.values(), snapshot.bindings)]
    bodies = [*snapshot.children.values(), *snapshot.binding_bodies]
    pairing = resolve(snapshot.nodes, snapshot.bindings, cache.spec.placement.dpu)
    return Decision(
        at=now,
        desired=desired,
        wanted=tuple(manifest for manifest in manifests if ref_of(manifest) not in desired.held),
        known={ref: body for body in bodies if (ref := ref_of(body)) not in desired.held},
        pairings=pairings,
        pairing=pairing,
        assignments=assign(snapshot.engines, pairing, snapshot.planes or {}, cache.spec.placement.order, now),
    )


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


def facts_of(cache: PrefixCache, snapshot: Snapshot, decision: Decision, done: Done, heard: Heard) -> Facts:
    """Return all that the status depends on."""
    desired = decision.desired
    return Facts(
        store=snapshot.child("StatefulSet", store_name(cache)),
        data_plane=snapshot.child("DaemonSet", data_plane_workload(cache)),
        pairing=decision.pairing,
        planes=snapshot.planes or {},
        assignments=decision.assignments,
        pools=snapshot.pools,
        left_out=left_out(snapshot.pods),
        missing_secrets=desired.missing_secrets,
        endpoints=heard.endpoints,
        expired=desired.expired,
        certificates=desired.certificates,
        issued=snapshot.issued,
        obstacles=done.outcome.obstacles,
        round_trips=heard.round_trips,
        shards=done.store,
    )


def whom_to_ask(snapshot: Snapshot, assignments: Iterable[Assignment], order: Sequence[PlaceName]) -> list[Plane]:
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


def change(cache: PrefixCache, snapshot: Snapshot, layout: str) -> str:
    """Return a name for how things are now, after whose change round trips are made again."""
    secrets = {ref.name: body for ref, body in snapshot.children.items() if ref.kind == SECRET}
    secrets |= snapshot.issued.secrets if snapshot.issued else {}
    return change_of(cache, snapshot.store_pods, list(secrets.values()), layout)


def _data(snapshot: Snapshot, name: str) -> dict[str, str]:
    body = snapshot.child("Secret", name)
    return dict(body.get("data") or {}) if body else {}

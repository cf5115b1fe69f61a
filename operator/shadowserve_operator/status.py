"""What a PrefixCache's status says: a pure function of what is and what was just done. One function a condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from shadowserve_crds import names
from shadowserve_crds.conditions import READY, Condition, ConditionStatus, Reason, condition, merged, summary
from shadowserve_crds.inferencepool import InferencePoolStatus
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import (
    DataPlanesStatus,
    PrefixCache,
    PrefixCacheCondition,
    PrefixCacheStatus,
    StoreStatus,
    Transport,
)
from shadowserve_crds.store import StoreType
from shadowserve_operator.desired.assignment import Assignment, DataPlane, uses_cards
from shadowserve_operator.desired.certificates import Certificate
from shadowserve_operator.desired.config import (
    DATA_PLANE,
    SECRET_NOT_FOUND,
    STORE,
    sidecar_config,
    store_service_name,
)
from shadowserve_operator.desired.external_store import EndpointSeen, external_condition
from shadowserve_operator.desired.issued import Issued, issued_condition
from shadowserve_operator.desired.labels import selector_of
from shadowserve_operator.desired.left_out import LeftOut, injected_condition
from shadowserve_operator.desired.pairing import Pairing
from shadowserve_operator.desired.round_trip import Answer, round_trip_condition
from shadowserve_operator.desired.sharding import ShardPlan, StoreSeen
from shadowserve_operator.desired.store import managed_store, servers_wanted
from shadowserve_operator.desired.store_grace import with_grace
from shadowserve_operator.desired.wording import first_few, see_pods
from shadowserve_operator.kinds import (
    CERTIFICATE,
    CONFIG_MAP,
    DAEMON_SET,
    DISRUPTION_BUDGET,
    DPU_BINDING,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    Json,
    Kind,
    Obstacle,
)

_MOST_HOSTS = 20
_MOST_SERVERS = 3
_MOST_CARDS = 5
_GOING_ON = (PrefixCacheCondition.ROUND_TRIP_VERIFIED, PrefixCacheCondition.STORE_READY)
"""What may still be on its way while the whole is ready."""
_UNREACHABLE = "Unreachable"
_OF_STORE = (STATEFUL_SET, SERVICE, CONFIG_MAP, DISRUPTION_BUDGET)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the status depends on. `obstacles` are what was refused, or belongs to somebody else."""

    store: Json | None
    data_plane: Json | None
    pairing: Pairing
    planes: Mapping[str, DataPlane]
    assignments: tuple[Assignment, ...] = ()
    pools: int = 0
    left_out: tuple[LeftOut, ...] = ()
    missing_secrets: tuple[str, ...] = ()
    endpoints: tuple[EndpointSeen, ...] = ()
    expired: tuple[str, ...] = ()
    certificates: Mapping[str, Certificate | None] = field(default_factory=dict)
    issued: Issued | None = None
    obstacles: tuple[Obstacle, ...] = ()
    round_trips: tuple[Answer, ...] = ()
    shards: StoreSeen = field(default_factory=lambda: StoreSeen(ShardPlan()))

    @property
    def serving(self) -> int:
        """How many data planes on cards serve."""
        return sum(plane.ready_since is not None for plane in self.planes.values())


def next_status(cache: PrefixCache, facts: Facts, now: datetime) -> PrefixCacheStatus:
    """Return the whole status."""
    found, certificates = _store_ready(cache, facts), _certificates_ready(cache, facts)
    store, silent_since = with_grace(cache.status, found, _silence(facts, found), now)
    of_cards = [_data_plane_ready(cache, facts), _pairing_resolved(cache, facts)]
    needed = [store, *(of_cards if uses_cards(cache.spec.placement.order) else ()), certificates]
    trip = round_trip_condition(cache, facts.round_trips)
    doubted = [trip] if trip.status is ConditionStatus.FALSE else []  # Ready does not wait for an answer
    ready = summary([*needed, *doubted], "engines can store and fetch")
    told = [store, *of_cards, certificates, trip, injected_condition(facts.left_out), ready]
    conditions = merged(cache.status.conditions, told, cache.metadata.generation, now)
    wanted = _number(facts.data_plane, "desiredNumberScheduled")
    on_dpu = sum(bool(each.endpoint) for each in facts.assignments)
    lost = _without_their_card(cache, facts)
    return PrefixCacheStatus(
        observed_generation=cache.metadata.generation,
        conditions=list(conditions),
        store=_store_status(cache, facts, silent_since),
        data_planes=DataPlanesStatus(
            desired=wanted,
            ready=facts.serving,
            shown=f"{facts.serving}/{wanted}",
            on_dpu=on_dpu,
            on_host=len(facts.assignments) - on_dpu if PlaceName.HOST in cache.spec.placement.order else 0,
        ),
        pools=facts.pools,
        unhealthy_hosts=sorted(lost)[:_MOST_HOSTS],
    )


def _without_their_card(cache: PrefixCache, facts: Facts) -> set[str]:
    """Return the hosts whose pods should restore at a card that they have, and do not."""
    if not uses_cards(cache.spec.placement.order):
        return set()
    return {each.pod.node for each in facts.assignments if not each.endpoint and facts.pairing.cards_of(each.pod.node)}


def settled(status: PrefixCacheStatus | InferencePoolStatus) -> bool:
    """Return whether nothing is expected to change by itself: all is well, or wrong until the resource is edited."""
    pending = any(each.reason == Reason.PENDING for each in status.conditions if each.type in _GOING_ON)
    ready = next((each for each in status.conditions if each.type == READY), None)
    if ready is None or ready.status is ConditionStatus.TRUE:
        return not pending
    return ready.reason == Reason.FAILED


def invalid_status(
    kind: type[PrefixCacheStatus | InferencePoolStatus],
    before: Sequence[Condition],
    generation: int,
    message: str,
    now: datetime,
) -> Json:
    """Return the status of a resource that cannot be worked with; `before` are the conditions it has."""
    ready = condition(READY, False, Reason.FAILED, message)
    conditions = merged(before, [ready], generation, now)
    return kind(observed_generation=generation, conditions=list(conditions)).dump()


def _store_ready(cache: PrefixCache, facts: Facts) -> Condition:
    kind = PrefixCacheCondition.STORE_READY
    if facts.missing_secrets:
        message = f"Secret {', '.join(facts.missing_secrets)} does not exist in {cache.namespace}: create it"
        return condition(kind, False, SECRET_NOT_FOUND, message)
    if cache.spec.store.type is StoreType.EXTERNAL:
        return external_condition(cache, facts.endpoints)
    stuck = _obstacles(facts, *_OF_STORE)
    if stuck:
        return condition(kind, False, Reason.ERROR, stuck)
    managed, plan = managed_store(cache), facts.shards.plan
    wanted, ready = servers_wanted(managed), _number(facts.store, "readyReplicas")
    starting = f"{ready} of {wanted} store servers are ready" if ready < wanted else ""
    see = see_pods(cache.namespace, selector_of(cache.name, STORE))
    if plan.covered and not facts.shards.trouble and (rest := starting or plan.waiting):
        # engines store and fetch meanwhile: shards that come or go take no slot from anybody before it has moved
        return condition(kind, True, Reason.PENDING, f"every slot is served by {plan.serving} shards; {rest}; {see}")
    if starting:
        return condition(kind, False, Reason.PENDING, f"{starting}; {see}")
    if facts.shards.silent:
        message = f"{_cannot_reach(facts)}; it has to reach port {names.STORE_PORT} of every server"
        return condition(kind, False, _UNREACHABLE, message)
    if facts.shards.trouble:
        return condition(kind, False, Reason.ERROR, facts.shards.trouble)
    if plan.waiting:
        return condition(kind, False, Reason.PENDING, f"{plan.waiting}; {see}")
    return condition(kind, True, Reason.SUCCEEDED, f"{managed.shards} of {managed.shards} shards serve")


def _silence(facts: Facts, found: Condition) -> str:
    """Return which servers did not answer, or what one refused though all is served: what may pass by itself."""
    if _obstacles(facts, *_OF_STORE):
        return ""
    if facts.shards.silent:
        return _cannot_reach(facts)
    if facts.shards.plan.covered and facts.shards.trouble:
        return facts.shards.trouble
    return found.message if found.reason == _UNREACHABLE else ""


def _cannot_reach(facts: Facts) -> str:
    told = "; ".join(sorted(facts.shards.silent.values())[:_MOST_SERVERS])
    return f"the operator cannot administer {told}"


def _data_plane_ready(cache: PrefixCache, facts: Facts) -> Condition:
    kind = PrefixCacheCondition.DATA_PLANE_READY
    order = cache.spec.placement.order
    if PlaceName.DPU not in order:
        return condition(kind, True, Reason.NOT_NEEDED, "spec.placement.order names the host only")
    if stuck := _obstacles(facts, DAEMON_SET):
        return condition(kind, False, Reason.ERROR, stuck)
    cards = len(facts.pairing.pairs) + len(facts.pairing.unpaired)
    if not cards:
        return condition(kind, PlaceName.HOST in order, "NoDpuNodeMatches", _no_card(cache))
    ready = facts.serving
    if ready < cards:
        silent = sorted(_cards(facts.pairing) - {c for c, plane in facts.planes.items() if plane.ready_since})
        unused = "" if uses_cards(order) else "; spec.placement.order names the host first, so no pod misses them"
        message = f"{ready} of {cards} data planes serve; not on {first_few(silent, _MOST_CARDS)}{unused}"
        see = see_pods(cache.namespace, selector_of(cache.name, DATA_PLANE))
        return condition(kind, False, Reason.PENDING, f"{message}; {see}")
    return condition(kind, True, Reason.SUCCEEDED, f"{ready} of {cards} data planes serve")


def _no_card(cache: PrefixCache) -> str:
    """Return that no node is a card's, what engines do meanwhile, and the command that makes a node one."""
    placement = cache.spec.placement
    key, selector = placement.dpu.host_label_key, placement.dpu.node_selector
    wanted = [f"{label}={value}" for label, value in sorted((selector or {}).items())]
    meanwhile = "restore on host cores" if PlaceName.HOST in placement.order else "compute everything"
    needed = " ".join([*wanted, f"{key}=HOST_NODE"])
    return (
        f"no node has the label{'s' * (len(wanted) > 1)} {' and '.join(wanted) or key}; engines {meanwhile}; "
        f"label the cards' nodes: kubectl label node CARD_NODE {needed}"
    )


def _pairing_resolved(cache: PrefixCache, facts: Facts) -> Condition:
    kind = PrefixCacheCondition.PAIRING_RESOLVED
    if PlaceName.DPU not in cache.spec.placement.order:
        return condition(kind, True, Reason.NOT_NEEDED, "spec.placement.order names the host only")
    if facts.pairing.unpaired:
        first, more = facts.pairing.unpaired[0], len(facts.pairing.unpaired) - 1
        message = f"{first.message} (and {more} more)" if more else first.message
        return condition(kind, False, first.trouble, message)
    if stuck := _obstacles(facts, DPU_BINDING):
        return condition(kind, False, Reason.ERROR, stuck)
    return condition(kind, True, Reason.SUCCEEDED, f"{len(facts.pairing.pairs)} cards have their host")


def _certificates_ready(cache: PrefixCache, facts: Facts) -> Condition:
    kind = PrefixCacheCondition.CERTIFICATES_READY
    security = cache.spec.security
    if security.transport is not Transport.MUTUAL_TLS:
        return condition(kind, True, Reason.NOT_NEEDED, "spec.security.transport is Plaintext")
    if facts.issued is not None and facts.issued.issuer is None:
        return issued_condition(cache, facts.issued, facts.certificates)
    if stuck := _obstacles(facts, SECRET, CERTIFICATE):
        return condition(kind, False, Reason.ERROR, stuck)
    if facts.expired:
        message = f"expired: {', '.join(facts.expired)}; new ones are being issued"
        return condition(kind, False, "Expired", f"{message}; if that lasts, see shadowserve doctor")
    if facts.issued is not None:
        return issued_condition(cache, facts.issued, facts.certificates)
    return condition(kind, True, Reason.SUCCEEDED, f"{len(facts.certificates)} certificates are valid")


def _store_status(cache: PrefixCache, facts: Facts, silent_since: str | None) -> StoreStatus:
    endpoint = ",".join(sidecar_config(cache)["store"]["endpoints"])
    if cache.spec.store.type is StoreType.EXTERNAL:
        answers = [each.serves for each in facts.endpoints]
        shards, ready = len(answers), sum(answers)
    else:
        shards = managed_store(cache).shards
        ready = min(shards, facts.shards.plan.serving)
    shown = f"{ready}/{shards}"
    return StoreStatus(shards=shards, ready_shards=ready, shown=shown, endpoint=endpoint, silent_since=silent_since)


def _number(workload: Json | None, field: str) -> int:
    return int((workload or {}).get("status", {}).get(field, 0))


def _cards(pairing: Pairing) -> set[str]:
    return {pair.card for pair in pairing.pairs} | {each.card for each in pairing.unpaired}


def _obstacles(facts: Facts, *kinds: Kind) -> str:
    return "; ".join(str(each) for each in facts.obstacles if each.ref.kind in kinds)


def store_name(cache: PrefixCache) -> str:
    """Return the name of the store's StatefulSet."""
    return store_service_name(cache)

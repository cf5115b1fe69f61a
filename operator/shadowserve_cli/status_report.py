"""What `shadowserve status` says: pure, from a picture. Where a pod's data plane is, is the operator's own decision."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from shadowserve_cli.picture import Picture
from shadowserve_crds import names
from shadowserve_crds.conditions import READY, Condition, ConditionStatus, Reason
from shadowserve_crds.dpubinding import DPUBindingCondition
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.desired.assignment import Assignment, assign, place_of
from shadowserve_operator.desired.left_out import why_left_out
from shadowserve_operator.desired.pairing import resolve
from shadowserve_operator.kinds import Json
from shadowserve_operator.leader import Turn, decide
from shadowserve_operator.observe import data_planes, engines

_LOOK = {
    "AmbiguousHost": "kubectl get dpub; kubectl get nodes -L {host_label}",
    "CacheNotFound": "kubectl -n {namespace} get pfc",
    "EngineRefused": "kubectl -n {namespace} logs -l {label}={name} -c shadowserve-sidecar",
    "Expired": "shadowserve doctor -n {namespace}",
    "Failed": "kubectl -n {namespace} edit {short} {name}",
    "HostNotFound": "kubectl get dpub; kubectl get nodes -L {host_label}",
    "ModelNotFound": "kubectl -n {namespace} get pvc,secret",
    "NoDpuNodeMatches": "kubectl get nodes -L {host_label}",
    "PodsFailing": "kubectl -n {namespace} describe pods -l {label}={name}",
    "PodsWithoutSidecar": "shadowserve explain POD -n {namespace}",
    "SecretNotFound": "kubectl -n {namespace} get secrets",
    "Unreachable": "kubectl -n {namespace} get pfc {name} -o jsonpath={{.spec.store.external}}",
}
_LOOK_PENDING = "kubectl -n {namespace} get pods -l {label}={name}"


@dataclass(frozen=True, slots=True)
class CacheLine:
    """One PrefixCache. `planes` are data planes on cards that serve, of those that should."""

    namespace: str
    name: str
    ready: str
    store: str
    planes: str
    tier: str
    pools: int


@dataclass(frozen=True, slots=True)
class PoolLine:
    """One InferencePool. `places` counts its pods by where their data plane is."""

    namespace: str
    name: str
    ready: str
    engines: str
    model: str
    cache: str
    places: str


@dataclass(frozen=True, slots=True)
class PodLine:
    """One engine pod: where it restores, and why there."""

    namespace: str
    name: str
    cache: str
    node: str
    place: str
    endpoint: str
    why: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is not as it should be, and the command that fixes it or shows more."""

    about: str
    problem: str
    look: str


@dataclass(frozen=True, slots=True)
class Report:
    """The whole screen. `unreadable` is what could not be looked at, in words."""

    operator: str
    caches: tuple[CacheLine, ...]
    pools: tuple[PoolLine, ...]
    pods: tuple[PodLine, ...]
    troubles: tuple[Trouble, ...]
    unreadable: tuple[str, ...] = ()


def report(picture: Picture, now: datetime) -> Report:
    """Return what there is to say."""
    who, idle = operator_says(picture, now)
    troubles = [Trouble("operator", who, "shadowserve doctor")] if idle else []
    troubles += [Trouble("resource", invalid, "correct the field") for invalid in picture.invalid]
    troubles += [trouble for cache in picture.caches for trouble in troubles_of(cache, "pfc")]
    troubles += [trouble for pool in picture.pools for trouble in troubles_of(pool, "sspool")]
    troubles += _mispaired(picture, troubles)
    troubles += _left_out(picture)
    troubles += _outdated(picture)
    pods = tuple(line for cache in picture.caches for line in pod_lines(picture, cache, now))
    return Report(
        operator=who,
        caches=tuple(_cache_line(cache) for cache in picture.caches),
        pools=tuple(_pool_line(pool) for pool in picture.pools),
        pods=pods,
        troubles=tuple(troubles),
        unreadable=picture.unreadable,
    )


def operator_says(picture: Picture, now: datetime) -> tuple[str, bool]:
    """Return who acts, and whether nobody does."""
    if picture.lease is None and any(each.startswith("Lease") for each in picture.unreadable):
        return "unknown: its Lease may not be read", False
    holder = ((picture.lease or {}).get("spec") or {}).get("holderIdentity", "")
    decision = decide(picture.lease, "", now)
    if decision.turn is Turn.TAKE:
        return f"no operator acts: {decision.reason if holder else 'nobody holds its Lease'}", True
    return f"{holder} acts", False


def pod_lines(picture: Picture, cache: PrefixCache, now: datetime) -> list[PodLine]:
    """Return where the engine pods of a cache restore, as the operator decides it."""
    blind = any(each.startswith("nodes") for each in picture.unreadable)
    return [
        PodLine(
            namespace=cache.namespace,
            name=each.pod.name,
            cache=cache.name,
            node=each.pod.node,
            place=shown_place(each.pod.told, cache),
            endpoint=each.pod.told or "",
            why="the operator told it so" if blind else why(each),
        )
        for each in assignments(picture, cache, now)
    ]


def assignments(picture: Picture, cache: PrefixCache, now: datetime) -> tuple[Assignment, ...]:
    """Return what the operator tells the engine pods of a cache."""
    pods = picture.pods_of(cache.namespace, names.CACHE_LABEL, cache.name)
    pairing = resolve(picture.nodes, picture.bindings, cache.spec.placement.dpu)
    planes = data_planes(pods, picture.nodes)
    return assign(engines(pods), pairing, planes, cache.spec.placement.order, now)


def why(assignment: Assignment) -> str:
    """Return the operator's reason, and that the pod is not told yet if so."""
    return f"{assignment.reason}; the operator has not told the pod yet" if assignment.changes else assignment.reason


def shown_place(told: str | None, cache: PrefixCache) -> str:
    """Return where a pod restores, in a word."""
    match place_of(told, cache.spec.placement.order):
        case PlaceName.DPU:
            return "card"
        case PlaceName.HOST:
            return "host"
    return "none: computes"


def _cache_line(cache: PrefixCache) -> CacheLine:
    status = cache.status
    return CacheLine(
        namespace=cache.namespace,
        name=cache.name,
        ready=_ready(status.conditions),
        store=f"{status.store.ready_shards}/{status.store.shards}",
        planes=f"{status.data_planes.ready}/{status.data_planes.desired}",
        tier=str(cache.spec.codec.tier),
        pools=status.pools,
    )


def _pool_line(pool: InferencePool) -> PoolLine:
    by = pool.status.data_planes
    return PoolLine(
        namespace=pool.namespace,
        name=pool.name,
        ready=_ready(pool.status.conditions),
        engines=f"{pool.status.ready_replicas}/{pool.spec.replicas}",
        model=pool.spec.model.name,
        cache=pool.spec.cache_ref.name if pool.spec.cache_ref else "",
        places=f"{by.dpu} card, {by.host} host, {by.none} none",
    )


def _ready(conditions: Sequence[Condition]) -> str:
    found = next((each for each in conditions if each.type == READY), None)
    return "Unknown" if found is None else str(found.status)


def troubles_of(resource: PrefixCache | InferencePool, short: str) -> Iterable[Trouble]:
    """Yield what is wrong with a resource, in the operator's words; `short` is its kind for kubectl."""
    about = f"{short} {resource.namespace}/{resource.name}"
    if resource.metadata.being_deleted:
        yield Trouble(about, "it is being deleted, and gone once the operator has cleaned up", "shadowserve doctor")
        return
    if not resource.status.conditions:
        yield Trouble(about, "the operator has said nothing about it yet", "shadowserve doctor")
        return
    if resource.status.observed_generation < resource.metadata.generation:
        yield Trouble(about, "the operator has not looked at the last edit yet", "shadowserve doctor")
    false = [each for each in resource.status.conditions if each.status is ConditionStatus.FALSE]
    for each in [one for one in false if one.type != READY] or false:
        yield Trouble(f"{about} {each.type}", each.message, look(resource, short, each.reason))


def look(resource: PrefixCache | InferencePool, short: str, reason: str) -> str:
    """Return the command that shows more about a condition with this reason, or fixes it."""
    label = names.CACHE_LABEL if isinstance(resource, PrefixCache) else names.POOL_LABEL
    host_label = names.DEFAULT_HOST_LABEL
    if isinstance(resource, PrefixCache):
        host_label = resource.spec.placement.dpu.host_label_key
    described = "kubectl -n {namespace} describe {short} {name}"
    template = _LOOK_PENDING if reason == Reason.PENDING else _LOOK.get(reason, described)
    return template.format(
        namespace=resource.namespace, name=resource.name, short=short, label=label, host_label=host_label
    )


def _mispaired(picture: Picture, told: Sequence[Trouble]) -> Iterable[Trouble]:
    """Yield what is wrong with bindings, unless a PrefixCache said so."""
    for binding in picture.bindings:
        for each in binding.status.conditions:
            if each.type != DPUBindingCondition.PAIRING_VALID or each.status is not ConditionStatus.FALSE:
                continue
            if not any(each.message in one.problem for one in told):
                yield Trouble(f"dpub {binding.name} {each.type}", each.message, f"kubectl edit dpub {binding.name}")


def _left_out(picture: Picture) -> Iterable[Trouble]:
    """Yield the pods that ask for a cache by a label and run without the sidecar."""
    for pod in picture.pods:
        if problem := why_left_out(pod):
            namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
            yield Trouble(f"pod {namespace}/{name}", problem, f"shadowserve explain {name} -n {namespace}")


def _outdated(picture: Picture) -> Iterable[Trouble]:
    """Yield the pods with older settings that nobody replaces: those of a pool are rolled."""
    for cache in picture.caches:
        for pod in picture.pods_of(cache.namespace, names.CACHE_LABEL, cache.name):
            metadata = pod["metadata"]
            if names.POOL_LABEL not in metadata["labels"] and has_older_settings(pod, picture.settings(cache)):
                about = f"pod {metadata['namespace']}/{metadata['name']}"
                problem = f"runs with older settings than PrefixCache {cache.name} gives now"
                yield Trouble(about, problem, f"kubectl -n {metadata['namespace']} delete pod {metadata['name']}")


def has_older_settings(pod: Json, written: str | None) -> bool:
    """Return whether an injected pod has other settings than are `written` now, None = that is not known.

    What the webhook did not know when it made the pod ("") the operator finds out once the sidecar runs.
    """
    annotations = pod["metadata"].get("annotations") or {}
    if written is None or names.INJECTED_ANNOTATION not in annotations:
        return False
    return annotations.get(names.CONFIG_ANNOTATION) not in ("", written)

"""Reads what matters for one PrefixCache into a frozen snapshot. Reads only; decides nothing."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shadowserve_crds import names
from shadowserve_crds.base import InvalidResource
from shadowserve_crds.dpubinding import DPUBinding
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.assignment import DataPlane, EnginePod
from shadowserve_operator.desired.certificates import CERTIFICATES, wanted_certificates
from shadowserve_operator.desired.config import DATA_PLANE, STORE
from shadowserve_operator.desired.issued import Issued
from shadowserve_operator.desired.pairing import Node
from shadowserve_operator.errors import Forbidden, NotServed
from shadowserve_operator.kinds import (
    CERTIFICATE,
    CLUSTER_ISSUER,
    CONFIG_MAP,
    DAEMON_SET,
    DISRUPTION_BUDGET,
    DPU_BINDING,
    INFERENCE_POOL,
    ISSUER,
    NODE,
    POD,
    PREFIX_CACHE,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    Json,
    Kind,
    Ref,
    ref_of,
)

_log = logging.getLogger(__name__)
CHILD_KINDS = (CONFIG_MAP, SECRET, SERVICE, DISRUPTION_BUDGET, STATEFUL_SET, DAEMON_SET)
"""What a PrefixCache's objects are."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is. `children` are the cache's own objects; `caches` are all PrefixCaches, this one included.

    `planes` are the data-plane pods of this cache by the card's node; `secrets` those of the user that the cache
    names; `pods` are all that carry the cache's label; `issued` is
    cert-manager's part, if it has one.
    """

    children: Mapping[Ref, Json]
    nodes: tuple[Node, ...] = ()
    bindings: tuple[DPUBinding, ...] = ()
    binding_bodies: tuple[Json, ...] = ()
    caches: tuple[PrefixCache, ...] = ()
    planes: Mapping[str, DataPlane] | None = None
    engines: tuple[EnginePod, ...] = ()
    pools: int = 0
    secrets: Mapping[str, Mapping[str, str]] | None = None
    pods: tuple[Json, ...] = ()
    issued: Issued | None = None

    @property
    def store_pods(self) -> tuple[Json, ...]:
        """Pods of the managed store that are not on their way out."""
        return tuple(
            pod
            for pod in self.pods
            if pod["metadata"].get("labels", {}).get(names.COMPONENT_LABEL) == STORE
            and not pod["metadata"].get("deletionTimestamp")
        )

    def child(self, kind_name: str, name: str) -> Json | None:
        """Return one of the cache's objects."""
        return next(
            (body for ref, body in self.children.items() if (ref.kind.name, ref.name) == (kind_name, name)), None
        )


async def observe(cluster: Cluster, cache: PrefixCache, namespaces: Sequence[str] = ()) -> Snapshot:
    """Return the snapshot. `namespaces` are those that the operator watches, none = all."""
    mine = {names.CACHE_LABEL: cache.name, names.MANAGED_BY_LABEL: names.MANAGED_BY}
    children: dict[Ref, Json] = {}
    for kind in CHILD_KINDS:
        found = await cluster.list(kind, cache.namespace, mine)
        children |= {ref_of(body): body for body in found if _owned(body, cache) or is_unowned(body)}
    children |= {ref_of(body): body for body in await _requests(cluster, cache, mine)}
    nodes = tuple(read_node(body) for body in await cluster.list(NODE))
    binding_bodies = await cluster.list(DPU_BINDING)
    pods = await cluster.list(POD, cache.namespace, {names.CACHE_LABEL: cache.name})
    pools = await cluster.list(INFERENCE_POOL, cache.namespace)
    return Snapshot(
        children=children,
        nodes=nodes,
        bindings=tuple(DPUBinding.parse(body) for body in binding_bodies),
        binding_bodies=binding_bodies,
        caches=await _caches(cluster, cache.namespace, namespaces),
        planes=data_planes(pods, nodes),
        engines=engines(pods),
        pools=sum(pool["spec"].get("cacheRef", {}).get("name") == cache.name for pool in pools),
        secrets=await _named_secrets(cluster, cache),
        pods=pods,
        issued=await _issued(cluster, cache),
    )


async def with_namesakes(cluster: Cluster, known: Mapping[Ref, Json], wanted: Sequence[Json]) -> dict[Ref, Json]:
    """Return what is known, and whatever else has the name of something that is wanted."""
    found = dict(known)
    for ref in (ref_of(manifest) for manifest in wanted):
        if ref not in found and (body := await cluster.get(ref)) is not None:
            found[ref] = body
    return found


def is_unowned(body: Json) -> bool:
    """Whether it is a Secret with our labels that cert-manager made, and that nobody has adopted yet."""
    metadata = body["metadata"]
    certificates = (metadata.get("labels") or {}).get(names.COMPONENT_LABEL) == CERTIFICATES
    return certificates and body["kind"] == SECRET.name and not metadata.get("ownerReferences")


def _owned(body: Json, cache: PrefixCache) -> bool:
    owners = body["metadata"].get("ownerReferences") or []
    return any(owner["uid"] == cache.metadata.uid for owner in owners)


async def _caches(cluster: Cluster, own: str, namespaces: Sequence[str]) -> tuple[PrefixCache, ...]:
    """Return the PrefixCaches of all namespaces; of one beside `own` that may not be read: none."""
    found: list[PrefixCache] = []
    for namespace in namespaces or ("",):
        try:
            bodies = await cluster.list(PREFIX_CACHE, namespace)
        except Forbidden as error:  # deleted, or its roles are: that is to hold up no other namespace
            if namespace in ("", own):
                raise
            _log.warning("PrefixCaches of namespace %s count for nothing: %s", namespace, error)
            continue
        for body in bodies:
            try:
                found.append(PrefixCache.parse(body))
            except InvalidResource:  # its own reconcile says so
                continue
    return tuple(found)


def read_node(body: Json) -> Node:
    """Return what matters of a node."""
    metadata = body["metadata"]
    return Node(metadata["name"], metadata.get("labels") or {}, _ready_since(body) is not None)


def data_planes(pods: Sequence[Json], nodes: Sequence[Node]) -> dict[str, DataPlane]:
    """Return the data planes among the pods of one cache, by the card's node; a silent node's does not serve."""
    ready_nodes = {node.name for node in nodes if node.ready}
    found: dict[str, DataPlane] = {}
    for pod in pods:
        labels, status, card = pod["metadata"].get("labels") or {}, pod.get("status", {}), pod["spec"].get("nodeName")
        if labels.get(names.COMPONENT_LABEL) != DATA_PLANE or not card or pod["metadata"].get("deletionTimestamp"):
            continue
        address = status.get("podIP", "")
        since = _ready_since(pod) if address and card in ready_nodes else None
        endpoint = f"[{address}]" if ":" in address else address
        plane = DataPlane(card, f"{endpoint}:{names.DATA_PLANE_PORT}" if endpoint else "", since)
        if card not in found or found[card].ready_since is None:
            found[card] = plane
    return found


def engines(pods: Sequence[Json]) -> tuple[EnginePod, ...]:
    """Return the injected pods among them that run, or will."""
    return tuple(_engine(pod) for pod in pods if _is_engine(pod))


def _is_engine(pod: Json) -> bool:
    metadata, phase = pod["metadata"], pod.get("status", {}).get("phase", "Pending")
    injected = names.INJECTED_ANNOTATION in (metadata.get("annotations") or {})
    return injected and not metadata.get("deletionTimestamp") and phase in ("Pending", "Running")


def _engine(pod: Json) -> EnginePod:
    metadata = pod["metadata"]
    told = metadata["annotations"].get(names.DATA_PLANE_ANNOTATION)
    return EnginePod(metadata["name"], metadata["uid"], pod["spec"].get("nodeName", ""), told)


def _ready_since(body: Mapping[str, Any]) -> datetime | None:
    for condition in body.get("status", {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] == "True":
            return datetime.fromisoformat(condition["lastTransitionTime"])
    return None


async def _named_secrets(cluster: Cluster, cache: PrefixCache) -> dict[str, Mapping[str, str]]:
    """Return the data of the Secrets that the user named; one that does not exist is left out."""
    external = cache.spec.store.external
    references = [external.credentials_secret_ref] if external else []
    references += [external.tls.ca_secret_ref] if external and external.tls else []
    found: dict[str, Mapping[str, str]] = {}
    for reference in references:
        if reference is not None and (body := await cluster.get(Ref(SECRET, cache.namespace, reference.name))):
            found[reference.name] = body.get("data") or {}
    return found


async def _requests(cluster: Cluster, cache: PrefixCache, mine: Mapping[str, str]) -> list[Json]:
    """Return what cert-manager was asked for; nothing where it is not installed."""
    try:
        found = await cluster.list(CERTIFICATE, cache.namespace, mine)
    except NotServed:
        return []
    return [body for body in found if _owned(body, cache)]


async def _issued(cluster: Cluster, cache: PrefixCache) -> Issued | None:
    issuer, wanted = cache.spec.security.issuer_ref, wanted_certificates(cache)
    if issuer is None or not wanted:
        return None
    clusterwide = issuer.kind == CLUSTER_ISSUER.name
    named = Ref(CLUSTER_ISSUER, "", issuer.name) if clusterwide else Ref(ISSUER, cache.namespace, issuer.name)
    found: dict[Kind, dict[str, Json]] = {SECRET: {}, CERTIFICATE: {}}
    for kind, bodies in found.items():
        for each in wanted:
            if (body := await cluster.get(Ref(kind, cache.namespace, each.secret))) is not None:
                bodies[each.secret] = body
    return Issued(await cluster.get(named), found[SECRET], found[CERTIFICATE])

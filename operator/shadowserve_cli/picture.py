"""Reads what `status` and `explain` look at into a frozen picture. Reads only, and only what anybody may read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from shadowserve_crds import names
from shadowserve_crds.base import InvalidResource, Resource
from shadowserve_crds.dpubinding import DPUBinding
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.config import CONFIG, config_map_name, written_settings
from shadowserve_operator.desired.pairing import Node
from shadowserve_operator.errors import Forbidden
from shadowserve_operator.kinds import (
    CONFIG_MAP,
    DPU_BINDING,
    INFERENCE_POOL,
    LEASE,
    NODE,
    POD,
    PREFIX_CACHE,
    WEBHOOK_CONFIGURATION,
    Json,
    Kind,
    Ref,
    ref_of,
)
from shadowserve_operator.leader import LEASE_NAME
from shadowserve_operator.observe import read_node
from shadowserve_operator.webhook_identity import CONFIGURATION

SomeResource = TypeVar("SomeResource", bound=Resource)


@dataclass(frozen=True, slots=True)
class Picture:
    """What is. `pods` are those with one of our labels, `config_maps` those with settings of sidecars.

    `unreadable` says what may not be read, in words.
    `lease` tells who acts, `hook` is the webhook's configuration; None: it is not there, or may not be read.
    """

    caches: tuple[PrefixCache, ...] = ()
    pools: tuple[InferencePool, ...] = ()
    pods: tuple[Json, ...] = ()
    config_maps: tuple[Json, ...] = ()
    nodes: tuple[Node, ...] = ()
    bindings: tuple[DPUBinding, ...] = ()
    lease: Json | None = None
    hook: Json | None = None
    unreadable: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()

    def cache(self, namespace: str, name: str) -> PrefixCache | None:
        """Return a PrefixCache."""
        return next((each for each in self.caches if each.key == (namespace, name)), None)

    def pool(self, namespace: str, name: str) -> InferencePool | None:
        """Return an InferencePool."""
        return next((each for each in self.pools if each.key == (namespace, name)), None)

    def settings(self, cache: PrefixCache) -> str | None:
        """Return the digest of the settings that a cache gives its pods now; None if it is not known."""
        return written_settings(cache, self.config_map(cache))

    def config_map(self, cache: PrefixCache) -> Json | None:
        """Return the ConfigMap with those settings; None if there is none, or it may not be read."""
        place = Ref(CONFIG_MAP, cache.namespace, config_map_name(cache))
        return next((each for each in self.config_maps if ref_of(each) == place), None)

    def pods_of(self, namespace: str, label: str, value: str) -> tuple[Json, ...]:
        """Return the pods of a namespace that have a label."""
        return tuple(
            pod
            for pod in self.pods
            if pod["metadata"].get("namespace") == namespace
            and (pod["metadata"].get("labels") or {}).get(label) == value
        )


@dataclass(slots=True)
class _Reader:
    cluster: Cluster
    unreadable: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)

    async def all(self, kind: Kind, namespace: str = "", labels: Mapping[str, str] | None = None) -> tuple[Json, ...]:
        try:
            return await self.cluster.list(kind, namespace, labels)
        except Forbidden:
            self.unreadable.append(f"{kind.plural}: you have no right to list them")
            return ()

    async def one(self, ref: Ref) -> Json | None:
        try:
            return await self.cluster.get(ref)
        except Forbidden:
            self.unreadable.append(f"{ref}: you have no right to get it")
            return None

    def parsed(self, model: type[SomeResource], bodies: Sequence[Json]) -> tuple[SomeResource, ...]:
        found = []
        for body in bodies:
            try:
                found.append(model.parse(body))
            except InvalidResource as invalid:
                self.invalid.append(str(invalid))
        return tuple(found)


async def observe_picture(cluster: Cluster, namespace: str, system: str) -> Picture:
    """Return the picture of a namespace, "" = of all; the operator runs in `system`. Raises `OperatorError`."""
    reader = _Reader(cluster)
    caches = reader.parsed(PrefixCache, await reader.all(PREFIX_CACHE, namespace))
    pools = reader.parsed(InferencePool, await reader.all(INFERENCE_POOL, namespace))
    bindings = reader.parsed(DPUBinding, await reader.all(DPU_BINDING))
    pods: dict[str, Json] = {}
    for label in (names.CACHE_LABEL, names.POOL_LABEL):
        pods |= {pod["metadata"]["uid"]: pod for pod in await reader.all(POD, namespace, {label: ""})}
    settings = await reader.all(CONFIG_MAP, namespace, {names.COMPONENT_LABEL: CONFIG, names.CACHE_LABEL: ""})
    return Picture(
        caches=caches,
        pools=pools,
        pods=tuple(sorted(pods.values(), key=lambda pod: (pod["metadata"]["namespace"], pod["metadata"]["name"]))),
        config_maps=settings,
        nodes=tuple(read_node(body) for body in await reader.all(NODE)),
        bindings=bindings,
        lease=await reader.one(Ref(LEASE, system, LEASE_NAME)),
        hook=await reader.one(Ref(WEBHOOK_CONFIGURATION, "", CONFIGURATION)),
        unreadable=tuple(dict.fromkeys(reader.unreadable)),
        invalid=tuple(reader.invalid),
    )

"""The part of a PrefixCache that says where chunks are kept."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from shadowserve_crds.base import Rule, Section, immutable
from shadowserve_crds.quantities import Quantity
from shadowserve_crds.sections import ComputeResources, SecretReference


class StoreType(StrEnum):
    """Who runs the store."""

    MANAGED = "Managed"
    EXTERNAL = "External"


class Eviction(StrEnum):
    """Which chunks a full store gives up."""

    LEAST_FREQUENTLY_USED = "LeastFrequentlyUsed"
    LEAST_RECENTLY_USED = "LeastRecentlyUsed"


class StoreTopology(StrEnum):
    """How an external store is built."""

    STANDALONE = "Standalone"
    CLUSTER = "Cluster"


class PersistentStorage(Section):
    """A volume for every store server, so that a restart keeps what is cached."""

    size: Quantity
    """How large each volume is."""
    storage_class_name: str | None = None
    """Class of the volumes; unset: the cluster's default."""


class ManagedStore(Section):
    """A Valkey that the operator runs."""

    rules: ClassVar = (
        Rule(
            "has(self.storage) == has(oldSelf.storage) && (!has(self.storage) || self.storage == oldSelf.storage)",
            "spec.store.managed.storage is fixed once the store exists: "
            "make a new PrefixCache with the volumes you want",
        ),
        Rule(
            "!has(self.resources) || quantity(string(self.resources.memory))"
            ".compareTo(quantity(string(self.memoryPerShard))) > 0",
            "spec.store.managed.resources.memory must be more than spec.store.managed.memoryPerShard: "
            "raise it, because the server itself needs some, or leave spec.store.managed.resources out",
        ),
    )
    shards: Annotated[int, Field(ge=1, le=64)] = 1
    """Servers that share the keys, as a cluster. May grow and shrink without a restart: what is cached moves along."""
    replicas_per_shard: Annotated[int, Field(ge=0, le=5)] = 0
    """Copies of every shard, for availability. 0: a lost server loses its part of the cache, and nothing else."""
    memory_per_shard: Quantity = Quantity("1Gi")
    """Memory for chunks in one server; beyond it the least useful are given up. A change restarts one at a time."""
    eviction: Eviction = Eviction.LEAST_FREQUENTLY_USED
    """Which chunks are given up first. Takes effect at once."""
    storage: PersistentStorage | None = None
    """Volumes, if a restart must not lose the cache; unset: memory only. Fixed once the store exists; gone with it."""
    image: str | None = None
    """Image of the server; unset: the one that this operator was tested with."""
    resources: ComputeResources | None = None
    """Cores and memory of one server; unset: derived from memoryPerShard."""


class ExternalTls(Section):
    """How an external store is trusted."""

    ca_secret_ref: SecretReference | None = None
    """Secret with key `ca.crt`; unset: the authorities that the image knows."""


class ExternalStore(Section):
    """A Valkey or Redis that somebody else runs."""

    rules: ClassVar = (
        Rule(
            "self.topology == 'Cluster' || size(self.endpoints) == 1",
            "spec.store.external.endpoints: a Standalone store has one: "
            "leave one, or set spec.store.external.topology to Cluster",
        ),
    )
    endpoints: Annotated[
        list[Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:/\s]+):[0-9]{1,5}$")]],
        Field(min_length=1, max_length=64),
    ]
    """`host:port`; one, or for a cluster any of its members. A change rolls the pods and the data planes."""
    topology: StoreTopology = StoreTopology.STANDALONE
    """Whether it is one server or a cluster. A change rolls the pods and the data planes."""
    credentials_secret_ref: SecretReference | None = None
    """Secret with keys `username` (optional) and `password`; unset: no authentication.

    No engine starts with the cache before it exists. Another user name or password rolls the pods and the data planes
    within a minute; while it is away, they keep the login that they have.
    """
    tls: ExternalTls | None = None
    """Set to speak TLS with it, `{}` is enough; unset: plain text. A change rolls the pods and the data planes."""


class StoreSpec(Section):
    """Where chunks are kept."""

    rules: ClassVar = (
        Rule(
            "self.type != 'External' || has(self.external)",
            "spec.store.external is required when spec.store.type is External: name its endpoints",
        ),
        Rule(
            "self.type != 'Managed' || !has(self.external)",
            "spec.store.external does not go with spec.store.type Managed: "
            "remove it or set spec.store.type to External",
        ),
        Rule(
            "self.type != 'External' || !has(self.managed)",
            "spec.store.managed does not go with spec.store.type External: remove it or set spec.store.type to Managed",
        ),
    )
    type: Annotated[StoreType, immutable("spec.store.type")] = StoreType.MANAGED
    """`Managed`: the operator runs Valkey. `External`: an existing Valkey or Redis. Fixed at creation."""
    managed: ManagedStore | None = None
    """The managed store; unset: one server with the defaults."""
    external: ExternalStore | None = None
    """The external store."""

"""PrefixCache: where KV caches are kept, how they are encoded, and which SmartNICs restore them."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from shadowserve_crds.base import Column, Resource, Rule, Section, StatusSection, immutable, rule
from shadowserve_crds.conditions import LIST_MAP_BY_TYPE, Condition
from shadowserve_crds.names import DEFAULT_HOST_LABEL
from shadowserve_crds.quantities import Duration, Quantity


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


class CodecTier(StrEnum):
    """How much of the values is kept."""

    LOSSLESS = "Lossless"
    HIGH = "High"
    BALANCED = "Balanced"
    COMPACT = "Compact"


class Transform(StrEnum):
    """How much is spent on making the bytes fewer."""

    AUTO = "Auto"
    NONE = "None"
    HEAD = "Head"
    LAYERS = "Layers"


class PlaceName(StrEnum):
    """Where a data plane can run."""

    DPU = "DPU"
    HOST = "Host"


class Landing(StrEnum):
    """As what chunks land in the engine's pod."""

    CODES = "Codes"
    VALUES = "Values"


class RdmaMode(StrEnum):
    """How a data-plane pod gets an RDMA device."""

    NONE = "None"
    SHARED_DEVICE = "SharedDevice"
    SRIOV = "SRIOV"


class Isolation(StrEnum):
    """Who shares cached prefixes with whom."""

    SHARED = "Shared"
    PER_POOL = "PerPool"
    PER_TENANT = "PerTenant"


class Transport(StrEnum):
    """How connections between sidecar, data plane and store are protected."""

    MUTUAL_TLS = "MutualTLS"
    PLAINTEXT = "Plaintext"


class ComputeResources(Section):
    """Cores and memory of one container; requests and limits are equal."""

    cpu: Quantity = Quantity("1")
    """Cores. A change restarts the containers that have them."""
    memory: Quantity = Quantity("1Gi")
    """Memory. A change restarts the containers that have it."""


class Toleration(Section):
    """A taint that pods may ignore, as in a pod's spec."""

    key: str | None = None
    """The taint's key; unset with operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether the value counts."""
    value: str | None = None
    """The taint's value, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; unset: all of them."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is tolerated; unset: for ever."""


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
            "store.managed.storage is fixed once the store exists: make a new PrefixCache with the volumes you want",
        ),
        Rule(
            "!has(self.resources) || quantity(string(self.resources.memory))"
            ".compareTo(quantity(string(self.memoryPerShard))) > 0",
            "store.managed.resources.memory must be more than memoryPerShard: the server itself needs some",
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


class SecretReference(Section):
    """A Secret of the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Its name."""


class ExternalTls(Section):
    """How an external store is trusted."""

    ca_secret_ref: SecretReference | None = None
    """Secret with key `ca.crt`; unset: the authorities that the image knows."""


class ExternalStore(Section):
    """A Valkey or Redis that somebody else runs."""

    rules: ClassVar = (
        Rule(
            "self.topology == 'Cluster' || size(self.endpoints) == 1",
            "store.external.endpoints: a Standalone store has one: leave one, or set topology to Cluster",
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

    Naming another one rolls the pods; another password in the same one is read by pods that start later.
    """
    tls: ExternalTls | None = None
    """Set to speak TLS with it, `{}` is enough; unset: plain text. A change rolls the pods and the data planes."""


class StoreSpec(Section):
    """Where chunks are kept."""

    rules: ClassVar = (
        Rule(
            "self.type != 'External' || has(self.external)",
            "store.external is required when store.type is External: name its endpoints",
        ),
        Rule(
            "self.type != 'Managed' || !has(self.external)",
            "store.external does not go with store.type Managed: remove it or set store.type to External",
        ),
        Rule(
            "self.type != 'External' || !has(self.managed)",
            "store.managed does not go with store.type External: remove it or set store.type to Managed",
        ),
    )
    type: Annotated[StoreType, immutable("store.type")] = StoreType.MANAGED
    """`Managed`: the operator runs Valkey. `External`: an existing Valkey or Redis. Fixed at creation."""
    managed: ManagedStore | None = None
    """The managed store; unset: one server with the defaults."""
    external: ExternalStore | None = None
    """The external store."""


_NO_TRANSFORM_YET = "codec.transform: Head and Layers are not built yet: write Auto or None"


class CodecSpec(Section):
    """How chunks are encoded."""

    tier: CodecTier = CodecTier.BALANCED
    """`Lossless`, `High` (d=.2), `Balanced` (d=.35), `Compact` (d=.5).

    A change rolls the pods and affects new chunks; readers take every tier.
    """
    transform: Annotated[Transform, rule("self in ['Auto', 'None']", _NO_TRANSFORM_YET)] = Transform.AUTO
    """What is spent on making the bytes fewer. `Auto` falls back to `None` while a model has no profile.

    No profile can be made yet: both are the same today, and `Head` and `Layers` are refused.
    """
    chunk_tokens: Annotated[int, Field(ge=64, le=4096), immutable("codec.chunkTokens")] = 256
    """Tokens in a chunk, a multiple of the engine's block size. Fixed at creation."""

    @field_validator("transform")
    @classmethod
    def _is_built(cls, transform: Transform) -> Transform:
        """Refuse what would do nothing, also in a resource that is older than the API server's rule."""
        if transform not in (Transform.AUTO, Transform.NONE):
            raise ValueError(_NO_TRANSFORM_YET)
        return transform


class Hugepages(Section):
    """Huge pages of a data-plane pod."""

    page_size: Literal["2Mi", "1Gi"] = "2Mi"
    """Size of a page."""
    size: Quantity
    """How much of them."""


class RdmaSpec(Section):
    """How a data-plane pod writes into the engine's memory."""

    rules: ClassVar = (
        Rule(
            "self.mode == 'None' || has(self.resourceName)",
            "placement.dpu.rdma.resourceName is required unless mode is None: name the device plugin's resource",
        ),
    )
    mode: RdmaMode = RdmaMode.NONE
    """`None`: a TCP stream. `SharedDevice`, `SRIOV`: an RDMA device from a device plugin."""
    resource_name: str | None = None
    """The device plugin's resource, for example `rdma/rdma_shared_device_a`; chosen by the cluster's administrator."""


class DpuPlacement(Section):
    """The data plane on SmartNICs."""

    node_selector: dict[str, str] | None = None
    """Labels of card nodes; unset: every node that has the label of hostLabelKey."""
    host_label_key: Annotated[str, Field(min_length=1, max_length=317)] = DEFAULT_HOST_LABEL
    """Label on a card's node whose value names the host node that the card sits in."""
    tolerations: list[Toleration] = []
    """Taints of card nodes that the data plane ignores."""
    resources: Annotated[
        ComputeResources,
        rule("!string(self.cpu).contains('m')", "placement.dpu.resources.cpu must be whole cores: for example 8"),
    ] = ComputeResources(cpu=Quantity("4"), memory=Quantity("4Gi"))
    """What one data-plane pod gets, requests = limits, whole cores."""
    extended_resources: dict[str, Quantity] = {}
    """Further resources, verbatim, for example `nvidia.com/bf_sf: 1`."""
    hugepages: Hugepages | None = None
    """Huge pages; unset: none."""
    rdma: RdmaSpec = RdmaSpec()
    """RDMA; without it chunks are placed by TCP."""


class HostPlacement(Section):
    """The data plane inside the sidecar, on host cores."""

    resources: ComputeResources = ComputeResources()
    """What the pipeline may use; part of the sidecar's requests and limits. A change rolls the pods."""


class PlacementSpec(Section):
    """Where restoring runs, and as what chunks land."""

    rules: ClassVar = (
        Rule("self.order.all(p, self.order.exists_one(q, q == p))", "placement.order names a place twice"),
    )
    order: Annotated[list[PlaceName], Field(min_length=1, max_length=2)] = [PlaceName.DPU, PlaceName.HOST]
    """Best first; recomputing is always the last resort. `[DPU]` alone: never on host cores.

    Whether and when cards are used changes within seconds, without a restart. Only adding or removing `Host` rolls the
    pods: their sidecars get other cores and memory.
    """
    dpu: DpuPlacement = DpuPlacement()
    """Card nodes and what pods on them get."""
    host: HostPlacement = HostPlacement()
    """Host cores."""
    landing: Landing = Landing.CODES
    """`Codes`: 8-bit codes land, the engine's scatter dequantizes. `Values`: the data plane does. Rolls the pods."""
    landing_buffer: Quantity = Quantity("512Mi")
    """Memory of every pod for chunks that land; at least 8 chunks of the pool's model. A change rolls the pods."""


class LimitsSpec(Section):
    """What a cache may cost."""

    lookup_deadline: Duration = Duration("20ms")
    """How long a request waits for the answer to "is it cached"; then the engine computes. A change rolls the pods."""
    fetch_deadline: Duration = Duration("5s")
    """How long it waits for chunks; then the engine computes what has not come. A change rolls the pods."""
    max_in_flight_chunks: Annotated[int, Field(ge=1, le=65536)] = 64
    """Chunks under way to one pod at once. A change rolls the pods."""
    time_to_live: Duration | None = None
    """How long chunks are kept; unset: until the store needs the room. A change rolls the pods; older chunks stay."""


class TenancySpec(Section):
    """Who may find whose prefixes."""

    isolation: Isolation = Isolation.PER_POOL
    """`Shared`, `PerPool`, or `PerTenant` (also by the request's `cache_salt`).

    A change rolls the pods and starts a new cache generation.

    A pool is an InferencePool, or the workload of pods that opt in: their Deployment (by its name), StatefulSet, Job,
    or a pod alone. A pool that is deleted and made again starts anew.
    """


class IssuerReference(Section):
    """An issuer of cert-manager."""

    name: Annotated[str, Field(min_length=1)]
    """Its name."""
    kind: Literal["Issuer", "ClusterIssuer"] = "Issuer"
    """Whether it belongs to the namespace or the cluster."""


class SecuritySpec(Section):
    """How connections are protected."""

    transport: Transport = Transport.MUTUAL_TLS
    """`MutualTLS`: certificates are issued and rotated by the operator. `Plaintext` must be asked for.

    A change rolls the pods, the data planes and the store.
    """
    issuer_ref: IssuerReference | None = None
    """Let cert-manager issue the certificates instead; needs an issuer that tells its authority (`ca.crt`).

    Setting or unsetting it rolls the pods, the data planes and the store.
    """


class PrefixCacheSpec(Section):
    """What the user wants."""

    store: StoreSpec = StoreSpec()
    """Where chunks are kept."""
    codec: CodecSpec = CodecSpec()
    """How they are encoded."""
    placement: PlacementSpec = PlacementSpec()
    """Where they are restored."""
    limits: LimitsSpec = LimitsSpec()
    """What a cache may cost."""
    tenancy: TenancySpec = TenancySpec()
    """Who shares with whom."""
    security: SecuritySpec = SecuritySpec()
    """How connections are protected."""


class StoreStatus(StatusSection):
    """The store as it is."""

    shards: int = 0
    """Shards wanted."""
    ready_shards: int = 0
    """Shards that answer."""
    shown: str = ""
    """`readyShards/shards`, for `kubectl get`."""
    endpoint: str = ""
    """Where it is."""


class DataPlanesStatus(StatusSection):
    """The data planes as they are."""

    desired: int = 0
    """Pods wanted on cards."""
    ready: int = 0
    """Pods on cards that serve."""
    shown: str = ""
    """`ready/desired`, for `kubectl get`."""
    on_dpu: Annotated[int, Field(alias="onDPU")] = 0
    """Engine pods whose data plane is on a card."""
    on_host: int = 0
    """Engine pods whose data plane is on the host."""


class PrefixCacheStatus(StatusSection):
    """What is."""

    observed_generation: int = 0
    """The generation of the spec that this status is about."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=LIST_MAP_BY_TYPE)] = []
    """StoreReady, DataPlaneReady, PairingResolved, CertificatesReady, RoundTripVerified, PodsInjected, Ready."""
    store: StoreStatus = StoreStatus()
    """The store."""
    data_planes: DataPlanesStatus = DataPlanesStatus()
    """The data planes."""
    pools: int = 0
    """InferencePools that use this cache."""
    unhealthy_hosts: Annotated[list[str], Field(max_length=20)] = []
    """Hosts whose pods have no data plane; at most 20."""


class PrefixCacheCondition(StrEnum):
    """The conditions of a PrefixCache, each with one owner; `Ready` is computed from them."""

    STORE_READY = "StoreReady"
    """All shards answer (reasons: Succeeded, Pending, Unreachable, TopologyMismatch, SecretNotFound, Error)."""
    DATA_PLANE_READY = "DataPlaneReady"
    """Every data-plane pod serves (reasons: Succeeded, Pending, NoDpuNodeMatches, NotNeeded)."""
    PAIRING_RESOLVED = "PairingResolved"
    """Every card has one host (reasons: Succeeded, HostNotFound, AmbiguousHost, SelfPair, NameTooLong, NotNeeded)."""
    CERTIFICATES_READY = "CertificatesReady"
    """Every certificate is valid (reasons: Succeeded, Pending, Expired, IssuerNotFound, NotNeeded, Error)."""
    ROUND_TRIP_VERIFIED = "RoundTripVerified"
    """A canary chunk was stored, fetched through every data plane and compared.

    Reasons: Succeeded, Pending, Error (it failed: the message says where), Unreachable (a data plane cannot be asked),
    NoDataPlane (none runs now). Only Error makes `Ready` false.
    """
    PODS_INJECTED = "PodsInjected"
    """Every pod that asks for the cache by a label has the sidecar (reasons: Succeeded, PodsWithoutSidecar).

    Not part of `Ready`: the cache serves all the same.
    """


class PrefixCache(Resource):
    """Where KV caches are kept, how they are encoded, and which SmartNICs restore them."""

    kind_name: ClassVar = "PrefixCache"
    plural: ClassVar = "prefixcaches"
    short_names: ClassVar = ("pfc",)
    columns: ClassVar = (
        Column("Ready", ".status.conditions[?(@.type=='Ready')].status"),
        Column("Store", ".status.store.shown"),
        Column("Planes", ".status.dataPlanes.shown"),
        Column("Tier", ".spec.codec.tier"),
        Column("Reason", ".status.conditions[?(@.type=='Ready')].message", priority=1),
        Column("Age", ".metadata.creationTimestamp", "date"),
    )

    spec: PrefixCacheSpec = PrefixCacheSpec()
    """What the user wants."""
    status: PrefixCacheStatus = PrefixCacheStatus()
    """What is."""

"""PrefixCache: where KV caches are kept, how they are encoded, and which SmartNICs restore them."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from shadowserve_crds.base import Column, Resource, Section, StatusSection, immutable, rule
from shadowserve_crds.conditions import LIST_MAP_BY_TYPE, Condition
from shadowserve_crds.placement import PlacementSpec
from shadowserve_crds.quantities import Duration
from shadowserve_crds.store import StoreSpec


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


class Isolation(StrEnum):
    """Who shares cached prefixes with whom."""

    SHARED = "Shared"
    PER_POOL = "PerPool"
    PER_TENANT = "PerTenant"


class Transport(StrEnum):
    """How connections between sidecar, data plane and store are protected."""

    MUTUAL_TLS = "MutualTLS"
    PLAINTEXT = "Plaintext"


_NO_TRANSFORM_YET = "Head and Layers are not built yet: write Auto or None"
_TRANSFORM_RULE = rule("self in ['Auto', 'None']", f"spec.codec.transform: {_NO_TRANSFORM_YET}")


class CodecSpec(Section):
    """How chunks are encoded."""

    tier: CodecTier = CodecTier.BALANCED
    """`Lossless`, `High` (d=.2), `Balanced` (d=.35), `Compact` (d=.5).

    A change rolls the pods and affects new chunks; readers take every tier.
    """
    transform: Annotated[Transform, _TRANSFORM_RULE] = Transform.AUTO
    """What is spent on making the bytes fewer. `Auto` falls back to `None` while a model has no profile.

    No profile can be made yet, so both are the same today. `Head` and `Layers` are reserved names, refused until they
    are built: write `Auto` or `None`.
    """
    chunk_tokens: Annotated[int, Field(ge=64, le=4096), immutable("spec.codec.chunkTokens")] = 256
    """Tokens in a chunk, a multiple of the engine's block size. Fixed at creation."""

    @field_validator("transform")
    @classmethod
    def _is_built(cls, transform: Transform) -> Transform:
        """Refuse what would do nothing, also in a resource that is older than the API server's rule."""
        if transform not in (Transform.AUTO, Transform.NONE):
            raise ValueError(_NO_TRANSFORM_YET)
        return transform


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
    or a pod alone. A pool that is deleted and made again starts anew. This keeps the clients of pools apart; who may
    create pods in the namespace can read the whole cache.
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
    silent_since: Annotated[str | None, Field(json_schema_extra={"format": "date-time"})] = None
    """Since when servers that do not answer, or refuse, keep the operator from finding it ready; unset if none do.

    A store that was ready stays so, and `StoreReady` names the servers, until that has lasted 30 seconds.
    """


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
    """All shards answer (reasons: Succeeded, Pending, Unreachable, TopologyMismatch, SecretNotFound, Error).

    True with reason Pending: engines store and fetch while shards come and go, or a server is silent for a moment.
    """
    DATA_PLANE_READY = "DataPlaneReady"
    """Every data-plane pod serves (reasons: Succeeded, Pending, NoDpuNodeMatches, NotNeeded, Error)."""
    PAIRING_RESOLVED = "PairingResolved"
    """Every card has one host.

    Reasons: Succeeded, HostNotFound, AmbiguousHost, SelfPair, NameTooLong, NotNeeded, Error.
    """
    CERTIFICATES_READY = "CertificatesReady"
    """Every certificate is valid.

    Reasons: Succeeded, Pending, Expired, IssuerNotFound, IssuerNotReady, NotNeeded, Error.
    """
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

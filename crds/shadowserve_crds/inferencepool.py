"""InferencePool: which model runs, on what engine image, how many replicas, and which PrefixCache it uses."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from shadowserve_crds.base import Column, Resource, Rule, Section, StatusSection, immutable
from shadowserve_crds.conditions import LIST_MAP_BY_TYPE, Condition
from shadowserve_crds.quantities import Duration
from shadowserve_crds.sections import SecretReference

_FREE_FORM: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_ONE_SOURCE = "(has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.huggingFace) ? 1 : 0) + (has(self.image) ? 1 : 0)"


class SourceType(StrEnum):
    """Where a model's files come from."""

    PERSISTENT_VOLUME_CLAIM = "PersistentVolumeClaim"
    HUGGING_FACE = "HuggingFace"
    IMAGE = "Image"


class EngineType(StrEnum):
    """Engines that the connector knows."""

    VLLM = "VLLM"


class GatewayPool(StrEnum):
    """Whether the Gateway API inference extension gets a pool of these pods."""

    NONE = "None"
    CREATE = "Create"


class ClaimSource(Section):
    """A folder in a volume."""

    claim_name: Annotated[str, Field(min_length=1, max_length=253)]
    """PersistentVolumeClaim of the same namespace, mounted read-only."""
    path: str = "/"
    """Folder of the model in it."""


class HuggingFaceSource(Section):
    """A repository that the engine downloads at start."""

    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    """`owner/name`."""
    token_secret_ref: SecretReference | None = None
    """Secret with key `token`; unset: the repository is public."""


class ImageSource(Section):
    """An image whose files are the model (an image volume)."""

    reference: Annotated[str, Field(min_length=1)]
    """The image, best by digest."""


class ModelSource(Section):
    """Where the model's files come from: `type`, and the block of the same name."""

    rules: ClassVar = (
        Rule(f"{_ONE_SOURCE} == 1", "spec.model.source: set exactly one of persistentVolumeClaim, huggingFace, image"),
        Rule(
            "self.type != 'PersistentVolumeClaim' || has(self.persistentVolumeClaim)",
            "spec.model.source.persistentVolumeClaim is required when spec.model.source.type is PersistentVolumeClaim: "
            "set its claimName, or another type",
        ),
        Rule(
            "self.type != 'HuggingFace' || has(self.huggingFace)",
            "spec.model.source.huggingFace is required when spec.model.source.type is HuggingFace: "
            "set its repository, or another type",
        ),
        Rule(
            "self.type != 'Image' || has(self.image)",
            "spec.model.source.image is required when spec.model.source.type is Image: "
            "set its reference, or another type",
        ),
    )
    type: SourceType
    """Which block is set."""
    persistent_volume_claim: ClaimSource | None = None
    """A folder in a volume."""
    hugging_face: HuggingFaceSource | None = None
    """A repository of Hugging Face."""
    image: ImageSource | None = None
    """An image volume."""


class ModelSpec(Section):
    """The model. Fixed at creation: another model is another pool, with a cache of its own."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """The name that requests use."""
    source: ModelSource
    """Where its files come from."""
    revision: str = "main"
    """Version of the files; part of the cache generation, so that caches of versions never mix."""


class EngineSpec(Section):
    """The engine's container."""

    type: EngineType = EngineType.VLLM
    """Which engine."""
    image: Annotated[str, Field(min_length=1)]
    """Any stock image of a supported version (vLLM 0.32)."""
    args: list[str] = []
    """Further arguments of the server. Those that the cache needs are added, and never overwritten silently."""
    env: list[Annotated[dict[str, Any], Field(json_schema_extra=_FREE_FORM)]] = []
    """Environment variables, as in a container."""
    resources: Annotated[dict[str, Any], Field(json_schema_extra=_FREE_FORM)] = {}
    """Requests and limits of the engine's container, as in a container."""
    block_tokens: Annotated[int, Field(ge=1, le=1024)] = 16
    """Tokens in a block of the engine's own cache; must divide the cache's chunkTokens."""
    pod_template: Annotated[dict[str, Any], Field(json_schema_extra=_FREE_FORM)] = {}
    """A fragment of a PodTemplate, merged strategically: volumes, mounts, node selector, tolerations, security."""


class CacheReference(Section):
    """A PrefixCache of the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Its name."""


class RolloutSpec(Section):
    """How pods are replaced."""

    rules: ClassVar = (
        Rule(
            "self.maxSurge > 0 || self.maxUnavailable > 0",
            "spec.rollout.maxSurge and spec.rollout.maxUnavailable cannot both be 0: set one of them to 1 or more",
        ),
    )
    max_surge: Annotated[int, Field(ge=0)] = 1
    """Pods more than wanted, while rolling."""
    max_unavailable: Annotated[int, Field(ge=0)] = 0
    """Pods fewer than wanted, while rolling."""
    drain: Duration = Duration("30s")
    """How long requests in flight may take before a pod goes."""


class GatewaySpec(Section):
    """The Gateway API inference extension."""

    inference_pool: GatewayPool = GatewayPool.NONE
    """`Create`: also make an inference.networking.k8s.io/v1 InferencePool of these pods, if that CRD is installed.

    Its endpoint picker is the Service `<name>-epp`, port 9002; without it requests go to any engine (FailOpen).
    """


class InferencePoolSpec(Section):
    """What the user wants."""

    model: Annotated[ModelSpec, immutable("spec.model")]
    """The model."""
    engine: EngineSpec
    """The engine."""
    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Engine pods; written by you, or by one autoscaler through /scale."""
    cache_ref: CacheReference | None = None
    """The cache; unset: plain vLLM."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    """Port of the engine and of the pool's Service."""
    rollout: RolloutSpec = RolloutSpec()
    """How pods are replaced."""
    gateway: GatewaySpec = GatewaySpec()
    """The Gateway API inference extension."""


class PodsByPlace(StatusSection):
    """Engine pods by where their data plane is."""

    dpu: int = 0
    """On a card."""
    host: int = 0
    """In the sidecar."""
    none: int = 0
    """Nowhere: they compute."""
    shown: str = ""
    """Those that there are, in words, for `kubectl get`."""


class InferencePoolStatus(StatusSection):
    """What is."""

    observed_generation: int = 0
    """The generation of the spec that this status is about."""
    replicas: int = 0
    """Engine pods there are."""
    ready_replicas: int = 0
    """Engine pods that serve."""
    shown: str = ""
    """Those that serve of those that are wanted, for `kubectl get`."""
    selector: str = ""
    """Label selector of the engine pods, for autoscalers."""
    cache_generation: str = ""
    """Digest of everything that decides which caches fit: model, revision, tenancy."""
    data_planes: PodsByPlace = PodsByPlace()
    """Engine pods by where their data plane is."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=LIST_MAP_BY_TYPE)] = []
    """EnginesReady, CacheAttached, RolloutComplete, Ready."""


class InferencePoolCondition(StrEnum):
    """The conditions of an InferencePool, each with one owner; `Ready` is computed from them."""

    ENGINES_READY = "EnginesReady"
    """As many engines serve as wanted.

    Reasons: Succeeded, Pending, ModelNotFound, PodsFailing, Failed (spec.engine.args sets what the pool sets), Error.
    """
    CACHE_ATTACHED = "CacheAttached"
    """Every pod runs with the sidecar, which took its engine, and all compute the same keys.

    Reasons: Succeeded, CacheNotFound, PodsWithoutSidecar, LandingBufferTooSmall, EngineRefused, HashContractDiffers,
    OlderSettings (a pod was just too early), Failed (blocks do not fit into chunks), NotNeeded.
    """
    ROLLOUT_COMPLETE = "RolloutComplete"
    """All pods are of the current template (reasons: Succeeded, Pending)."""


class InferencePool(Resource):
    """Which model runs, on what engine image, how many replicas, and which PrefixCache it uses."""

    kind_name: ClassVar = "InferencePool"
    plural: ClassVar = "inferencepools"
    short_names: ClassVar = ("sspool",)
    scale: ClassVar = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    columns: ClassVar = (
        Column("Ready", ".status.shown"),
        Column("Model", ".spec.model.name"),
        Column("Cache", ".spec.cacheRef.name"),
        Column("Planes", ".status.dataPlanes.shown"),
        Column("Reason", ".status.conditions[?(@.type=='Ready')].message", priority=1),
        Column("Age", ".metadata.creationTimestamp", "date"),
    )

    spec: InferencePoolSpec
    """What the user wants."""
    status: InferencePoolStatus = InferencePoolStatus()
    """What is."""

"""The kinds of object that the operator reads and writes, and how one object is named."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shadowserve_crds import names

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """A kind of object as the API server serves it."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "") -> str:
        """Return the address of one object, or without a name of them all; without a namespace of all namespaces."""
        root = "/apis" if "/" in self.api_version else "/api"
        parts = [root, self.api_version]
        parts += ["namespaces", namespace] if self.namespaced and namespace else []
        return "/".join([*parts, self.plural, *([name] if name else [])])


CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
EVENT = Kind("v1", "Event", "events")
NODE = Kind("v1", "Node", "nodes", namespaced=False)
POD = Kind("v1", "Pod", "pods")
VOLUME_CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SECRET = Kind("v1", "Secret", "secrets")
SERVICE = Kind("v1", "Service", "services")
DAEMON_SET = Kind("apps/v1", "DaemonSet", "daemonsets")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
WEBHOOK_CONFIGURATION = Kind(
    "admissionregistration.k8s.io/v1",
    "MutatingWebhookConfiguration",
    "mutatingwebhookconfigurations",
    namespaced=False,
)
CERTIFICATE = Kind("cert-manager.io/v1", "Certificate", "certificates")
ISSUER = Kind("cert-manager.io/v1", "Issuer", "issuers")
CLUSTER_ISSUER = Kind("cert-manager.io/v1", "ClusterIssuer", "clusterissuers", namespaced=False)
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
PREFIX_CACHE = Kind(names.API_VERSION, "PrefixCache", "prefixcaches")
INFERENCE_POOL = Kind(names.API_VERSION, "InferencePool", "inferencepools")
GATEWAY_POOL = Kind("inference.networking.k8s.io/v1", "InferencePool", "inferencepools")
"""That of the Gateway API inference extension, which has the same name as ours."""
DPU_BINDING = Kind(names.API_VERSION, "DPUBinding", "dpubindings", namespaced=False)

ALL = (
    CONFIG_MAP,
    EVENT,
    NODE,
    POD,
    VOLUME_CLAIM,
    SECRET,
    SERVICE,
    DAEMON_SET,
    DEPLOYMENT,
    STATEFUL_SET,
    DISRUPTION_BUDGET,
    WEBHOOK_CONFIGURATION,
    CERTIFICATE,
    ISSUER,
    CLUSTER_ISSUER,
    LEASE,
    PREFIX_CACHE,
    INFERENCE_POOL,
    GATEWAY_POOL,
    DPU_BINDING,
)
_BY_NAME = {(kind.api_version, kind.name): kind for kind in ALL}


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """One object."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.name} {self.name}"

    @property
    def path(self) -> str:
        """Its address."""
        return self.kind.path(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """An object that is not as wanted, and why in words: it was refused, or belongs to somebody else."""

    ref: Ref
    said: str

    def __str__(self) -> str:
        return f"{self.ref}: {self.said}"


def ref_of(manifest: Mapping[str, Any]) -> Ref:
    """Return what a manifest names. Raises `KeyError` for a kind that the operator knows nothing of."""
    kind = _BY_NAME[manifest["apiVersion"], manifest["kind"]]
    metadata = manifest["metadata"]
    return Ref(kind, metadata.get("namespace", "") if kind.namespaced else "", metadata["name"])

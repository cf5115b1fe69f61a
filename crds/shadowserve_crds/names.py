"""Names that more than one part must spell the same: labels, annotations, paths in the pod, ports, container names.

Whoever writes one of them and whoever reads it import it from here; nothing here depends on anything.
"""

from typing import Final

GROUP: Final = "shadowserve.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CATEGORY: Final = "shadowserve"

# Labels. The first three are on every object that the operator makes.
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "shadowserve-operator"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
CACHE_LABEL: Final = "shadowserve.io/cache"
"""Names the PrefixCache: on objects made for it, and on any pod that wants the sidecar."""
POOL_LABEL: Final = "shadowserve.io/pool"
"""Names the InferencePool that an object was made for."""

# Annotations.
ENGINE_CONTAINER_ANNOTATION: Final = "shadowserve.io/engine-container"
INJECTED_ANNOTATION: Final = "shadowserve.io/injected"
SKIPPED_ANNOTATION: Final = "shadowserve.io/skipped"
DATA_PLANE_ANNOTATION: Final = "shadowserve.io/data-plane"
"""Where the data plane of this pod is now; written by the operator, read by the sidecar (downward API)."""
SPEC_HASH_ANNOTATION: Final = "shadowserve.io/spec-hash"
CONFIG_ANNOTATION: Final = "shadowserve.io/config"
"""On the ConfigMap with config.json: a digest of all that sidecars read at their start; on an injected pod: the same of
the settings that it was made for, and if it opted in of those that it really read. Only the operator computes it."""
LOGIN_ANNOTATION: Final = "shadowserve.io/login"
"""On a data plane's pod: a digest of how it logs in to the store."""
GENERATION_ANNOTATION: Final = "shadowserve.io/generation"
"""On the ConfigMap with config.json: which generation of its PrefixCache it was written for."""

# Inside an injected pod.
CONNECTOR_CONTAINER: Final = "shadowserve-connector"
SIDECAR_CONTAINER: Final = "shadowserve-sidecar"
RUN_FOLDER: Final = "/run/shadowserve"
SOCKET_PATH: Final = "/run/shadowserve/sidecar.sock"
LANDING_FOLDER: Final = "/run/shadowserve/landing"
CONFIG_PATH: Final = "/etc/shadowserve/config.json"
ANNOTATIONS_PATH: Final = "/etc/shadowserve/pod/annotations"
TLS_FOLDER: Final = "/etc/shadowserve/tls"
SECRETS_FOLDER: Final = "/etc/shadowserve/secrets"
CONNECTOR_FOLDER: Final = "/opt/shadowserve/connector"

# Environment of the sidecar.
SCOPE_VARIABLE: Final = "SHADOWSERVE_SCOPE"
"""Whose chunks it reads and writes, unless the cache's isolation is `Shared`."""

# Ports.
DATA_PLANE_PORT: Final = 9464
SIDECAR_METRICS_PORT: Final = 9465
DATA_PLANE_METRICS_PORT: Final = 9466
OPERATOR_METRICS_PORT: Final = 9467
STORE_PORT: Final = 6379
STORE_BUS_PORT: Final = 16379
"""Where the servers of a store talk to one another: the port of clients and 10000 (cluster specification)."""

# Nodes.
DEFAULT_HOST_LABEL: Final = "provisioning.dpu.nvidia.com/host"
"""On a card's node: the name of the host node that the card sits in (NVIDIA DPF)."""

FIELD_MANAGER: Final = "shadowserve-operator"
FINALIZER: Final = "shadowserve.io/cleanup"

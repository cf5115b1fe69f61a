"""The resources of demo and stories: a cache whose data plane runs on a card, and a pool of engines that uses it."""

from collections.abc import Mapping, Sequence
from typing import Any

from shadowserve_crds import names
from shadowserve_testbed.images.volumes import engine_section, model_source
from shadowserve_testbed.layout import CARD_TAINT

NAMESPACE = "default"
CACHE, POOL, MODEL = "demo", "smollm2", "smollm2"
TIER = "Balanced"


def cache_manifest(tier: str = TIER, isolation: str = "PerPool") -> dict[str, Any]:
    """Return the PrefixCache; small, so that all of it fits on two cores."""
    store = {"memoryPerShard": "512Mi", "resources": {"cpu": "250m", "memory": "640Mi"}}
    spec = {
        "store": {"type": "Managed", "managed": store},
        "codec": {"tier": tier},
        "tenancy": {"isolation": isolation},
        "placement": {
            "order": ["DPU", "Host"],
            "dpu": {
                "resources": {"cpu": "1", "memory": "1Gi"},
                "tolerations": [{"key": CARD_TAINT, "operator": "Exists"}],
            },
            "host": {"resources": {"cpu": "400m", "memory": "512Mi"}},
            "landingBuffer": "256Mi",
        },
        # with all of it on two cores, the store sometimes waits for its turn longer than the 20 ms of the default
        "limits": {"lookupDeadline": "500ms"},
    }
    return _resource("PrefixCache", CACHE, spec)


def pool_manifest(
    replicas: int = 2, arguments: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the InferencePool."""
    spec = {
        "model": {"name": MODEL, "source": model_source()},
        "engine": engine_section(["--max-model-len", "4096", "--dtype", "bfloat16", *arguments], variables),
        "replicas": replicas,
        "cacheRef": {"name": CACHE},
        "rollout": {"drain": "2s"},
    }
    return _resource("InferencePool", POOL, spec)


def _resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}

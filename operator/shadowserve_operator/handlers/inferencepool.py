"""InferencePools: one worker each, poked by whatever may concern it. What is deleted takes its objects with it."""

from collections.abc import Mapping
from typing import Any

import kopf

from shadowserve_crds import names
from shadowserve_operator.desired.config import CONFIG
from shadowserve_operator.handlers.keeping import register_kind
from shadowserve_operator.kinds import INFERENCE_POOL
from shadowserve_operator.pool_reconcile import reconcile_inferencepool
from shadowserve_operator.runtime import Runtime

_KIND = INFERENCE_POOL.name
_OURS = {names.MANAGED_BY_LABEL: names.MANAGED_BY}
_OWN_KINDS = ("deployments.apps", "services", "poddisruptionbudgets.policy")


def register(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    """Tell kopf what starts a reconcile."""
    register_kind(registry, runtime, INFERENCE_POOL, reconcile_inferencepool)

    @kopf.on.event(names.GROUP, names.VERSION, "prefixcaches", registry=registry)
    async def cache_changed(
        namespace: str | None, name: str, body: Mapping[str, Any], type: str | None, **_: Any
    ) -> None:
        """Poke only when it matters: what a cache's status says does not, and it changes with every pool."""
        metadata = body["metadata"]
        seen = (metadata.get("uid"), metadata.get("generation"), metadata.get("deletionTimestamp"), type == "DELETED")
        if runtime.news("PrefixCache", namespace or "", name, seen):
            runtime.pokes.poke(_KIND, namespace or "")

    @kopf.on.event("configmaps", labels={**_OURS, names.COMPONENT_LABEL: CONFIG}, registry=registry)
    async def settings_written(namespace: str | None, name: str, body: Mapping[str, Any], **_: Any) -> None:
        """Poke when other settings of sidecars were written, or the same for another generation of their cache."""
        metadata = body["metadata"]
        annotations = metadata.get("annotations") or {}
        told = [annotations.get(each) for each in (names.GENERATION_ANNOTATION, names.CONFIG_ANNOTATION)]
        seen = (metadata.get("uid"), *told)
        if runtime.news("ConfigMap", namespace or "", name, seen):
            runtime.pokes.poke(_KIND, namespace or "")

    async def related(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        runtime.pokes.poke(_KIND, namespace or "", labels[names.POOL_LABEL])

    for own in _OWN_KINDS:
        kopf.on.event(own, labels={**_OURS, names.POOL_LABEL: kopf.PRESENT}, registry=registry)(related)
    kopf.on.event("v1", "pods", labels={names.POOL_LABEL: kopf.PRESENT}, registry=registry)(related)

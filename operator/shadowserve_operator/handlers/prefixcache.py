"""PrefixCaches: one worker each, poked by whatever may concern it, and the cleaning up that nobody else does."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import kopf

from shadowserve_crds import names
from shadowserve_operator.errors import ApiUnavailable, Conflict, OperatorError, Unfinished
from shadowserve_operator.gathering import Gathered
from shadowserve_operator.handlers.keeping import register_kind
from shadowserve_operator.kinds import PREFIX_CACHE, Json
from shadowserve_operator.reconcile import forget_prefixcache, reconcile_prefixcache
from shadowserve_operator.runtime import Runtime
from shadowserve_operator.telling import tell_left_out

_log = logging.getLogger(__name__)
_GATHERING_SECONDS = 1.0
"""Pods that are made within so much are told of together."""
_KIND = PREFIX_CACHE.name
_OURS = {names.MANAGED_BY_LABEL: names.MANAGED_BY}
_OWN_KINDS = (
    "configmaps",
    "secrets",
    "services",
    "statefulsets.apps",
    "daemonsets.apps",
    "poddisruptionbudgets.policy",
)


def register(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    """Tell kopf what starts a reconcile."""
    _register_own(registry, runtime)
    _register_around(registry, runtime)
    _register_left_out(registry, runtime)


def _register_own(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    """Register what happens to a PrefixCache itself."""
    register_kind(registry, runtime, PREFIX_CACHE, reconcile_prefixcache)

    # kopf keeps its progress under the id, as an annotation: the default one of a nested function is no valid name
    @kopf.on.delete(names.GROUP, names.VERSION, PREFIX_CACHE.plural, registry=registry, id="forget")
    async def forget(namespace: str | None, name: str, **_: Any) -> None:
        try:
            await forget_prefixcache(runtime.cluster, namespace or "", name, runtime.settings)
        except (ApiUnavailable, Conflict, Unfinished) as error:
            raise kopf.TemporaryError(str(error), delay=2.0) from error
        runtime.pokes.poke(_KIND)


def _register_around(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    """Register what may concern PrefixCaches: their objects, engines and data planes, nodes, bindings."""

    async def related(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        runtime.pokes.poke(_KIND, namespace or "", labels[names.CACHE_LABEL])

    for own in _OWN_KINDS:
        kopf.on.event(own, labels={**_OURS, names.CACHE_LABEL: kopf.PRESENT}, registry=registry)(related)
    kopf.on.event("v1", "pods", labels={names.CACHE_LABEL: kopf.PRESENT}, registry=registry)(related)

    @kopf.on.event(names.GROUP, names.VERSION, "dpubindings", registry=registry)
    async def binding_changed(**_: Any) -> None:
        runtime.pokes.poke(_KIND)

    @kopf.on.event("v1", "nodes", registry=registry)
    async def node_changed(name: str, body: Mapping[str, Any], type: str | None, **_: Any) -> None:
        """Poke only when it matters: a node's heartbeat comes every few seconds."""
        conditions = body.get("status", {}).get("conditions") or []
        ready = [each["status"] for each in conditions if each["type"] == "Ready"]
        seen = (ready, dict(body["metadata"].get("labels") or {}), type == "DELETED")
        if runtime.news("Node", "", name, seen):
            runtime.pokes.poke(_KIND)


def _register_left_out(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    """Register that pods run without the sidecar: it is recorded once, together."""

    async def tell(pods: Sequence[Json]) -> None:
        """Record it; should that fail, the reconcile goes on all the same."""
        try:
            await tell_left_out(runtime.cluster, pods, runtime.clock())
        except OperatorError as error:
            _log.warning("events of %d pods, of which %s: %s", len(pods), pods[0]["metadata"]["name"], error)

    gathered = Gathered(tell, lambda: asyncio.sleep(_GATHERING_SECONDS))

    @kopf.on.event("v1", "pods", labels={names.CACHE_LABEL: kopf.PRESENT}, registry=registry)
    async def pod_seen(namespace: str | None, name: str, body: Mapping[str, Any], **_: Any) -> None:
        annotations = dict(body["metadata"].get("annotations") or {})
        if runtime.news("Pod", namespace or "", name, (body["metadata"].get("uid"), annotations)):
            await gathered.add(dict(body))

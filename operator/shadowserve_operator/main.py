"""The operator's table of contents: everything that starts work, and how the process runs and ends."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import kopf

from shadowserve_crds import names
from shadowserve_operator import leader
from shadowserve_operator.cluster import ApiCluster
from shadowserve_operator.handlers import inferencepool, prefixcache
from shadowserve_operator.metrics import OperatorMetrics
from shadowserve_operator.readiness import Readiness, told_over_http
from shadowserve_operator.runtime import Runtime, utc_now
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.webhook_identity import keep_identity

_log = logging.getLogger(__name__)
_BACKOFFS, _LAST_BACKOFF = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0), 20.0


class WithoutEnd:
    """After how many seconds the framework asks the API server again: it never gives up.

    With an end, one namespace without roles would end the operator of all of them after a minute.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(_BACKOFFS, itertools.repeat(_LAST_BACKOFF))


def registry_for(runtime: Runtime) -> kopf.OperatorRegistry:
    """Return the registry with all handlers."""
    registry = kopf.OperatorRegistry()
    prefixcache.register(registry, runtime)
    inferencepool.register(registry, runtime)

    kopf.on.startup(registry=registry)(configure)

    @kopf.on.login(registry=registry)
    async def log_in(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    return registry


async def configure(settings: kopf.OperatorSettings, **_: object) -> None:
    """Set the framework up."""
    settings.persistence.finalizer = names.FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=names.GROUP)
    settings.posting.enabled = False  # events are ours: those of kopf tell how, not what
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = WithoutEnd()
    settings.watching.server_timeout = 120


async def run(settings: OperatorSettings, namespace: str, identity: str, stop: asyncio.Event) -> None:
    """Wait to be the leader, then reconcile until `stop`. Raises `LeadershipLost` when another operator took over."""
    metrics, readiness = OperatorMetrics(), Readiness(utc_now)
    with told_over_http(settings.metrics_port, metrics.registry, readiness):
        async with ApiCluster() as cluster:
            if not await _unless(stop, leader.acquire(cluster, namespace, identity, utc_now, readiness.looked)):
                return
            _log.info("this operator (%s) acts now", identity)
            registry = registry_for(Runtime(cluster, settings, metrics))
            work = kopf.operator(
                registry=registry,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                standalone=True,  # who acts was settled by the Lease
                stop_flag=stop,
            )
            holding = leader.hold(cluster, namespace, identity, utc_now, readiness.looked)
            metrics.leads(True)
            try:
                await _together(work, holding, keep_identity(cluster, namespace, utc_now))
            finally:
                metrics.leads(False)
            await leader.release(cluster, namespace, identity, utc_now)


async def _unless(stop: asyncio.Event, waiting: object) -> bool:
    """Return whether the waiting ended before the stop came."""
    task, stopped = asyncio.ensure_future(waiting), asyncio.ensure_future(stop.wait())  # type: ignore[call-overload]
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        return False
    await task
    return True


async def _together(*parts: object) -> None:
    """Run all until the first ends; what it raised is raised."""
    tasks = {asyncio.ensure_future(part) for part in parts}  # type: ignore[call-overload]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for task in done:
        await task

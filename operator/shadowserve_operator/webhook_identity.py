"""The webhook's certificate: issued and renewed by the leading operator, which also tells the API server its authority.

Called by `main` beside the reconciles. The Secrets belong to the webhook's Deployment and go with it; without that
Deployment nothing is done. One Secret has the authority's key and is mounted by nobody, the other is what pods serve.
"""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType

from shadowserve_crds import names
from shadowserve_operator import pki
from shadowserve_operator.authorities import Authorities, moved_on
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.certificates import (
    Certificate,
    Wanted,
    certificates_due,
    files_of,
    secret_data,
)
from shadowserve_operator.errors import OperatorError
from shadowserve_operator.kinds import DEPLOYMENT, SECRET, WEBHOOK_CONFIGURATION, Json, Ref
from shadowserve_operator.plan import plan_changes

WEBHOOK = "shadowserve-webhook"
AUTHORITY_SECRET, SERVING_SECRET = f"{WEBHOOK}-authority", f"{WEBHOOK}-tls"
CONFIGURATION, HOOK = "shadowserve", "inject.shadowserve.io"
_INTERVAL_SECONDS = 60.0
_RETRY_SECONDS = 5.0
_log = logging.getLogger(__name__)


async def keep_identity(cluster: Cluster, namespace: str, clock: Callable[[], datetime]) -> None:
    """Keep the certificate valid and the authority told, for ever."""
    while True:
        delay = _INTERVAL_SECONDS
        try:
            written = await renew_identity(cluster, namespace, clock())
            if written:
                _log.info("webhook certificate: %d objects written", written)
        except OperatorError as error:
            delay = _RETRY_SECONDS
            _log.warning("webhook certificate: %s; again in %g s", error, delay)
        await asyncio.sleep(delay)


async def renew_identity(cluster: Cluster, namespace: str, now: datetime) -> int:
    """Make Secrets and configuration as they should be now; returns how many were written. Raises `OperatorError`."""
    deployment = await cluster.get(Ref(DEPLOYMENT, namespace, WEBHOOK))
    if deployment is None:
        return 0
    refs = [Ref(SECRET, namespace, name) for name in (AUTHORITY_SECRET, SERVING_SECRET)]
    there = [await cluster.get(ref) for ref in refs]
    authorities, serving = _current(namespace, there, now)
    configuration = await cluster.get(Ref(WEBHOOK_CONFIGURATION, "", CONFIGURATION))
    wanted = [
        _secret(deployment, AUTHORITY_SECRET, authorities.signer, authorities.more()),
        *([_trusting(serving.authority)] if configuration is not None else []),
        _secret(deployment, SERVING_SECRET, serving),
    ]
    written = 0
    for step in plan_changes(wanted, [body for body in (*there, configuration) if body is not None]).writes:
        assert step.manifest is not None, "everything is wanted, so nothing is deleted"
        await cluster.apply(step.manifest)
        written += 1
    return written


def _current(namespace: str, there: list[Json | None], now: datetime) -> tuple[Authorities, Certificate]:
    """Return what the Secrets hold as long as it lasts, else what was issued instead."""
    before = Authorities.read(there[0] or {})
    serving = pki.read(files_of(there[1] or {}), before.signer if before else None)
    authorities, renewed = moved_on(before, (serving,), f"{WEBHOOK} {namespace}", now)
    host = f"{WEBHOOK}.{namespace}.svc"
    wanted = Wanted(SERVING_SECRET, (host, f"{host}.cluster.local"))
    due = certificates_due((wanted,), {wanted.secret: serving}, now)
    if serving is None or due or renewed:
        return authorities, authorities.issue(wanted, now)
    return authorities, authorities.trusted_in(serving)


def _secret(deployment: Json, name: str, content: Certificate, more: Mapping[str, str] = MappingProxyType({})) -> Json:
    about = deployment["metadata"]
    owner = {"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.name, "name": about["name"], "uid": about["uid"]}
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.name,
        "metadata": {
            "name": name,
            "namespace": about["namespace"],
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
            "ownerReferences": [owner],
        },
        "type": "kubernetes.io/tls",
        "data": {**secret_data(content), **more},
    }


def _trusting(authorities: bytes) -> Json:
    """Return the one field of the configuration that is ours; the rest is whoever's installed it."""
    bundle = b64encode(authorities).decode()
    return {
        "apiVersion": WEBHOOK_CONFIGURATION.api_version,
        "kind": WEBHOOK_CONFIGURATION.name,
        "metadata": {"name": CONFIGURATION, "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY}},
        "webhooks": [{"name": HOOK, "clientConfig": {"caBundle": bundle}}],
    }

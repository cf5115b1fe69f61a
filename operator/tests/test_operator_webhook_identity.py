"""The webhook's certificate over its life: issued, left alone, renewed, and told to the API server."""

from base64 import b64decode
from datetime import UTC, datetime, timedelta

from fakes import FakeCluster

from shadowserve_operator.kinds import DEPLOYMENT, SECRET, WEBHOOK_CONFIGURATION, Json, Ref
from shadowserve_operator.webhook_identity import (
    AUTHORITY_SECRET,
    CONFIGURATION,
    HOOK,
    SERVING_SECRET,
    WEBHOOK,
    renew_identity,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
CONFIG = Ref(WEBHOOK_CONFIGURATION, "", CONFIGURATION)
SERVING, AUTHORITY = (Ref(SECRET, "system", name) for name in (SERVING_SECRET, AUTHORITY_SECRET))


def installed() -> FakeCluster:
    cluster = FakeCluster("system")
    metadata: Json = {"name": WEBHOOK, "namespace": "system"}
    cluster.put({"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.name, "metadata": metadata})
    labels = {"app.kubernetes.io/managed-by": "shadowserve-operator"}
    body: Json = {"apiVersion": CONFIG.kind.api_version, "kind": CONFIG.kind.name}
    cluster.put({**body, "metadata": {"name": CONFIGURATION, "labels": labels}, "webhooks": [{"name": HOOK}]})
    return cluster


async def test_a_certificate_is_issued_once_and_the_api_server_trusts_its_authority() -> None:
    cluster = installed()
    assert await renew_identity(cluster, "system", NOW) == 3
    authority = cluster.objects[AUTHORITY]["data"]["tls.crt"]
    assert cluster.objects[CONFIG]["webhooks"][0]["clientConfig"]["caBundle"] == authority
    assert cluster.objects[SERVING]["data"]["ca.crt"] == authority
    assert b64decode(cluster.objects[SERVING]["data"]["tls.key"]).startswith(b"-----BEGIN")
    assert await renew_identity(cluster, "system", NOW + timedelta(minutes=1)) == 0


async def test_a_certificate_near_its_end_is_renewed_under_the_same_authority() -> None:
    cluster = installed()
    await renew_identity(cluster, "system", NOW)
    before = dict(cluster.objects[SERVING]["data"])
    assert await renew_identity(cluster, "system", NOW + timedelta(days=70)) == 1
    assert cluster.objects[SERVING]["data"]["tls.crt"] != before["tls.crt"]
    assert cluster.objects[SERVING]["data"]["ca.crt"] == before["ca.crt"]


async def test_a_lost_secret_and_a_bundle_that_somebody_changed_are_repaired() -> None:
    cluster = installed()
    await renew_identity(cluster, "system", NOW)
    cluster.remove(AUTHORITY)
    assert await renew_identity(cluster, "system", NOW) == 3
    cluster.objects[CONFIG]["webhooks"] = [{"name": HOOK, "clientConfig": {"caBundle": ""}}]
    assert await renew_identity(cluster, "system", NOW) == 1
    assert cluster.objects[CONFIG]["webhooks"][0]["clientConfig"]["caBundle"]


async def test_without_the_webhook_nothing_is_issued() -> None:
    cluster = FakeCluster("system")
    assert await renew_identity(cluster, "system", NOW) == 0
    assert not cluster.writes

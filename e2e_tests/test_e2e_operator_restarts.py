"""The operator killed and started again under load, and certificates of which time runs out, on a real API server."""

import itertools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from operator_story import cache, create, get, operator_running, pool, wait
from shadowserve_crds import names
from shadowserve_operator import pki
from shadowserve_operator.cluster import ApiCluster
from shadowserve_operator.desired.certificates import AUTHORITY_LIFE, Certificate, files_of
from shadowserve_operator.kinds import PREFIX_CACHE, SECRET, WEBHOOK_CONFIGURATION, Ref
from shadowserve_operator.reconcile import reconcile_prefixcache
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.webhook_identity import CONFIGURATION, SERVING_SECRET, WEBHOOK, renew_identity
from shadowserve_testbed.api_server import ApiServer

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built
_POOLS = 30
_LEASE_SECONDS = 60.0
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def test_killed_again_and_again_under_load_everything_is_made_once(api: ApiServer, tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    create(api, cache("kv", placement={"order": ["Host"]}))
    items = [pool(f"pool-{number}", cacheRef={"name": "kv"}) for number in range(_POOLS)]
    with operator_running(api, log) as process:
        wait(log, "settings written", lambda: get(api, "configmap/kv-config"), _LEASE_SECONDS)
        create(api, {"apiVersion": "v1", "kind": "List", "items": items})
        wait(log, "some made", lambda: _deployments(api) > 3)
        process.kill()
    with operator_running(api, log) as process:
        wait(log, "more made", lambda: _deployments(api) > _POOLS // 2, _LEASE_SECONDS)
        process.kill()
    with operator_running(api, log) as process:
        wait(log, "all told", lambda: _told(api) == _POOLS, _LEASE_SECONDS)
        process.terminate()
        process.wait(timeout=60)
    assert _deployments(api) == _POOLS
    made = log.read_text()
    with operator_running(api, log):
        wait(log, "the next one acts at once", lambda: "acts now" in log.read_text()[len(made) :], 10.0)
        api.kubectl("delete", "sspool", "--all", "--timeout=60s")
        api.kubectl("delete", "pfc", "--all", "--timeout=90s")
    after = log.read_text()[len(made) :]
    assert "create" not in after, "it found everything as the killed ones had left it"
    ours = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
    api.kubectl("delete", "deployment,service,configmap,secret,statefulset,pdb", "-l", ours)


def _deployments(api: ApiServer) -> int:
    return api.kubectl("get", "deployments", "-o", "name").count("/pool-")


def _told(api: ApiServer) -> int:
    """Return how many pools say something else than that they wait for the settings of their cache."""
    listed = json.loads(api.kubectl("get", "sspool", "-o", "json"))["items"]
    said = [json.dumps(each.get("status", {}).get("conditions", [])) for each in listed]
    return sum(each != "[]" and "waits for the settings" not in each for each in said)


@pytest.fixture
async def cluster(api: ApiServer) -> AsyncIterator[ApiCluster]:
    async with ApiCluster(str(api.kubeconfig)) as connected:
        yield connected


async def _certificate(cluster: ApiCluster, namespace: str, name: str) -> Certificate:
    body = await cluster.get(Ref(SECRET, namespace, name))
    assert body is not None
    found = pki.read(files_of(body))
    assert found is not None
    return found


async def _reconciled(cluster: ApiCluster, now: datetime) -> str:
    """Reconcile once; return what CertificatesReady says then."""
    settings = OperatorSettings(namespaces=("default",))
    await reconcile_prefixcache(cluster, "default", "timed", settings, lambda: now)
    body = await cluster.get(Ref(PREFIX_CACHE, "default", "timed"))
    assert body is not None
    said = {each["type"]: each["reason"] for each in body["status"]["conditions"]}
    return str(said["CertificatesReady"])


async def test_certificates_are_renewed_in_time_and_after_they_expired(api: ApiServer, cluster: ApiCluster) -> None:
    create(api, cache("timed", placement={"order": ["Host"]}))
    assert await _reconciled(cluster, NOW) == "Succeeded"
    first = await _certificate(cluster, "default", "timed-store-tls")
    assert await _reconciled(cluster, NOW + timedelta(days=59)) == "Succeeded"
    assert await _certificate(cluster, "default", "timed-store-tls") == first
    assert await _reconciled(cluster, NOW + timedelta(days=61)) == "Succeeded"
    second = await _certificate(cluster, "default", "timed-store-tls")
    assert second.not_after > first.not_after
    assert second.authority == first.authority, "those who trust it need not change"

    late = NOW + timedelta(days=400)
    assert await _reconciled(cluster, late) == "Expired", "it is told that they were"
    assert await _reconciled(cluster, late) == "Succeeded"
    third = await _certificate(cluster, "default", "timed-store-tls")
    assert third.not_after > late

    aged = NOW + AUTHORITY_LIFE * 0.7
    await _reconciled(cluster, aged)
    assert await _reconciled(cluster, aged) == "Succeeded"
    fourth = await _certificate(cluster, "default", "timed-store-tls")
    assert fourth.authority != third.authority
    sidecar = await _certificate(cluster, "default", "timed-sidecar-tls")
    assert sidecar.authority == fourth.authority
    api.kubectl("delete", "pfc", "timed")
    api.kubectl("delete", "secret,configmap,service,statefulset", "-l", f"{names.CACHE_LABEL}=timed")


async def test_the_webhooks_certificate_too(api: ApiServer, cluster: ApiCluster) -> None:
    container = {"name": "c", "image": "i"}
    template = {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [container]}}
    spec = {"selector": {"matchLabels": {"app": "w"}}, "template": template}
    metadata = {"name": WEBHOOK, "namespace": "default"}
    create(api, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    hook = {"name": "inject.shadowserve.io", "admissionReviewVersions": ["v1"], "sideEffects": "None"}
    hook["clientConfig"] = {"service": {"name": WEBHOOK, "namespace": "default"}}
    hook["failurePolicy"] = "Ignore"
    configuration = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}
    labels = {names.MANAGED_BY_LABEL: names.MANAGED_BY}
    create(api, {**configuration, "metadata": {"name": CONFIGURATION, "labels": labels}, "webhooks": [hook]})
    seen = []
    for days in (0, 61, 400, AUTHORITY_LIFE.days * 0.7):
        now = NOW + timedelta(days=days)
        assert await renew_identity(cluster, "default", now)
        assert await renew_identity(cluster, "default", now) == 0
        serving = await _certificate(cluster, "default", SERVING_SECRET)
        assert serving.not_after > now
        body = await cluster.get(Ref(WEBHOOK_CONFIGURATION, "", CONFIGURATION))
        assert body is not None
        seen.append((serving.not_after, serving.authority, body["webhooks"][0]["clientConfig"]["caBundle"]))
    assert all(one[0] < other[0] for one, other in itertools.pairwise(seen))
    assert seen[0][2] == seen[2][2]
    assert seen[2][2] != seen[3][2], "a new authority is told to the API server"
    api.kubectl("delete", "mutatingwebhookconfiguration", CONFIGURATION)
    api.kubectl("delete", "deployment", WEBHOOK)
    api.kubectl("delete", "secret", "-l", f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}")

"""The admission webhook called by a real API server: pods are injected when they are created, or told why not, and no
outage keeps one from being created.
"""

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from operator_story import cache, create, get, operator_running, patch_status, told, wait
from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_dataplane.fetch.telling import told_over_http
from shadowserve_dataplane.sidecar.attachment import PATH, Attachment
from shadowserve_operator.admission import finder
from shadowserve_operator.admission_server import AdmissionWebhook, ServingFiles, served
from shadowserve_operator.cluster import ApiCluster
from shadowserve_operator.desired.config import written_settings
from shadowserve_operator.settings import OperatorSettings
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.pki import Authority

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built

_START_SECONDS = 60.0


@contextmanager
def webhook_running(api: ApiServer, files: ServingFiles) -> Iterator[int]:
    """Serve the webhook on a thread of its own; yields its port."""
    loop = asyncio.new_event_loop()
    ready, stop, ports = threading.Event(), asyncio.Event(), []

    async def run() -> None:
        async with ApiCluster(str(api.kubeconfig)) as cluster:
            await serve(AdmissionWebhook(finder(cluster), OperatorSettings(), lambda result: None))

    async def serve(webhook: AdmissionWebhook) -> None:
        async with served(webhook, "127.0.0.1", 0, files) as port:
            ports.append(port)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        assert ready.wait(_START_SECONDS), "the webhook did not start"
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_START_SECONDS)
        loop.close()


def configuration(authority: Path, port: int) -> dict[str, Any]:
    """Return a configuration as in `manifests`, but for the address."""
    bundle = b64encode(authority.read_bytes()).decode()
    webhook = {
        "name": "inject.shadowserve.io",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Ignore",
        "timeoutSeconds": 30,
        "reinvocationPolicy": "IfNeeded",
        "clientConfig": {"url": f"https://127.0.0.1:{port}/inject", "caBundle": bundle},
        "objectSelector": {"matchExpressions": [{"key": names.CACHE_LABEL, "operator": "Exists"}]},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "shadowserve"},
        "webhooks": [webhook],
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ServingFiles]:
    authority = Authority(tmp_path_factory.mktemp("webhook"), "webhook-authority", datetime.now(UTC))
    identity = authority.issue("webhook", hosts=("127.0.0.1",))
    return authority.certificate, ServingFiles(identity.certificate, identity.key)


def created(api: ApiServer, name: str, cache: str, **container: Any) -> dict[str, Any]:
    engine = {"name": "vllm", "image": "vllm/vllm-openai:v0.32.0", **container}
    metadata = {"name": name, "labels": {names.CACHE_LABEL: cache}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [engine]}}
    found: dict[str, Any] = json.loads(api.kubectl("create", "-o", "json", "-f", "-", manifest=pod))
    return found


@pytest.fixture
def webhook(api: ApiServer, files: tuple[Path, ServingFiles]) -> Iterator[None]:
    """The webhook, and what has the API server call it."""
    with webhook_running(api, files[1]) as port:
        api.kubectl("apply", "--server-side", "-f", "-", manifest=configuration(files[0], port))
        yield
    api.kubectl("delete", "mutatingwebhookconfiguration", "shadowserve")


def test_pods_are_injected_told_why_not_or_left_alone(api: ApiServer, files: tuple[Path, ServingFiles]) -> None:
    create(api, cache("shared"))
    with webhook_running(api, files[1]) as port:
        api.kubectl("apply", "--server-side", "-f", "-", manifest=configuration(files[0], port))
        injected = created(api, "injected", "shared")
        assert injected["metadata"]["annotations"][names.INJECTED_ANNOTATION]
        assert [each["name"] for each in injected["spec"]["initContainers"]] == [
            names.CONNECTOR_CONTAINER,
            names.SIDECAR_CONTAINER,
        ]
        assert "--kv-transfer-config" in injected["spec"]["containers"][0]["args"]
        unknown = created(api, "unknown", "absent")
        assert "no PrefixCache absent" in unknown["metadata"]["annotations"][names.SKIPPED_ANNOTATION]
        shell = created(api, "shell", "shared", command=["sh", "-c", "vllm serve x"])
        assert "runs a shell" in shell["metadata"]["annotations"][names.SKIPPED_ANNOTATION]
        assert "initContainers" not in shell["spec"]
    down = created(api, "down", "shared")
    assert "initContainers" not in down["spec"], "the webhook is gone, and the pod was created all the same"
    api.kubectl("delete", "mutatingwebhookconfiguration", "shadowserve")
    api.kubectl("delete", "pod", "injected", "unknown", "shell", "down", "--force")
    api.kubectl("delete", "pfc", "shared")


def settings_of(api: ApiServer, what: str) -> str:
    """Return the digest of the settings that a ConfigMap holds, or a pod is thought to have."""
    return str(((get(api, what) or {}).get("metadata", {}).get("annotations") or {}).get(names.CONFIG_ANNOTATION))


def edited(api: ApiServer, **spec: Any) -> None:
    api.kubectl("patch", "pfc", "kv", "--type=merge", "-p", json.dumps({"spec": spec}))


def written(api: ApiServer) -> str:
    """Return the digest of the cache's settings, nothing while those of its spec are not written.

    A ConfigMap of a cache that had the same name may lie there still: no garbage collector runs.
    """
    body, live = get(api, "pfc/kv"), get(api, "configmap/kv-config")
    return (written_settings(PrefixCache.parse(body), live) or "") if body else ""


@contextmanager
def sidecar_runs(api: ApiServer, pod: str, address: str, settings: str) -> Iterator[None]:
    """Have the pod's sidecar answer at an address of this machine: it was started with these settings."""
    answers = {PATH: lambda _: Attachment(1 << 29, settings).document()}
    with told_over_http(address, names.SIDECAR_METRICS_PORT, CollectorRegistry(), answers):
        running: dict[str, Any] = {"name": names.SIDECAR_CONTAINER, "ready": True, "started": True, "restartCount": 0}
        running |= {"image": "x", "imageID": "x", "state": {"running": {}}}
        about = {"podIP": address, "podIPs": [{"ip": address}], "initContainerStatuses": [running]}
        patch_status(api, f"pod/{pod}", phase="Running", **about)
        yield


def outdated(api: ApiServer) -> set[str]:
    """Return the pods of which `shadowserve status` says that they have older settings than their cache gives."""
    return {each["about"] for each in told(api, "status")["troubles"] if "older settings" in each["problem"]}


@pytest.mark.usefixtures("webhook")
def test_a_pod_that_opts_in_while_an_edit_is_being_written_is_judged_by_what_its_sidecar_read(
    api: ApiServer, tmp_path: Path
) -> None:
    log = tmp_path / "operator.log"
    with operator_running(api, log):
        create(api, cache("kv"))
        wait(log, "settings are written", lambda: written(api))
        first = written(api)
        created(api, "before", "kv")
        assert settings_of(api, "pod/before") == first

    edited(api, codec={"tier": "Lossless"})  # and nobody has written it yet
    for pod in ("early", "late"):
        assert names.INJECTED_ANNOTATION in created(api, pod, "kv")["metadata"]["annotations"]
        assert settings_of(api, f"pod/{pod}") == "", "the webhook cannot know which ones it will read"

    with operator_running(api, log):
        wait(log, "the edit is written", lambda: written(api))
        second = written(api)
        assert second != first
        created(api, "after", "kv")
        assert settings_of(api, "pod/after") == second
        assert outdated(api) == {"pod default/before"}, "of the others nobody knows yet"

        with sidecar_runs(api, "early", "127.84.0.1", first), sidecar_runs(api, "late", "127.84.0.2", second):
            wait(log, "early is known", lambda: settings_of(api, "pod/early") == first)
            wait(log, "late is known", lambda: settings_of(api, "pod/late") == second)
        assert outdated(api) == {"pod default/before", "pod default/early"}

        edited(api, codec={"tier": "Balanced"})
        wait(log, "it is taken back", lambda: settings_of(api, "configmap/kv-config") == first)
        assert outdated(api) == {"pod default/late", "pod default/after"}
        api.kubectl("delete", "pod", "before", "early", "late", "after", "--force")
        api.kubectl("delete", "pfc", "kv", "--timeout=90s")

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

from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.admission_server import AdmissionWebhook, ServingFiles, served
from shadowserve_operator.desired.admission import CacheSeen
from shadowserve_operator.settings import OperatorSettings
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.pki import Authority

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built

_START_SECONDS = 60.0


@contextmanager
def webhook_running(files: ServingFiles) -> Iterator[int]:
    """Serve the webhook on a thread of its own; yields its port."""
    loop = asyncio.new_event_loop()
    ready, stop, ports = threading.Event(), asyncio.Event(), []

    async def find(namespace: str, name: str) -> CacheSeen | None:
        known = PrefixCache.parse({"metadata": {"name": "shared", "namespace": "default"}})
        return CacheSeen(known) if (namespace, name) == ("default", "shared") else None

    async def run() -> None:
        webhook = AdmissionWebhook(find, OperatorSettings(), lambda result: None)
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


def test_pods_are_injected_told_why_not_or_left_alone(api: ApiServer, files: tuple[Path, ServingFiles]) -> None:
    with webhook_running(files[1]) as port:
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

"""What the admission webhook costs a pod: JSON lines, on a real API server that calls the real process by HTTPS.

Pods with and without the label are created in turn, by dry runs that go all the way through admission; then the
webhook is asked as the API server asks it, with the pod of a review. `make bench-webhook` runs it.
"""

import argparse
import asyncio
import json
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from operator_story import access_of, cache, create, own_environment
from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY, default_home
from shadowserve_lab.processes import free_port, wait_until
from shadowserve_operator.cluster import ApiCluster
from shadowserve_operator.webhook_identity import CONFIGURATION, WEBHOOK
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.binaries import Binaries
from shadowserve_testbed.pki import Authority

sys.path.insert(0, str(REPOSITORY / "dataplane_image/bench"))

from results import Goal, Result, at_most, emit

SYSTEM = "shadowserve-system"
START_SECONDS, ANSWER_SECONDS = 30.0, 10.0
P99_MILLISECONDS = 50.0
WARM = 20
"""Reviews before the first that counts: connections, and the interpreter's caches."""


def pod(number: int, asks: bool) -> dict[str, Any]:
    labels = {names.CACHE_LABEL: "kv"} if asks else {}
    metadata = {"name": f"pod-{number}", "namespace": "default", "labels": labels}
    resources = {"requests": {"cpu": "4", "memory": "32Gi"}, "limits": {"memory": "32Gi"}}
    environment = [{"name": f"VARIABLE_{each}", "value": "x" * 20} for each in range(20)]
    container = {"name": "engine", "image": "vllm/vllm-openai:v0.32.0", "env": environment, "resources": resources}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def percentile(seconds: Sequence[float], part: int) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[part - 1] * 1000


def report(case: str, seconds: Sequence[float], goal: Goal | None, **parameters: object) -> None:
    for part in (50, 99):
        wanted = goal if part == 99 else None
        about = {"pods": len(seconds), **parameters}
        emit(Result("webhook", case, f"p{part}", [percentile(seconds, part)], "ms", wanted, parameters=about))


async def created(cluster: ApiCluster, number: int, asks: bool) -> float:
    began = time.perf_counter()
    made = await cluster.ask("/api/v1/namespaces/default/pods", pod(number, asks), {"dryRun": "All"})
    elapsed = time.perf_counter() - began
    assert (names.INJECTED_ANNOTATION in (made["metadata"].get("annotations") or {})) is asks, "not as it should be"
    return elapsed


async def reviewed(session: aiohttp.ClientSession, url: str, number: int) -> float:
    body = {"kind": "Pod", **pod(number, asks=True)}
    review = {"request": {"uid": str(number), "namespace": "default", "object": body}}
    began = time.perf_counter()
    async with session.post(url, json=review) as answer:
        said = await answer.json()
    elapsed = time.perf_counter() - began
    assert said["response"]["patch"]
    return elapsed


async def measure(kubeconfig: Path, url: str, authority: Path, pods: int, at_once: int) -> None:
    trust = ssl.create_default_context(cafile=str(authority))
    connector, limit = aiohttp.TCPConnector(ssl=trust), aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with (
        ApiCluster(str(kubeconfig)) as cluster,
        aiohttp.ClientSession(connector=connector, timeout=limit) as session,
    ):
        for number in range(WARM):
            await created(cluster, number, asks=True)
            await created(cluster, number, asks=False)
            await reviewed(session, url, number)
        asking, plain, reviews, burst = [], [], [], []
        for number in range(pods):
            plain.append(await created(cluster, number, asks=False))
            asking.append(await created(cluster, number, asks=True))
            reviews.append(await reviewed(session, url, number))
        for first in range(0, pods, at_once):
            burst += await asyncio.gather(*(reviewed(session, url, first + each) for each in range(at_once)))
    report("review", reviews, at_most(P99_MILLISECONDS), at_once=1)
    report("reviews of a burst", burst, None, at_once=at_once)
    report("pod created with the sidecar", asking, at_most(P99_MILLISECONDS), at_once=1)
    report("pod created without asking", plain, None, at_once=1)


def configuration(authority: Path, url: str) -> dict[str, Any]:
    """Return the installed configuration's webhook, but for the address."""
    bundle = b64encode(authority.read_bytes()).decode()
    webhook = {
        "name": "inject.shadowserve.io",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",  # a pod that is let through unseen would count as fast
        "timeoutSeconds": 5,
        "clientConfig": {"url": url, "caBundle": bundle},
        "objectSelector": {"matchExpressions": [{"key": names.CACHE_LABEL, "operator": "Exists"}]},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
    }
    about = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}
    return {**about, "metadata": {"name": "bench"}, "webhooks": [webhook]}


def answers(url: str, authority: Path) -> bool:
    try:
        trust = ssl.create_default_context(cafile=str(authority))
        with urllib.request.urlopen(url, timeout=2, context=trust) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def run(arguments: argparse.Namespace) -> None:
    home = default_home()
    with (
        ApiServer(Binaries(home), home.say) as api,
        tempfile.TemporaryDirectory() as name,
        Path(name, "webhook.log").open("wb") as log,
    ):
        folder = Path(name)
        api.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "manifests/install.yaml"))
        api.kubectl("delete", "mutatingwebhookconfiguration", CONFIGURATION)
        create(api, cache("kv"))
        authority = Authority(folder, "authority", datetime.now(UTC))
        identity = authority.issue("tls", hosts=("127.0.0.1",))
        port = free_port()
        base = f"https://127.0.0.1:{port}"
        command = [sys.executable, "-m", "shadowserve_operator.admission", "--certificates", str(folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--metrics-port", str(free_port())]
        environment = own_environment(access_of(api, WEBHOOK, SYSTEM, folder))
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            assert identity.certificate.name == "tls.crt"
            wait_until(lambda: answers(f"{base}/healthz", authority.certificate), START_SECONDS, "the webhook")
            create(api, configuration(authority.certificate, f"{base}/inject"))
            wait_until(lambda: _shown(api), START_SECONDS, "the API server to show pods to the webhook")
            url = f"{base}/inject"
            asyncio.run(measure(api.kubeconfig, url, authority.certificate, arguments.pods, arguments.at_once))
        finally:
            process.terminate()
            process.wait(timeout=30)


def _shown(api: ApiServer) -> bool:
    made = json.loads(api.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", manifest=pod(0, asks=True)))
    return names.INJECTED_ANNOTATION in (made["metadata"].get("annotations") or {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=10, help="reviews of a burst")
    run(parser.parse_args())


if __name__ == "__main__":
    main()

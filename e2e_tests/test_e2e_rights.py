"""The operator with the rights that install.yaml gives it, and no others: it does its work, and is refused nothing."""

import json
import ssl
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from operator_story import access_of, get, own_environment
from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY
from shadowserve_lab.processes import free_port
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.pki import Authority

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built
_SYSTEM, _ACCOUNT = "shadowserve-system", "shadowserve-operator"
_DEADLINE = 90.0


@pytest.fixture
def installed(api: ApiServer) -> Iterator[ApiServer]:
    """The API server with install.yaml."""
    install = str(REPOSITORY / "manifests/install.yaml")
    api.kubectl("apply", "--server-side", "--force-conflicts", "-f", install)
    yield api
    api.kubectl("delete", "mutatingwebhookconfiguration", "shadowserve")


def test_the_installed_rights_are_enough(installed: ApiServer, tmp_path: Path) -> None:
    api = installed
    log = tmp_path / "operator.log"
    environment = {
        **own_environment(access_of(api, _ACCOUNT, _SYSTEM, tmp_path)),
        "SHADOWSERVE_METRICS_PORT": str(free_port()),
        "SHADOWSERVE_NAMESPACE": _SYSTEM,
        "SHADOWSERVE_WATCH_NAMESPACES": "default",
    }
    metadata = {"name": "rights", "namespace": "default"}
    cache = {"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": {}}
    source = {"type": "Image", "image": {"reference": "registry.example/model:1"}}
    model, engine = {"name": "m", "source": source}, {"image": "vllm/vllm-openai:v0.32.0"}
    pool = {
        **cache,
        "kind": "InferencePool",
        "spec": {"model": model, "engine": engine, "cacheRef": {"name": "rights"}},
    }

    def wait(what: str, *holds: tuple[str, ...]) -> None:
        end = time.monotonic() + _DEADLINE
        while not all(get(api, *each) for each in holds):
            assert time.monotonic() < end, f"{what}: not within {_DEADLINE} s\n{log.read_text()[-4000:]}"
            time.sleep(0.2)

    with log.open("wb") as output:
        command = [sys.executable, "-m", "shadowserve_operator"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            api.kubectl("create", "-f", "-", manifest=cache)
            api.kubectl("create", "-f", "-", manifest=pool)
            wait("store and engines", ("statefulset", "rights-store"), ("deployment", "rights"))
            wait("webhook certificate", ("secret", "shadowserve-webhook-tls", "-n", _SYSTEM))
            end = time.monotonic() + _DEADLINE
            while "caBundle" not in json.dumps(get(api, "mutatingwebhookconfiguration", "shadowserve")):
                assert time.monotonic() < end, log.read_text()[-4000:]
                time.sleep(0.2)
            api.kubectl("delete", "sspool", "rights", "--timeout=90s")
            api.kubectl("delete", "pfc", "rights", "--timeout=90s")
        finally:
            process.terminate()
            process.wait(timeout=60)
    refused = [line for line in log.read_text().splitlines() if "forbidden" in line.lower() or "cannot" in line]
    assert not refused


def test_the_webhook_process_injects_with_the_rights_that_it_has(installed: ApiServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", "webhook-authority", datetime.now(UTC))
    identity = authority.issue("webhook", hosts=("127.0.0.1",))
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    (certificates / "tls.crt").write_bytes(identity.certificate.read_bytes())
    (certificates / "tls.key").write_bytes(identity.key.read_bytes())
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    port, log = free_port(), tmp_path / "webhook.log"
    metadata = {"name": "asked", "namespace": "default"}
    cache = {"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": {}}
    installed.kubectl("create", "-f", "-", manifest=cache)

    def ask(path: str, body: dict[str, Any] | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"https://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30, context=trust) as answer:
            return bytes(answer.read())

    def patch(namespace: str, wanted: str) -> str:
        spec = {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v0.32.0"}]}
        pod = {"kind": "Pod", "metadata": {"name": "p", "labels": {names.CACHE_LABEL: wanted}}, "spec": spec}
        answer = json.loads(ask("/inject", {"request": {"uid": "1", "namespace": namespace, "object": pod}}))
        assert answer["response"]["allowed"]
        return b64decode(answer["response"]["patch"]).decode()

    command = [sys.executable, "-m", "shadowserve_operator.admission", "--certificates", str(certificates)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--metrics-port", str(free_port())]
    environment = own_environment(access_of(installed, "shadowserve-webhook", _SYSTEM, tmp_path))
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            end = time.monotonic() + _DEADLINE
            while True:
                try:
                    assert ask("/healthz") == b"ok"
                    break
                except URLError:
                    assert time.monotonic() < end, log.read_text()[-4000:]
                    time.sleep(0.1)
            assert names.SIDECAR_CONTAINER in patch("default", "asked")
            assert "there is no PrefixCache absent" in patch("default", "absent")
            assert "cannot be looked up now" in patch("kube-system", "asked"), "it has rights in default only"
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0, log.read_text()[-4000:]
    installed.kubectl("delete", "pfc", "asked", "--wait=false")

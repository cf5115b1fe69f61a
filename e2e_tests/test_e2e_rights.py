"""The operator with the rights that install.yaml gives it, and no others: it does its work, and is refused nothing."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY
from shadowserve_lab.processes import free_port
from shadowserve_testbed.api_server import ApiServer, KubectlError

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built
_SYSTEM, _ACCOUNT = "shadowserve-system", "shadowserve-operator"
_DEADLINE = 40.0


@pytest.fixture
def kubeconfig(api: ApiServer, tmp_path: Path) -> Iterator[Path]:
    """Install, and return how the operator's own account gets in."""
    install = str(REPOSITORY / "manifests/install.yaml")
    api.kubectl("apply", "--server-side", "--force-conflicts", "-f", install)
    if "serviceaccount" not in api.kubectl("get", "serviceaccount", _ACCOUNT, "-n", _SYSTEM, "-o", "name"):
        pytest.fail("install.yaml has no account for the operator")
    token = api.kubectl("create", "token", _ACCOUNT, "-n", _SYSTEM).strip()
    access = yaml.safe_load(api.kubeconfig.read_text())
    access["users"] = [{"name": each["name"], "user": {"token": token}} for each in access["users"]]
    path = tmp_path / "operator.kubeconfig"
    path.write_text(yaml.safe_dump(access))
    yield path
    api.kubectl("delete", "mutatingwebhookconfiguration", "shadowserve")


def _get(api: ApiServer, *what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(api.kubectl("get", *what, "-o", "json"))
    except KubectlError as error:
        if "NotFound" in str(error):
            return {}
        raise
    return found


def test_the_installed_rights_are_enough(api: ApiServer, kubeconfig: Path, tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / part) for part in ("crds", "operator")),
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
        while not all(_get(api, *each) for each in holds):
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
            while (
                "caBundle"
                not in _get(api, "mutatingwebhookconfiguration", "shadowserve")["webhooks"][0]["clientConfig"]
            ):
                assert time.monotonic() < end, log.read_text()[-4000:]
                time.sleep(0.2)
            api.kubectl("delete", "sspool", "rights", "--timeout=20s")
            api.kubectl("delete", "pfc", "rights", "--timeout=20s")
        finally:
            process.terminate()
            process.wait(timeout=20)
    refused = [line for line in log.read_text().splitlines() if "forbidden" in line.lower() or "cannot" in line]
    assert not refused

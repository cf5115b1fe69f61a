"""The operator's process on a real API server, without nodes: what it makes, repairs, refuses, and leaves behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY
from shadowserve_lab.processes import free_port
from shadowserve_operator.cluster import ApiCluster, Cluster
from shadowserve_testbed.api_server import ApiServer, KubectlError

sys.path.insert(0, str(REPOSITORY / "operator/tests"))

from cluster_contract import CONTRACT

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built
_DEADLINE = 30.0


@contextmanager
def _operator(api: ApiServer, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    paths = os.pathsep.join(str(REPOSITORY / part) for part in ("crds", "operator"))
    environment = {
        **os.environ,
        "KUBECONFIG": str(api.kubeconfig),
        "PYTHONPATH": paths,
        "SHADOWSERVE_METRICS_PORT": str(free_port()),
        "SHADOWSERVE_NAMESPACE": "default",
    }
    with log.open("ab") as output:
        command = [sys.executable, "-m", "shadowserve_operator"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture
def operator(api: ApiServer, tmp_path: Path) -> Iterator[Path]:
    log = tmp_path / "operator.log"
    with _operator(api, log):
        yield log


def _wait(log: Path, what: str, holds: Callable[[], bool], deadline: float = _DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {deadline} s\n{log.read_text()[-4000:]}"
        time.sleep(0.1)


def _get(api: ApiServer, *what: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(api.kubectl("get", *what, "-o", "json"))
    except KubectlError as error:
        if "NotFound" in str(error):
            return None
        raise
    return found


def _node(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def _cache(name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": spec}


def _condition(api: ApiServer, name: str, kind: str) -> str:
    body = _get(api, "pfc", name) or {}
    listed = {each["type"]: each["reason"] for each in body.get("status", {}).get("conditions", ())}
    return listed.get(kind, "")


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_the_real_client_keeps_the_contract(api: ApiServer, check: Callable[[Cluster], Awaitable[None]]) -> None:
    async with ApiCluster(str(api.kubeconfig)) as cluster:
        try:
            await check(cluster)
        finally:
            api.kubectl("delete", "configmap", "-l", "test=contract")


def test_a_cache_is_made_repaired_settled_and_removed(api: ApiServer, operator: Path) -> None:
    api.kubectl("create", "-f", "-", manifest=_node("host-0"))
    api.kubectl("create", "-f", "-", manifest=_node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))
    api.kubectl("create", "-f", "-", manifest=_cache("kv"))
    _wait(operator, "store made", lambda: _get(api, "statefulset", "kv-store") is not None)
    _wait(operator, "status told", lambda: _condition(api, "kv", "StoreReady") == "Pending")
    _wait(operator, "binding made", lambda: _get(api, "dpub", "card-0") is not None)
    api.kubectl("patch", "statefulset", "kv-store", "--subresource=status", "--type=merge", "-p", _status(1))
    _wait(operator, "store ready", lambda: _condition(api, "kv", "StoreReady") == "Succeeded")

    api.kubectl("delete", "service", "kv-store")
    _wait(operator, "service made anew", lambda: _get(api, "service", "kv-store") is not None)
    api.kubectl("scale", "statefulset", "kv-store", "--replicas=0")
    _wait(operator, "replicas repaired", lambda: (_get(api, "statefulset", "kv-store") or {})["spec"]["replicas"] == 1)

    before = _versions(api)
    time.sleep(12)  # longer than the operator waits for what is not ready: a writer would have written
    assert _versions(api) == before

    api.kubectl("delete", "pfc", "kv", "--timeout=20s")
    _wait(operator, "binding removed", lambda: _get(api, "dpub", "card-0") is None)
    api.kubectl("delete", "node", "host-0", "card-0")


def _status(ready: int) -> str:
    return json.dumps({"status": {"replicas": 1, "readyReplicas": ready}})


def _versions(api: ApiServer) -> dict[str, str]:
    kinds = "pfc,dpub,configmap,secret,service,statefulset,daemonset"
    listed = json.loads(api.kubectl("get", kinds, "-o", "json"))["items"]
    return {f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in listed}


def test_of_two_operators_one_acts_and_the_other_takes_over(api: ApiServer, tmp_path: Path) -> None:
    def holder() -> str:
        lease = _get(api, "lease", "shadowserve-operator") or {"spec": {}}
        return str(lease["spec"].get("holderIdentity", ""))

    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with _operator(api, first) as one:
        _wait(first, "first leads", lambda: holder().endswith(f"-{one.pid}"))
        with _operator(api, second) as other:
            _wait(second, "second waits", lambda: "holds it" in second.read_text())
            one.kill()
            _wait(second, "second leads", lambda: holder().endswith(f"-{other.pid}"), 60.0)
            api.kubectl("create", "-f", "-", manifest=_cache("late", placement={"order": ["Host"]}))
            _wait(second, "second acts", lambda: _get(api, "statefulset", "late-store") is not None, 60.0)
            api.kubectl("delete", "pfc", "late", "--timeout=20s")

"""How long the operator takes for many pools, what it weighs, and that it writes nothing afterwards; one JSON line.

A real API server without controllers and nodes: engines never run, the operator's own work is what is timed.
`make bench-operator` runs it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from shadowserve_lab.home import REPOSITORY, default_home
from shadowserve_lab.processes import free_port
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.binaries import Binaries
from shadowserve_testbed.kubectl import KubectlError

POOLS = 200
LIMIT_SECONDS, QUIET_SECONDS = 300.0, 60.0
API_VERSION = "shadowserve.io/v1alpha1"


def resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def pool(number: int) -> dict[str, Any]:
    model = {"name": "m", "source": {"type": "HuggingFace", "huggingFace": {"repository": "a/b"}}}
    engine = {"image": "engine:1"}
    spec = {"replicas": 0, "model": model, "engine": engine, "cacheRef": {"name": "kv"}}
    return resource("InferencePool", f"pool-{number}", spec)


def wait(holds: Any) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"not within {LIMIT_SECONDS} s")
        time.sleep(0.5)


def settled(api: ApiServer) -> bool:
    pools = json.loads(api.kubectl("get", "sspool", "-o", "json"))["items"]
    told = sum(bool(each.get("status", {}).get("conditions")) for each in pools)
    return told == POOLS and len(api.kubectl("get", "deployments", "-o", "name").split()) == POOLS


def exists(api: ApiServer, *what: str) -> bool:
    try:
        api.kubectl("get", *what)
    except KubectlError:
        return False
    return True


def writes(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("shadowserve_reconcile_writes_total"))


def peak_mebibytes(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)


def measure(api: ApiServer, process: subprocess.Popen[bytes], port: int) -> dict[str, float]:
    api.kubectl("create", "-f", "-", manifest=resource("PrefixCache", "kv", {}))
    wait(lambda: exists(api, "statefulset", "kv-store"))
    began = time.monotonic()
    items = [pool(number) for number in range(POOLS)]
    api.kubectl("create", "-f", "-", manifest={"apiVersion": "v1", "kind": "List", "items": items})
    created = time.monotonic()
    wait(lambda: settled(api))
    done = time.monotonic()
    time.sleep(5.0)
    before = writes(port)
    time.sleep(QUIET_SECONDS)
    return {
        "pools": POOLS,
        "create_seconds": round(created - began, 1),
        "settled_seconds": round(done - began, 1),
        "peak_rss_mebibytes": peak_mebibytes(process.pid),
        "writes_per_minute_afterwards": writes(port) - before,
    }


def main() -> None:
    home = default_home()
    with ApiServer(Binaries(home), home.say) as api, tempfile.TemporaryFile() as log:
        api.kubectl("apply", "--server-side", "-k", str(REPOSITORY / "crds/generated"))
        api.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        port = free_port()
        paths = os.pathsep.join(str(REPOSITORY / part) for part in ("crds", "operator"))
        own = {"KUBECONFIG": str(api.kubeconfig), "PYTHONPATH": paths, "SHADOWSERVE_NAMESPACE": "default"}
        environment = {**os.environ, **own, "SHADOWSERVE_METRICS_PORT": str(port)}
        command = [sys.executable, "-m", "shadowserve_operator"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            print(json.dumps(measure(api, process, port)))
        finally:
            process.terminate()
            process.wait(timeout=30)


if __name__ == "__main__":
    main()

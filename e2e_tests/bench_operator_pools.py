"""How long the operator takes for many pools, what it weighs, and what it writes once all is settled: JSON lines.

A real API server without controllers and nodes: engines never run, the operator's own work is what is timed. It runs
with the rights that install.yaml gives it, so that the API server's audit log knows its writes from all others.
`make bench-operator` runs it; `--quiet-seconds 60` shortens it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from operator_story import access_of, cache, create, get, own_environment, pool
from shadowserve_lab.home import REPOSITORY, default_home
from shadowserve_lab.processes import free_port, wait_until
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.audit import writes
from shadowserve_testbed.binaries import Binaries

sys.path.insert(0, str(REPOSITORY / "dataplane_image/bench"))

from results import Goal, Result, at_most, emit

SYSTEM, ACCOUNT = "shadowserve-system", "shadowserve-operator"
LIMIT_SECONDS, CALM_SECONDS = 300.0, 30.0
SETTLED_SECONDS, MEGABYTES, WRITES = 60.0, 200.0, 0.0


def settled(api: ApiServer, pools: int) -> bool:
    items = json.loads(api.kubectl("get", "sspool", "-o", "json"))["items"]
    told = sum(bool(each.get("status", {}).get("conditions")) for each in items)
    return told == pools and len(api.kubectl("get", "deployments", "-o", "name").split()) == pools


def peak_megabytes(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def figure(metric: str, value: float, unit: str, goal: Goal | None = None, **parameters: object) -> None:
    emit(Result("operator", "pools", metric, [value], unit, goal, parameters=parameters))


def measure(api: ApiServer, process: subprocess.Popen[bytes], pools: int, quiet: float) -> None:
    create(api, cache("kv", placement={"order": ["Host"]}))
    wait_until(lambda: get(api, "configmap", "kv-config") is not None, LIMIT_SECONDS, "the settings")
    items = [pool(f"pool-{number}", cacheRef={"name": "kv"}) for number in range(pools)]
    began = time.monotonic()
    create(api, {"apiVersion": "v1", "kind": "List", "items": items})
    created = time.monotonic()
    wait_until(lambda: settled(api, pools), LIMIT_SECONDS, "all pools")
    figure("seconds until all are created", created - began, "s", pools=pools)
    figure("seconds until all are settled", time.monotonic() - began, "s", at_most(SETTLED_SECONDS), pools=pools)
    figure("peak resident memory", peak_megabytes(process.pid), "MB", at_most(MEGABYTES), pools=pools)
    time.sleep(CALM_SECONDS)
    since = datetime.now(UTC)
    time.sleep(quiet)
    account = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
    own = [each for each in writes(api.audit_log) if each.user == account and each.when >= since]
    renewals = [each for each in own if each.resource == "leases"]
    minutes = quiet / 60
    goal = at_most(WRITES)
    figure("writes a minute", (len(own) - len(renewals)) / minutes, "1/min", goal, pools=pools, seconds=quiet)
    figure("renewals of the Lease a minute", len(renewals) / minutes, "1/min", pools=pools, seconds=quiet)
    figure("peak resident memory, calm", peak_megabytes(process.pid), "MB", at_most(MEGABYTES), pools=pools)


def run(arguments: argparse.Namespace) -> None:
    home = default_home()
    with (
        ApiServer(Binaries(home), home.say, audited=True) as api,
        tempfile.TemporaryDirectory() as folder,
        Path(folder, "operator.log").open("wb") as log,
    ):
        api.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "manifests/install.yaml"))
        access = access_of(api, ACCOUNT, SYSTEM, Path(folder))
        own: dict[str, Any] = {"SHADOWSERVE_NAMESPACE": SYSTEM, "SHADOWSERVE_WATCH_NAMESPACES": "default"}
        environment = own_environment(access, SHADOWSERVE_METRICS_PORT=str(free_port()), **own)
        command = [sys.executable, "-m", "shadowserve_operator"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            measure(api, process, arguments.pools, arguments.quiet_seconds)
        finally:
            process.terminate()
            process.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--quiet-seconds", type=float, default=300.0, help="how long writes are counted")
    run(parser.parse_args())


if __name__ == "__main__":
    main()

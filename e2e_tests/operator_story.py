"""What stories about the operator on a real API server share: the process, small resources, waiting on what is."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY, default_home
from shadowserve_lab.processes import Program, free_port
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.binaries import CONTROLLER_MANAGER, KUBECTL, Binaries
from shadowserve_testbed.control_plane import flags
from shadowserve_testbed.kubectl import KubectlError

DEADLINE = 90.0
COMMAND_SECONDS = 120.0


def own_environment(kubeconfig: Path, **more: str) -> dict[str, str]:
    """Return the environment in which our programs find the sources and the cluster."""
    paths = os.pathsep.join(str(REPOSITORY / part) for part in ("crds", "dataplane_image", "operator", "e2e_tests"))
    return {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": paths, **more}


@contextmanager
def operator_running(
    api: ApiServer,
    log: Path,
    namespace: str = "default",
    metrics_port: int = 0,
    access: Path | None = None,
    watched: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the operator's process, as administrator without `access`; its Lease is in `namespace`.

    Its metrics: on any port if `metrics_port` is 0.
    """
    own = {"SHADOWSERVE_METRICS_PORT": str(metrics_port or free_port()), "SHADOWSERVE_NAMESPACE": namespace}
    with log.open("ab") as output:
        command = [sys.executable, "-m", "shadowserve_operator"]
        environment = own_environment(access or api.kubeconfig, **own, SHADOWSERVE_WATCH_NAMESPACES=watched)
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def controller_running(api: ApiServer, log: Path, controller: str, **more: str) -> Iterator[None]:
    """Run Kubernetes' controller manager with one controller; `more` are flags."""
    home = default_home()
    with home.locked():
        program = Binaries(home).path(CONTROLLER_MANAGER)
    fixed = {"kubeconfig": str(api.kubeconfig), "leader-elect": "false", "secure-port": "0"}
    running = Program(
        "kube-controller-manager", [str(program), *flags({**fixed, "controllers": controller, **more})], log
    )
    try:
        yield
    finally:
        running.stop()


def shell(api: ApiServer, command: str, where: Path, code: int = 0) -> str:
    """Run a command as a user in the folder `where` would, and return all that it says; it ends with `code`."""
    kubectl = Binaries(default_home()).path(KUBECTL).parent
    environment = {"PATH": f"{kubectl}:/usr/bin:/bin", "KUBECONFIG": str(api.kubeconfig), "HOME": str(where)}
    done = subprocess.run(
        ["sh", "-ec", command],
        env=environment,
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def access_of(api: ApiServer, account: str, namespace: str, folder: Path) -> Path:
    """Return a kubeconfig, in `folder`, with which a service account gets in."""
    token = api.kubectl("create", "token", account, "-n", namespace, "--duration=1h").strip()
    access = yaml.safe_load(api.kubeconfig.read_text())
    access["users"] = [{"name": each["name"], "user": {"token": token}} for each in access["users"]]
    path = folder / f"{account}.kubeconfig"
    path.write_text(yaml.safe_dump(access))
    return path


def wait(log: Path, what: str, holds: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Return once it holds; else fail with the end of the operator's log."""
    end = time.monotonic() + deadline
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {deadline} s\n{log.read_text()[-4000:]}"
        time.sleep(0.1)


def get(api: ApiServer, *what: str) -> dict[str, Any] | None:
    """Return an object, None when there is none."""
    try:
        found: dict[str, Any] = json.loads(api.kubectl("get", *what, "-o", "json"))
    except KubectlError as error:
        if "NotFound" in str(error):
            return None
        raise
    return found


def create(api: ApiServer, *manifests: Mapping[str, Any]) -> None:
    """Create objects."""
    for manifest in manifests:
        api.kubectl("create", "-f", "-", manifest=manifest)


def node(name: str, **labels: str) -> dict[str, Any]:
    """Return a node that nobody runs."""
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def cache(name: str, **spec: Any) -> dict[str, Any]:
    """Return a PrefixCache."""
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": spec}


def pool(name: str, **spec: Any) -> dict[str, Any]:
    """Return an InferencePool without replicas whose model needs nothing of the cluster."""
    source = {"type": "HuggingFace", "huggingFace": {"repository": "a/b"}}
    whole = {"replicas": 0, "model": {"name": "m", "source": source}, "engine": {"image": "engine:1"}, **spec}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": names.API_VERSION, "kind": "InferencePool", "metadata": metadata, "spec": whole}


def condition(api: ApiServer, what: str, kind: str, part: str = "reason") -> str:
    """Return a part of a condition of `what` (as "pfc/kv"); "" while it has none."""
    body = get(api, what) or {}
    listed = {each["type"]: each[part] for each in body.get("status", {}).get("conditions", ())}
    return str(listed.get(kind, ""))


def patch_status(api: ApiServer, what: str, **status: Any) -> None:
    """Write into a status as the object's own controller would."""
    api.kubectl("patch", what, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


def run(api: ApiServer, *arguments: str, code: int = 0) -> str:
    """Return all that `shadowserve` says, which ends with `code`."""
    command = [sys.executable, "-m", "shadowserve_cli.main", *arguments]
    environment = own_environment(api.kubeconfig)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def told(api: ApiServer, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Return what `shadowserve` says to programs."""
    found: dict[str, Any] = json.loads(run(api, *arguments, "-o", "json", code=code))
    return found

"""The real cert-manager beside a real API server, with Kubernetes' garbage collector: what is owned goes too."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from operator_story import create
from shadowserve_lab.home import default_home
from shadowserve_lab.processes import Program
from shadowserve_testbed.api_server import ESTABLISHED, ApiServer
from shadowserve_testbed.binaries import CERTIFICATE_MANAGER, CONTROLLER_MANAGER, Binaries, module_folder

_KINDS = ("certificaterequests", "certificates", "clusterissuers", "issuers")
_GROUP = "cert-manager.io"
_READY_SECONDS = 60.0
SYSTEM = "cert-manager"
"""The namespace in which it looks for the keys of issuers that are the cluster's."""


@contextmanager
def cert_manager_running(api: ApiServer, folder: Path) -> Iterator[None]:
    """Install its custom resources and run its controllers; afterwards all of it is gone again."""
    home = default_home()
    binaries, definitions = Binaries(home), module_folder(CERTIFICATE_MANAGER) / "deploy/crds"
    with home.locked():
        issuing, collecting = (binaries.path(tool) for tool in (CERTIFICATE_MANAGER, CONTROLLER_MANAGER))
    files = [str(definitions / f"{_GROUP}_{kind}.yaml") for kind in _KINDS]
    listed = [word for file in files for word in ("-f", file)]
    with ExitStack() as cleanup:
        api.kubectl("apply", "--server-side", *listed)
        cleanup.callback(api.kubectl, "delete", "--timeout=90s", *listed)
        api.kubectl(*ESTABLISHED, *(f"{kind}.{_GROUP}" for kind in _KINDS))
        environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig)}
        manager = Program("cert-manager", [str(issuing)], folder / "cert-manager.log", environment)
        cleanup.callback(manager.stop)
        collector = _collector(str(collecting), api, folder)
        cleanup.callback(collector.stop)
        manager.wait_ready(lambda: "controllers run" in manager.log.read_text(), _READY_SECONDS)
        yield


def _collector(command: str, api: ApiServer, folder: Path) -> Program:
    words = [f"--kubeconfig={api.kubeconfig}", "--controllers=garbage-collector-controller", "--leader-elect=false"]
    return Program("garbage collector", [command, *words, "--secure-port=0"], folder / "collector.log")


def issuer(name: str, kind: str = "Issuer", **spec: Any) -> dict[str, Any]:
    """Return an issuer, in the namespace if it is none of the cluster's."""
    where = {} if kind == "ClusterIssuer" else {"namespace": "default"}
    return {"apiVersion": f"{_GROUP}/v1", "kind": kind, "metadata": {"name": name, **where}, "spec": spec}


def make_authority(api: ApiServer, secret: str) -> None:
    """Have cert-manager make the key of an issuer of type ca, by one that is selfSigned, as its pages advise."""
    create(api, issuer("itself", "ClusterIssuer", selfSigned={}))
    make_root(api, secret, "default")


def make_root(api: ApiServer, secret: str, namespace: str) -> None:
    """Have a key and a certificate made that may sign others, by the ClusterIssuer `itself`."""
    named = {"group": _GROUP, "kind": "ClusterIssuer", "name": "itself"}
    spec = {"isCA": True, "commonName": secret, "secretName": secret, "issuerRef": named}
    metadata = {"name": secret, "namespace": namespace}
    create(api, {"apiVersion": f"{_GROUP}/v1", "kind": "Certificate", "metadata": metadata, "spec": spec})


def renew(api: ApiServer, certificate: str) -> None:
    """Ask for a new certificate, as `cmctl renew` does."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    asked = {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "lastTransitionTime": now}
    patch = [{"op": "add", "path": "/status/conditions/-", "value": {**asked, "message": "asked by hand"}}]
    api.kubectl("patch", "certificate", certificate, "--subresource=status", "--type=json", "-p", json.dumps(patch))

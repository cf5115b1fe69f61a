"""A real API server with its etcd, and nothing else: no node, no controller. Up in a few seconds, for what needs only
the API: custom resources, admission, server-side apply.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from shadowserve_lab.processes import Program, free_port
from shadowserve_testbed.binaries import API_SERVER, ETCD_SERVER, KUBECTL, Binaries
from shadowserve_testbed.pki import Authority, service_account_key

ESTABLISHED = ("wait", "--for=condition=Established", "--timeout=30s", "crd")
"""How a kubectl command begins that waits for custom resource definitions."""
_HOST = "127.0.0.1"
_READY_SECONDS = 60.0
_KUBECTL_SECONDS = 60.0


class KubectlError(Exception):
    """kubectl refused; the message is what it printed."""


class ApiServer:
    """Starts both programs in `__enter__`, stops them in `__exit__`; nothing outlives the process that made it."""

    def __init__(self, binaries: Binaries, say: Callable[[str], None]) -> None:
        self._binaries, self._say = binaries, say
        self._cleanup = ExitStack()
        self._folder = Path()
        self.kubeconfig = Path()

    def __enter__(self) -> "ApiServer":
        with ExitStack() as failing:
            self._folder = Path(failing.enter_context(tempfile.TemporaryDirectory(prefix="shadowserve-api-")))
            self._start(failing)
            self._cleanup = failing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def kubectl(self, *arguments: str, manifest: Mapping[str, Any] | None = None) -> str:
        """Run kubectl as administrator, with `manifest` as its input. Raises `KubectlError`."""
        done = subprocess.run(
            [str(self._binaries.path(KUBECTL)), "--kubeconfig", str(self.kubeconfig), *arguments],
            input=None if manifest is None else json.dumps(manifest),
            capture_output=True,
            text=True,
            check=False,
            timeout=_KUBECTL_SECONDS,
        )
        if done.returncode:
            raise KubectlError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def _start(self, cleanup: ExitStack) -> None:
        etcd, client_port = self._start_etcd()
        cleanup.callback(etcd.stop)
        pki = self._folder / "pki"
        authority = Authority(pki, "authority", datetime.now(UTC))
        port = free_port()
        server = self._start_api_server(authority, pki, port, f"http://{_HOST}:{client_port}")
        cleanup.callback(server.stop)
        administrator = authority.issue("admin", group="system:masters")
        self.kubeconfig = authority.kubeconfig(administrator, f"https://{_HOST}:{port}", self._folder / "kubeconfig")
        server.wait_ready(self._ready, _READY_SECONDS)
        self._say(f"API server: ready at https://{_HOST}:{port}")

    def _start_etcd(self) -> tuple[Program, int]:
        client, peer = free_port(), free_port()
        client_url, peer_url = f"http://{_HOST}:{client}", f"http://{_HOST}:{peer}"
        flags = {
            "data-dir": str(self._folder / "etcd"),
            "listen-client-urls": client_url,
            "advertise-client-urls": client_url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": f"default={peer_url}",
        }
        command = [str(self._binaries.path(ETCD_SERVER)), "--unsafe-no-fsync", *_as_flags(flags)]
        return Program("etcd", command, self._folder / "etcd.log"), client

    def _start_api_server(self, authority: Authority, pki: Path, port: int, etcd: str) -> Program:
        serving = authority.issue("kube-apiserver", hosts=(_HOST, "localhost", "kubernetes.default.svc"))
        tokens = service_account_key(pki)
        flags = {
            "etcd-servers": etcd,
            "bind-address": _HOST,
            "secure-port": str(port),
            "service-cluster-ip-range": "10.96.0.0/16",
            "authorization-mode": "RBAC",
            "client-ca-file": str(authority.certificate),
            "tls-cert-file": str(serving.certificate),
            "tls-private-key-file": str(serving.key),
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": str(tokens.certificate),
            "service-account-signing-key-file": str(tokens.key),
            # no controller gives pods' namespaces a service account here
            "disable-admission-plugins": "ServiceAccount",
        }
        command = [str(self._binaries.path(API_SERVER)), *_as_flags(flags)]
        return Program("kube-apiserver", command, self._folder / "kube-apiserver.log")

    def _ready(self) -> bool:
        try:
            return self.kubectl("get", "--raw", "/readyz") == "ok"
        except KubectlError:
            return False


def _as_flags(values: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]

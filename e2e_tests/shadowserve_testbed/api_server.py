"""A real API server with its etcd, and nothing else: no node, no controller. Up in a few seconds, for what needs only
the API: custom resources, admission, server-side apply.
"""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from shadowserve_lab.processes import Program, free_port
from shadowserve_testbed.audit import audit_flags
from shadowserve_testbed.binaries import API_SERVER, ETCD_SERVER, KUBECTL, Binaries
from shadowserve_testbed.control_plane import ApiServerFiles, api_server_flags, etcd_flags, flags
from shadowserve_testbed.kubectl import Kubectl
from shadowserve_testbed.pki import Authority, service_account_key

ESTABLISHED = ("wait", "--for=condition=Established", "--timeout=90s", "crd")
"""How a kubectl command begins that waits for custom resource definitions."""
_HOST = "127.0.0.1"
_READY_SECONDS = 60.0


class ApiServer:
    """Starts both programs in `__enter__`, stops them in `__exit__`; nothing outlives the process that made it.

    `audited`: every write is recorded in `audit_log`, which `audit.writes` reads.
    """

    def __init__(self, binaries: Binaries, say: Callable[[str], None], audited: bool = False) -> None:
        self._binaries, self._say, self._audited = binaries, say, audited
        self._cleanup = ExitStack()
        self._folder = Path()
        self.kubeconfig = Path()
        self._kubectl = Kubectl(Path(), self.kubeconfig)

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
        return self._kubectl.run(*arguments, manifest=manifest)

    @property
    def audit_log(self) -> Path:
        """Where writes are recorded."""
        return self._folder / "audit.log"

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
        self._kubectl = Kubectl(self._binaries.path(KUBECTL), self.kubeconfig)
        server.wait_ready(self._kubectl.answers, _READY_SECONDS)
        self._say(f"API server: ready at https://{_HOST}:{port}")

    def _start_etcd(self) -> tuple[Program, int]:
        client, peer = free_port(), free_port()
        client_url, peer_url = f"http://{_HOST}:{client}", f"http://{_HOST}:{peer}"
        words = etcd_flags(self._folder / "etcd", client_url, peer_url)
        command = [str(self._binaries.path(ETCD_SERVER)), *words]
        return Program("etcd", command, self._folder / "etcd.log"), client

    def _start_api_server(self, authority: Authority, pki: Path, port: int, etcd: str) -> Program:
        serving = authority.issue("kube-apiserver", hosts=(_HOST, "localhost", "kubernetes.default.svc"))
        files = ApiServerFiles(authority.certificate, serving, service_account_key(pki))
        # no controller gives pods' namespaces a service account here
        alone = {"disable-admission-plugins": "ServiceAccount"}
        if self._audited:
            alone |= audit_flags(self._folder / "audit-policy.json", self.audit_log)
        words = flags(api_server_flags(files, _HOST, port, etcd) | alone)
        command = [str(self._binaries.path(API_SERVER)), *words]
        return Program("kube-apiserver", command, self._folder / "kube-apiserver.log")

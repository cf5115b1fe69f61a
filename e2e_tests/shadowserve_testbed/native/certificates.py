"""Certificates and kubeconfigs of a cluster: made together, there whole or not at all."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shadowserve_testbed.control_plane import SERVICE_ADDRESS, ApiServerFiles
from shadowserve_testbed.layout import Node
from shadowserve_testbed.native.addresses import API_SERVER, CONTROL_PLANE
from shadowserve_testbed.pki import Authority, Identity, service_account_key

_SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
_COMPONENTS = {
    "controller-manager": "system:kube-controller-manager",
    "scheduler": "system:kube-scheduler",
    "proxy": "system:kube-proxy",
}


@dataclass(frozen=True, slots=True)
class ClusterFiles:
    """Where they are."""

    folder: Path

    def identity(self, name: str) -> Identity:
        """Return a certificate with its key."""
        return Identity(self.folder / f"{name}.crt", self.folder / f"{name}.key")

    def kubeconfig(self, name: str) -> Path:
        """Return the kubeconfig of a component; of a kubelet under the name of its node."""
        return self.folder / f"{name}.kubeconfig"

    @property
    def api_server(self) -> ApiServerFiles:
        """The API server's."""
        tokens = Identity(self.folder / "service-accounts.pub", self.folder / "service-accounts.key")
        return ApiServerFiles(self.folder / "authority.crt", self.identity("kube-apiserver"), tokens)

    @property
    def authority_key(self) -> Path:
        """The authority's key, with which the controller manager signs."""
        return self.folder / "authority.key"


def ensure_files(files: ClusterFiles, nodes: Sequence[Node], now: datetime) -> None:
    """Make them, if they are not there."""
    if files.folder.is_dir():
        return
    partial = files.folder.with_name(f".{files.folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    authority = Authority(partial, "authority", now)
    authority.write_key()
    hosts = ("127.0.0.1", "localhost", CONTROL_PLANE, SERVICE_ADDRESS, *_SERVICE_NAMES)
    authority.issue("kube-apiserver", hosts=hosts)
    service_account_key(partial)
    Authority(partial, "front-proxy-authority", now).issue("front-proxy-client")
    clients = {"admin": authority.issue("admin", group="system:masters")}
    clients |= {name: authority.issue(user) for name, user in _COMPONENTS.items()}
    clients |= {node.name: authority.issue(f"system:node:{node.name}", group="system:nodes") for node in nodes}
    for name, identity in clients.items():
        authority.kubeconfig(identity, API_SERVER, partial / f"{name}.kubeconfig")
    partial.rename(files.folder)

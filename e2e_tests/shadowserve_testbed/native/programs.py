"""The daemons of a cluster, as commands. Pure, from where binaries and files are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shadowserve_testbed import binaries
from shadowserve_testbed.binaries import Tool
from shadowserve_testbed.control_plane import api_server_flags, etcd_flags, flags
from shadowserve_testbed.layout import Node
from shadowserve_testbed.native.addresses import API_PORT, CONTROL_PLANE, PODS, address, namespace
from shadowserve_testbed.native.certificates import ClusterFiles
from shadowserve_testbed.native.daemons import Daemon
from shadowserve_testbed.native.node_files import NodePaths

_ETCD_CLIENTS, _ETCD_PEERS = "http://127.0.0.1:12379", "http://127.0.0.1:12380"
_COREFILE = """\
.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
    }}
    cache 5
}}
"""


@dataclass(frozen=True, slots=True)
class Programs:
    """`path` finds a binary; `folder` is the test bed's."""

    path: Callable[[Tool], Path]
    folder: Path
    files: ClusterFiles

    def store(self) -> Daemon:
        """Return etcd."""
        return self._daemon(binaries.ETCD_SERVER, etcd_flags(self.folder / "etcd", _ETCD_CLIENTS, _ETCD_PEERS))

    def api_server(self) -> Daemon:
        """Return the API server: with nodes' rights, and webhooks called at pods' addresses."""
        kubelet, front = self.files.identity("admin"), self.files.identity("front-proxy-client")
        values = api_server_flags(self.files.api_server, "0.0.0.0", API_PORT, _ETCD_CLIENTS) | {
            "advertise-address": CONTROL_PLANE,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": "true",
            "kubelet-client-certificate": str(kubelet.certificate),
            "kubelet-client-key": str(kubelet.key),
            "kubelet-preferred-address-types": "InternalIP",
            "requestheader-client-ca-file": str(self.files.folder / "front-proxy-authority.crt"),
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "proxy-client-cert-file": str(front.certificate),
            "proxy-client-key-file": str(front.key),
            "enable-aggregator-routing": "true",
        }
        return self._daemon(binaries.API_SERVER, flags(values))

    def controllers(self) -> list[Daemon]:
        """Return controller manager, scheduler and the name server."""
        manager, scheduler = self.files.kubeconfig("controller-manager"), self.files.kubeconfig("scheduler")
        authority = self.files.api_server.authority
        managing = {
            "kubeconfig": str(manager),
            "authentication-kubeconfig": str(manager),
            "authorization-kubeconfig": str(manager),
            "root-ca-file": str(authority),
            "service-account-private-key-file": str(self.files.api_server.tokens.key),
            "use-service-account-credentials": "true",
            "cluster-signing-cert-file": str(authority),
            "cluster-signing-key-file": str(self.files.authority_key),
            "leader-elect": "false",
            "secure-port": "16257",
            "bind-address": "127.0.0.1",
        }
        scheduling = {
            "kubeconfig": str(scheduler),
            "leader-elect": "false",
            "secure-port": "16259",
            "bind-address": "127.0.0.1",
        }
        return [
            self._daemon(binaries.CONTROLLER_MANAGER, flags(managing)),
            self._daemon(binaries.SCHEDULER, flags(scheduling)),
            self._daemon(binaries.DNS_SERVER, ["-conf", str(self.corefile)]),
        ]

    @property
    def corefile(self) -> Path:
        """Return where the name server's configuration is."""
        return self.folder / "Corefile"

    def corefile_text(self) -> str:
        """Return it."""
        return _COREFILE.format(address=CONTROL_PLANE, kubeconfig=self.files.kubeconfig("admin"))

    def runtime(self, node: Node) -> Daemon:
        """Return a node's containerd, which looks for its shim beside itself."""
        paths = self.paths(node)
        shim = str(self.path(binaries.CONTAINER_SHIM).parent)
        return self._daemon(binaries.CONTAINER_RUNTIME, ["--config", str(paths.containerd)], node, shim)

    def kubelet(self, node: Node) -> Daemon:
        """Return a node's kubelet."""
        paths = self.paths(node)
        values = {
            "config": str(paths.kubelet),
            "kubeconfig": str(self.files.kubeconfig(node.name)),
            "root-dir": str(paths.folder / "kubelet"),
            "cert-dir": str(paths.folder / "kubelet-certificates"),
            "hostname-override": node.name,
            "node-ip": address(node),
        }
        if node.labels:
            values["node-labels"] = ",".join(f"{key}={value}" for key, value in node.labels.items())
        return self._daemon(binaries.KUBELET, flags(values), node)

    def proxy(self, node: Node) -> Daemon:
        """Return a node's kube-proxy; the limit of tracked connections is the machine's, not the node's."""
        values = {
            "kubeconfig": str(self.files.kubeconfig("proxy")),
            "proxy-mode": "iptables",
            "cluster-cidr": PODS,
            "hostname-override": node.name,
            "conntrack-max-per-core": "0",
        }
        return self._daemon(binaries.KUBE_PROXY, flags(values), node)

    def of_node(self, node: Node) -> list[Daemon]:
        """Return all of a node's."""
        return [self.runtime(node), self.kubelet(node), self.proxy(node)]

    def paths(self, node: Node) -> NodePaths:
        """Return a node's folders."""
        return NodePaths(self.folder / "nodes" / node.name)

    def _daemon(self, tool: Tool, words: list[str], node: Node | None = None, path: str = "") -> Daemon:
        command = (str(self.path(tool)), *words)
        if node is None:
            return Daemon(tool.name, command)
        return Daemon(f"{tool.name}-on-{node.name}", command, namespace(node), path)

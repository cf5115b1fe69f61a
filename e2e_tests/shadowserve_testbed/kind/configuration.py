"""What kind, podman and the nodes' network are told. Pure."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shadowserve_testbed.layout import CARD_TAINT, Node, make_nodes

CLUSTER = "shadowserve"
PODS = "10.245.0.0/16"
NODE_IMAGE = "testbed.local/kind-node:dev"
_REQUESTED = {"etcd": "50m", "kube-apiserver": "100m", "kube-controller-manager": "20m", "kube-scheduler": "10m"}
"""CPU. With what kubeadm asks for, 650m and 100m for each CoreDNS, two engines with their sidecars find no place."""
_DNS_REQUESTED = "10m"


@dataclass(frozen=True, slots=True)
class Made:
    """What a test bed was made as. `bare`: the image brings no network for pods, so that joining them is ours to do."""

    hosts: int
    cards: int
    image: str
    bare: bool

    @classmethod
    def parse(cls, text: str) -> "Made":
        """Return what `text` gave."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """Return it as it is remembered."""
        return json.dumps(asdict(self))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes."""
        return make_nodes(self.hosts, self.cards)


def container(node: Node) -> str:
    """Return the name of the node's container: kind's, since the first is the control plane."""
    number = node.index if node.index > 1 else ""
    return f"{CLUSTER}-worker{number}" if node.index else f"{CLUSTER}-control-plane"


def cluster_config(made: Made, home: Path) -> dict[str, Any]:
    """Return kind's configuration. `home` is seen by every node under the same path: images, volumes, patches."""
    # without CAP_SYS_RESOURCE no process may be made less likely to be killed
    kubelet = {"kind": "KubeletConfiguration", "failCgroupV1": False, "oomScoreAdj": 0}
    proxy = {"kind": "KubeProxyConfiguration", "oomScoreAdj": 0}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "networking": {"disableDefaultCNI": made.bare, "podSubnet": PODS},
        "kubeadmConfigPatches": [json.dumps(kubelet), json.dumps(proxy)],
        "nodes": [_node(node, made.image, home) for node in made.nodes],
    }


def patches_folder(home: Path) -> Path:
    """Return where kubeadm reads `control_plane_patches`."""
    return home / "kind" / "patches"


def control_plane_patches() -> dict[str, str]:
    """Return what kubeadm is to change in the pods that it makes of the control plane: texts by file name."""
    patches = {name: _requesting(name, cpu) for name, cpu in _REQUESTED.items()}
    # before Kubernetes 1.32 kubeadm warns that it does not know this one, and goes on
    patches["corednsdeployment"] = {"spec": {"template": _requesting("coredns", _DNS_REQUESTED)}}
    return {f"{target}.json": json.dumps(patch) for target, patch in patches.items()}


def _requesting(container_name: str, cpu: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": container_name, "resources": {"requests": {"cpu": cpu}}}]}}


def _node(node: Node, image: str, home: Path) -> dict[str, Any]:
    taints = [{"key": CARD_TAINT, "effect": "NoSchedule"}] if node.host else []
    registered: dict[str, Any] = {"nodeRegistration": {"name": node.name, "taints": taints}}
    if node.index:
        registered["kind"] = "JoinConfiguration"
    else:
        registered |= {"kind": "InitConfiguration", "patches": {"directory": str(patches_folder(home))}}
    return {
        "role": "worker" if node.index else "control-plane",
        "image": image,
        "labels": dict(node.labels),
        "kubeadmConfigPatches": [json.dumps(registered)],
        "extraMounts": [{"hostPath": str(home), "containerPath": str(home), "readOnly": True}],
    }


def network_config(pods: str) -> dict[str, Any]:
    """Return the configuration of a node's pod network, whose addresses are `pods`."""
    addresses = {"type": "host-local", "ranges": [[{"subnet": pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}


def podman_config(limits: Mapping[str, int]) -> str:
    """Return containers.conf; `limits` may not exceed the hard limits of this machine."""
    ulimits = json.dumps([f"{name}={limit}:{limit}" for name, limit in limits.items()])
    engine = ('runtime = "runc"', 'cgroup_manager = "cgroupfs"', 'events_logger = "file"')
    return "\n".join(["[containers]", f"default_ulimits = {ulimits}", "[engine]", *engine]) + "\n"

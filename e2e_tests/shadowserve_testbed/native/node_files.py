"""What a node's programs read: containerd's, the kubelet's and the network plugins' configuration. Pure."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shadowserve_testbed.layout import CARD_TAINT, Node
from shadowserve_testbed.native.addresses import CONTROL_PLANE, cgroup, pod_network

PAUSE = "testbed.local/pause:dev"


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Folders of one node below `folder`, all of which are removed with the test bed."""

    folder: Path

    @property
    def socket(self) -> Path:
        """Where containerd listens."""
        return self.folder / "containerd.sock"

    @property
    def containerd(self) -> Path:
        """Containerd's configuration."""
        return self.folder / "containerd.toml"

    @property
    def kubelet(self) -> Path:
        """The kubelet's configuration."""
        return self.folder / "kubelet.yaml"

    @property
    def network(self) -> Path:
        """The network plugins' configuration."""
        return self.folder / "cni/10-pods.conflist"

    @property
    def resolver(self) -> Path:
        """What pods get as resolv.conf."""
        return self.folder / "resolv.conf"


def write_node_files(node: Node, paths: NodePaths, authority: Path, plugins: Path, runc: str) -> None:
    """Write them all; `plugins` is the folder of the network plugins."""
    paths.network.parent.mkdir(parents=True, exist_ok=True)
    paths.network.write_text(json.dumps(network_configuration(node, paths), indent=2))
    paths.containerd.write_text(containerd_configuration(paths, plugins, runc))
    paths.kubelet.write_text(yaml.safe_dump(kubelet_configuration(node, paths, authority), sort_keys=False))
    paths.resolver.write_text(f"nameserver {CONTROL_PLANE}\n")


def network_configuration(node: Node, paths: NodePaths) -> dict[str, Any]:
    """Return the CNI configuration: a bridge in the node's namespace; the fabric's routes join the nodes."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": pod_network(node)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(paths.folder / "addresses"),
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "testbed", "plugins": [bridge, ports]}


def containerd_configuration(paths: NodePaths, plugins: Path, runc: str) -> str:
    """Return containerd's configuration (version 3). All that it mounts is below the node's folder."""
    return f"""\
version = 3
root = "{paths.folder}/containerd/root"
state = "{paths.folder}/containerd/state"
[grpc]
  address = "{paths.socket}"
[ttrpc]
  address = "{paths.socket}.ttrpc"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{paths.network.parent}"
"""


def kubelet_configuration(node: Node, paths: NodePaths, authority: Path) -> dict[str, Any]:
    """Return the KubeletConfiguration."""
    taints = [{"key": CARD_TAINT, "value": "true", "effect": "NoSchedule"}] if node.host else []
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup(node)}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        # the machine's disk and memory are shared with everything else that runs on it
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [CONTROL_PLANE],
        "clusterDomain": "cluster.local",
        "resolvConf": str(paths.resolver),
        "containerRuntimeEndpoint": f"unix://{paths.socket}",
        "podLogsDir": str(paths.folder / "pod-logs"),
        "volumePluginDir": str(paths.folder / "volume-plugins"),
        "nodeStatusUpdateFrequency": "5s",
        "registerWithTaints": taints,
        "serializeImagePulls": False,
        "readOnlyPort": 0,
    }

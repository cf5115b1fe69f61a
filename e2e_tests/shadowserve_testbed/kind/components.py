"""Images of Kubernetes' own components, under the names that kubeadm expects: one static binary each."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from shadowserve_testbed.binaries import (
    API_SERVER,
    CONTROLLER_MANAGER,
    DNS_SERVER,
    ETCD_SERVER,
    KUBE_PROXY,
    KUBEADM,
    KUBERNETES,
    SCHEDULER,
    Binaries,
    Tool,
)
from shadowserve_testbed.images.architecture import native
from shadowserve_testbed.images.debian import System, unpack
from shadowserve_testbed.images.oci import Configuration, Layer, write_archive, write_layer

SUITE = "bookworm"
_TOOLS = {tool.name: tool for tool in (API_SERVER, CONTROLLER_MANAGER, SCHEDULER, KUBE_PROXY, ETCD_SERVER, DNS_SERVER)}
_PROXY_PACKAGES = ("iptables", "conntrack", "kmod", "dash")
_IPTABLES = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")
_SANDBOX = "registry.k8s.io/pause:3.10"
"""What kind's configuration of containerd names, beside kubeadm's own choice."""
_SECONDS = 60.0


def write_components(binaries: Binaries, pause: Layer, folder: Path, work: Path) -> None:
    """Write an archive of every image that a control plane and its nodes need into `folder`."""
    for reference in _expected(binaries):
        name = reference.rsplit("/", 1)[-1].split(":")[0]
        if name in _TOOLS:
            layer = _component(binaries, _TOOLS[name], work)
            # kubeadm starts CoreDNS by its arguments alone, and everything else by name
            entry = ("/usr/local/bin/coredns",) if name == "coredns" else ()
            _write(folder, reference, layer, Configuration((), entrypoint=entry))
    for reference in {_SANDBOX, *(name for name in _expected(binaries) if "/pause:" in name)}:
        _write(folder, reference, pause, Configuration((), entrypoint=("/pause",)))


def _expected(binaries: Binaries) -> Sequence[str]:
    command = [str(binaries.path(KUBEADM)), "config", "images", "list", "--kubernetes-version", f"v{KUBERNETES}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout.split()


def _component(binaries: Binaries, tool: Tool, work: Path) -> Layer:
    tree = work / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    if tool is KUBE_PROXY:
        unpack(System(SUITE, native(), _PROXY_PACKAGES), tree, work / "packages")
        for name in _IPTABLES:  # a maintainer script would make them
            (tree / "usr/sbin" / name).symlink_to("xtables-nft-multi")
    commands = tree / "usr/local/bin"
    commands.mkdir(parents=True, exist_ok=True)
    shutil.copy(binaries.path(tool), commands / tool.name)
    return write_layer(tree, work / "layer.tar")


def _write(folder: Path, reference: str, layer: Layer, start: Configuration) -> None:
    name = reference.rsplit("/", 1)[-1].replace(":", "-")
    write_archive(folder / f"{name}.tar", reference, native(), [layer], start)

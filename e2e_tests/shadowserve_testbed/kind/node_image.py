"""The image of kind's nodes, from the same pinned binaries as the native test bed.

It follows kind's own Dockerfile (`images/base` of its module, whose files are read from the Go module cache), for
machines without a registry, without CAP_SYS_RESOURCE and with control groups of version 1.
"""

import shutil
from pathlib import Path

from shadowserve_lab.home import Artifact, Home
from shadowserve_testbed.binaries import (
    CLUSTER,
    CONTAINER_RUNTIME,
    CONTAINER_SHIM,
    CTR,
    KIND,
    KUBEADM,
    KUBECTL,
    KUBELET,
    Binaries,
    module_folder,
)
from shadowserve_testbed.images.architecture import native
from shadowserve_testbed.images.catalogue import Images
from shadowserve_testbed.images.commands import run
from shadowserve_testbed.images.oci import Configuration, write_archive, write_layer
from shadowserve_testbed.kind.components import SUITE, write_components
from shadowserve_testbed.kind.configuration import NODE_IMAGE

_PACKAGES = (
    "bash ca-certificates conntrack curl dbus ebtables ethtool gettext-base hostname ipset iproute2 iptables jq kmod "
    "libseccomp2 mount nftables openssl procps rsync runc socat systemd systemd-sysv udev util-linux"
)
_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
_IMPORT = (
    "ExecStartPost=/bin/sh -c 'test -e /var/lib/containerd/imported || for each in /kind/images/*.tar; do "
    "/usr/local/bin/ctr -n k8s.io images import $each; done; touch /var/lib/containerd/imported'\n"
    "TimeoutStartSec=300\n"
)
_FINISH = r"""
set -e
cd /lib/systemd/system
find sysinit.target.wants -name systemd-tmpfiles-setup.service -delete
rm -f multi-user.target.wants/* local-fs.target.wants/* sockets.target.wants/*udev* sockets.target.wants/*initctl*
rm -f basic.target.wants/* /etc/systemd/system/*.wants/*
echo ReadKMsg=no >> /etc/systemd/journald.conf
systemctl --quiet enable kubelet.service containerd.service undo-mount-hacks.service
systemctl --quiet mask systemd-binfmt.service
ctr oci spec | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
  > /etc/containerd/cri-base.json
rm -rf /var/cache/apt /var/lib/apt/lists /usr/share/doc /usr/share/man /usr/share/locale
"""
_RECIPE = "1"


class NodeImage:
    """Makes the image; whoever calls holds the home's lock. `plugins` is the folder of the network plugins."""

    def __init__(self, home: Home, plugins: Path) -> None:
        self._home, self._plugins = home, plugins
        self._binaries, self._images = Binaries(home), Images(home)

    def archive(self) -> Path:
        """Return the image's archive, making it first if need be. Raises `ImageError`, `BuildError`."""
        tools = (*CLUSTER, KIND, KUBEADM)
        for tool in tools:
            self._binaries.path(tool)
        keys = [tool.artifact.key for tool in tools]
        return self._home.make(Artifact("kind-node", (_RECIPE, SUITE, _PACKAGES, *keys)), self._build) / "image.tar"

    def _build(self, folder: Path) -> None:
        tree, work = folder / "tree", folder / "work"
        tree.mkdir()
        work.mkdir()
        self._home.say("kind-node: Debian with systemd, about a minute")
        packages = ",".join(_PACKAGES.split())
        run(["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(tree)])
        self._add_files(tree)
        self._add_programs(tree)
        self._home.say("kind-node: images of the components")
        images = tree / "kind/images"
        images.mkdir()
        write_components(self._binaries, self._images.pause_layer(), images, work)
        run(["chroot", str(tree), "/bin/bash", "-c", _FINISH], {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
        layer = write_layer(tree, work / "layer.tar")
        start = Configuration(
            (), environment=(("container", "docker"),), entrypoint=("/usr/local/bin/entrypoint", "/sbin/init")
        )
        write_archive(folder / "image.tar", NODE_IMAGE, native(), [layer], start)
        shutil.rmtree(tree)
        shutil.rmtree(work)

    def _add_files(self, tree: Path) -> None:
        """Copy kind's own files, and change what this machine cannot do."""
        files = module_folder(KIND) / "images/base/files"
        for name in ("usr/local/bin", "kind", "etc"):
            run(["cp", "-r", "--no-preserve=mode", str(files / name), str((tree / name).parent)])
        for script in (*(tree / "usr/local/bin").iterdir(), *(tree / "kind/bin").iterdir()):
            script.chmod(0o755)
        service = tree / "etc/systemd/system/containerd.service"
        kept = [line for line in service.read_text().splitlines() if not line.startswith(("Limit", "OOMScoreAdjust"))]
        service.write_text("\n".join(kept).replace("[Install]", f"{_IMPORT}\n[Install]") + "\n")
        runtime, limited = tree / "etc/containerd/config.toml", "restrict_oom_score_adj = true"
        runtime.write_text(runtime.read_text().replace("restrict_oom_score_adj = false", limited))

    def _add_programs(self, tree: Path) -> None:
        for tool in (KUBELET, KUBECTL, KUBEADM):
            shutil.copy(self._binaries.path(tool), tree / "usr/bin" / tool.name)
        for tool in (CONTAINER_RUNTIME, CONTAINER_SHIM, CTR):
            shutil.copy(self._binaries.path(tool), tree / "usr/local/bin" / tool.name)
        plugins = tree / "opt/cni/bin"
        plugins.mkdir(parents=True)
        for name in _PLUGINS:
            shutil.copy(self._plugins / name, plugins / name)
        for name in ("etc/cni/net.d", "etc/kubernetes/manifests"):
            (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / "kind/version").write_text(f"v{KUBELET.version}")

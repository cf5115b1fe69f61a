"""The test bed by kind and podman: the same stories on nodes that are containers."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from shadowserve_lab import system_packages
from shadowserve_lab.home import Home
from shadowserve_testbed.binaries import KIND, KUBECTL, Binaries
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.images.oci import architecture_of
from shadowserve_testbed.kind.configuration import (
    CLUSTER,
    NODE_IMAGE,
    Made,
    cluster_config,
    container,
    control_plane_patches,
    network_config,
    patches_folder,
    podman_config,
)
from shadowserve_testbed.kind.node_image import NodeImage
from shadowserve_testbed.kubectl import Kubectl, KubectlError
from shadowserve_testbed.layout import Node, make_nodes
from shadowserve_testbed.native.cluster import ready_nodes
from shadowserve_testbed.native.preflight import plugin_folder
from shadowserve_testbed.provider import Shape
from shadowserve_testbed.waiting import wait_for

_PROGRAMS = {"podman": "podman", "runc": "runc"}
_BUILDER = "debootstrap"
_SUPPORT = {"/usr/lib/podman/netavark": "netavark", "/usr/lib/podman/aardvark-dns": "aardvark-dns"}
_CREATE_SECONDS, _COMMAND_SECONDS, _IMPORT_SECONDS, _READY_SECONDS = 600.0, 120.0, 600.0, 180.0
_LOADED = "/kind/loaded"
_UNITS = ("containerd", "kubelet")
_CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_ASK_NETWORK = "test -e /kind/manifests/default-cni.yaml && echo brings one || echo brings none"
"""Images of kind's own have a network for pods, which kind installs; ours has none."""
_PROCESSES = 4096
"""Of one user. Podman lowers the hard limit of processes for itself, and may not raise it again everywhere."""


class KindCluster:
    """The test bed of one home. `image` is what its nodes are made of; "": an image of our own, made here."""

    def __init__(self, home: Home, image: str = "") -> None:
        self._home, self._folder, self._binaries = home, home.root / "kind", Binaries(home)
        self.image = image or NODE_IMAGE

    def build(self) -> None:
        """Build and fetch what nodes are made of. Raises `TestbedError`, `BuildError`, `ImageError`."""
        plugins = self._prepare()
        self._binaries.ensure((KIND, KUBECTL))
        if self._is_ours():
            self._archive(plugins)

    def running(self) -> bool:
        """Whether there is one, well or not."""
        return bool(self._containers())

    def nodes(self) -> Sequence[Node]:
        """Return the nodes of the test bed that runs. Raises `TestbedError`."""
        return self._made().nodes

    def kubectl(self) -> Kubectl:
        """Return kubectl for the test bed that runs."""
        return Kubectl(self._binaries.path(KUBECTL), self._folder / "kubeconfig")

    def up(self, shape: Shape) -> Kubectl:
        """Return once every node is ready; starts what does not run. Raises `TestbedError`, `BuildError`."""
        if shape.rates:
            raise TestbedError(
                "--link: the links of kind's nodes are podman's and cannot be limited: use --provider native for that"
            )
        make_nodes(shape.hosts, shape.cards)  # refuses what cannot be, before anything is made
        plugins = self._prepare()
        if not self._containers():
            self._create(shape, plugins)
        made = self._made()
        if (made.hosts, made.cards, made.image) != (shape.hosts, shape.cards, self.image):
            there = f"{made.hosts} hosts and {made.cards} cards of {made.image}"
            raise TestbedError(f"a test bed with {there} runs: shadowserve testbed down")
        for node in made.nodes:
            self._podman("start", container(node))
        self._connect(made)
        return self.kubectl()

    def down(self) -> None:
        """Remove all of it; the node image stays with podman. Raises `TestbedError`."""
        if shutil.which("podman") is not None and self._folder.is_dir():
            self._configure_podman()  # it may have got lost with how the test bed was made
            self._kind("delete", "cluster", "--name", CLUSTER)
            with suppress(TestbedError):  # it is another cluster's too
                self._podman("network", "rm", "kind")
        shutil.rmtree(self._folder, ignore_errors=True)

    def load(self, archives: Mapping[str, Path], nodes: Sequence[str] = ()) -> list[str]:
        """Import images into the containerd of nodes; return those that one did not have. Raises `TestbedError`."""
        found = [node for node in self.nodes() if not nodes or node.name in nodes]
        return sorted({name for name, path in archives.items() for node in found if self._import(node, name, path)})

    def lose(self, node: str) -> None:
        """Kill the node's container. Raises `TestbedError`."""
        self._podman("kill", container(self._node(node)))

    def restore(self, node: str) -> None:
        """Start the node's container again. Raises `TestbedError`."""
        self._podman("start", container(self._node(node)))
        self._connect(self._made())

    def daemons_logged(self) -> Sequence[str]:
        """Return what `log` knows. Raises `TestbedError`."""
        return [f"{unit}-on-{node.name}" for node in self.nodes() for unit in _UNITS] + list(_CONTROL_PLANE)

    def log(self, name: str, lines: int) -> str:
        """Return the end of a daemon's log: a unit's journal, or what a pod of the control plane wrote."""
        unit, _, node = name.partition("-on-")
        if node:
            journal = ("journalctl", "--no-pager", "--unit", unit, "--lines", str(lines))
            return self._inside(self._node(node), *journal)
        files = f"/var/log/pods/kube-system_{name}-*/*/*.log"
        return self._inside(self.nodes()[0], "sh", "-c", f"tail --quiet --lines {lines} {files}")

    def _is_ours(self) -> bool:
        return self.image == NODE_IMAGE

    def _made(self) -> Made:
        """Return what was made. Raises `TestbedError`."""
        if not self._containers():
            raise TestbedError("no test bed runs here: shadowserve testbed up --provider kind")
        try:
            return Made.parse((self._folder / "made.json").read_text())
        except (OSError, TypeError, ValueError) as error:
            raise TestbedError(
                "how the test bed that runs here was made cannot be read: an older version made it, or making it was "
                "stopped. shadowserve testbed down removes it"
            ) from error

    def _archive(self, plugins: Path) -> Path:
        with self._home.locked():
            return NodeImage(self._home, plugins).archive()

    def _prepare(self) -> Path:
        """Install what is missing; return the folder of the network plugins. Raises `TestbedError`."""
        if os.geteuid() != 0:
            raise TestbedError("kind with podman needs root here")
        missing = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
        if self._is_ours() and shutil.which(_BUILDER) is None:
            missing.add(_BUILDER)
        missing |= {package for file, package in _SUPPORT.items() if not Path(file).exists()}
        if plugin_folder() is None:
            missing.add("containernetworking-plugins")
        if missing:
            try:
                system_packages.install(sorted(missing), self._home.say)
            except system_packages.NotInstalled as error:
                raise TestbedError(str(error)) from error
        plugins = plugin_folder()
        assert plugins is not None  # installed just now
        Path("/lib/modules").mkdir(exist_ok=True)  # kind shows it to the nodes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._configure_podman()
        return plugins

    def _configure_podman(self) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        (self._folder / "containers.conf").write_text(podman_config({"nofile": files, "nproc": _PROCESSES}))

    def _create(self, shape: Shape, plugins: Path) -> None:
        self._home.say(f"kind: making the nodes of {self.image}, about a minute")
        if self._is_ours():
            archive = self._archive(plugins)
            image = self._podman("pull", "--quiet", f"oci-archive:{archive}", seconds=_CREATE_SECONDS).strip()
            self._podman("tag", image, NODE_IMAGE)
        asking = ("run", "--rm", "--network", "none", "--entrypoint", "sh", self.image, "-c", _ASK_NETWORK)
        bare = self._podman(*asking, seconds=_CREATE_SECONDS).strip() == "brings none"
        made = Made(shape.hosts, shape.cards, self.image, bare)
        (self._folder / "made.json").write_text(made.text())
        config = self._folder / "cluster.yaml"  # JSON is YAML
        config.write_text(json.dumps(cluster_config(made, self._home.root)))
        patches = patches_folder(self._home.root)
        patches.mkdir(exist_ok=True)
        for name, text in control_plane_patches().items():
            (patches / name).write_text(text)
        files = ["--config", str(config), "--kubeconfig", str(self._folder / "kubeconfig")]
        self._kind("create", "cluster", "--name", CLUSTER, *files)

    def _connect(self, made: Made) -> None:
        """Wait until every node is ready; join the nodes' pod networks where the image brings none."""
        nodes = made.nodes
        names = {node.name for node in nodes}
        wait_for(lambda: sorted(names - self._pods().keys()), "nodes to be registered", _READY_SECONDS, self._home.say)
        if made.bare:
            self._join(nodes)
        wait_for(lambda: sorted(names - self._ready()), "nodes to be ready", _READY_SECONDS, self._home.say)

    def _join(self, nodes: Sequence[Node]) -> None:
        """Join the nodes' pod networks by static routes."""
        pods = self._pods()
        for node in nodes:
            address = self._address(node)
            text = json.dumps(network_config(pods[node.name]))
            self._inside(node, "sh", "-c", f"echo '{text}' > /etc/cni/net.d/10-pods.conflist")
            for other in nodes:
                if other is not node:
                    self._inside(other, "ip", "route", "replace", pods[node.name], "via", address)

    def _pods(self) -> dict[str, str]:
        """Return the network of each node's pods, by node; of those that have one."""
        with suppress(KubectlError):  # its API server may be starting
            specs = {body["metadata"]["name"]: body["spec"] for body in self.kubectl().items("nodes")}
            return {name: spec["podCIDR"] for name, spec in specs.items() if "podCIDR" in spec}
        return {}

    def _ready(self) -> set[str]:
        with suppress(KubectlError):
            return ready_nodes(self.kubectl())
        return set()

    def _address(self, node: Node) -> str:
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self._podman("inspect", "--format", form, container(node)).strip()

    def _import(self, node: Node, reference: str, archive: Path) -> bool:
        record = f"{_LOADED}/{reference.replace('/', '_')}"
        if self._inside(node, "sh", "-c", f"cat {record} 2>/dev/null || true").strip() == str(archive):
            return False
        platform = f"linux/{architecture_of(archive)}"
        importing = ("ctr", "-n", "k8s.io", "images", "import", "--platform", platform, str(archive))
        self._inside(node, *importing, seconds=_IMPORT_SECONDS)
        self._inside(node, "sh", "-c", f"mkdir -p {_LOADED} && echo {archive} > {record}")
        return True

    def _node(self, name: str) -> Node:
        for node in self.nodes():
            if node.name == name:
                return node
        raise TestbedError(f"there is no node {name}, only {', '.join(node.name for node in self.nodes())}")

    def _containers(self) -> list[str]:
        if shutil.which("podman") is None or not (self._folder / "containers.conf").exists():
            return []  # `up` has not been here
        label = f"label=io.x-k8s.kind.cluster={CLUSTER}"
        return self._podman("ps", "--all", "--filter", label, "--format", "{{.Names}}").split()

    def _inside(self, node: Node, *command: str, seconds: float = _COMMAND_SECONDS) -> str:
        return self._podman("exec", container(node), *command, seconds=seconds)

    def _podman(self, *arguments: str, seconds: float = _COMMAND_SECONDS) -> str:
        return self._run("podman", *arguments, seconds=seconds)

    def _kind(self, *arguments: str) -> str:
        return self._run(str(self._binaries.path(KIND)), *arguments, seconds=_CREATE_SECONDS)

    def _run(self, *command: str, seconds: float) -> str:
        more = {"KIND_EXPERIMENTAL_PROVIDER": "podman", "CONTAINERS_CONF": str(self._folder / "containers.conf")}
        try:
            done = subprocess.run(
                command, env={**os.environ, **more}, capture_output=True, text=True, check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise TestbedError(f"{' '.join(command)}: not within {seconds:g} s") from error
        if done.returncode:
            raise TestbedError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

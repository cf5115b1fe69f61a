"""The native test bed: everything starts in order, each step only where it is not done yet."""

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from shadowserve_lab.home import Home
from shadowserve_lab.processes import wait_until
from shadowserve_testbed.binaries import CLUSTER, CTR, KUBECTL, Binaries
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.images.architecture import Architecture
from shadowserve_testbed.images.emulation import Emulation
from shadowserve_testbed.images.oci import architecture_of
from shadowserve_testbed.kubectl import Kubectl
from shadowserve_testbed.layout import Node, make_nodes
from shadowserve_testbed.native import cgroups, fabric, preflight
from shadowserve_testbed.native.addresses import cgroup
from shadowserve_testbed.native.certificates import ClusterFiles, ensure_files
from shadowserve_testbed.native.cleanup import remove_all, unmount_below
from shadowserve_testbed.native.commands import run, succeeds
from shadowserve_testbed.native.daemons import Daemons, find_running
from shadowserve_testbed.native.node_files import write_node_files
from shadowserve_testbed.native.programs import Programs
from shadowserve_testbed.native.state import State, boot_id, read_state, write_state
from shadowserve_testbed.provider import Shape

_API_SECONDS = 60.0
_NODE_SECONDS = 90.0
_RUNTIME_SECONDS = 30.0
_IMPORT_SECONDS = 600.0
_LOCK = Path("/run/lock/shadowserve-testbed")
_PROXY_RIGHTS = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "testbed:kube-proxy"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
    "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:kube-proxy"}],
}


class NativeCluster:
    """The test bed of one home; a machine has one at a time. `pause` returns the archive of the sandbox image."""

    def __init__(self, home: Home, pause: Callable[[], Path]) -> None:
        self.folder = home.root / "testbed"
        self.daemons = Daemons(self.folder)
        self._home, self._pause, self._binaries = home, pause, Binaries(home)
        self._files = ClusterFiles(self.folder / "pki")
        self._programs = Programs(self._binaries.path, self.folder, self._files)
        self._state_file = self.folder / "state.json"

    def state(self) -> State | None:
        """Return what is remembered of the test bed; None when there is none."""
        return read_state(self._state_file)

    def running(self) -> bool:
        """Whether there is one of this boot, well or not."""
        state = self.state()
        return state is not None and state.boot == boot_id()

    def nodes(self) -> Sequence[Node]:
        """Return the nodes of the test bed that runs. Raises `TestbedError`."""
        return self._running().nodes

    def kubectl(self) -> Kubectl:
        """Return kubectl for the test bed that runs. Raises `TestbedError`."""
        self._running()
        return self._kubectl()

    def build(self) -> None:
        """Build the programs that are missing. Raises `BuildError`."""
        self._binaries.ensure(CLUSTER)

    def up(self, shape: Shape) -> Kubectl:
        """Return once every node is ready; starts what does not run. Raises `TestbedError`, `BuildError`."""
        nodes = make_nodes(shape.hosts, shape.cards, shape.rates)
        preflight.ensure(self._home.root, self._home.say)
        self.build()
        with self._home.locked():
            pause = self._pause()
        with self._alone():
            self._make_room(shape)
            write_state(self._state_file, State(shape, boot_id()))
            ensure_files(self._files, nodes, datetime.now(UTC))
            fabric.ensure_fabric(nodes)
            kubectl = self._start_control_plane()
            for node in nodes:
                self._start_node(node, pause)
            self._wait_ready(kubectl, nodes)
        return kubectl

    def down(self) -> None:
        """Remove all of it, whatever is left of it. Raises `TestbedError`."""
        with self._alone():
            remove_all(self.folder)
        for architecture in Architecture:
            Emulation(self._home, architecture).disable()

    def load(self, archives: Mapping[str, Path], nodes: Sequence[str] = ()) -> list[str]:
        """Import images into the containerd of nodes; return those that one did not have. Raises `TestbedError`."""
        found = [self._node(name) for name in nodes] or self.nodes()

        def imported(node: Node) -> list[str]:
            return [name for name, path in archives.items() if self._import(node, name, path)]

        with ThreadPoolExecutor(len(found)) as pool:  # every node has a containerd of its own
            return sorted({name for names in pool.map(imported, found) for name in names})

    def lose(self, node: str) -> None:
        """Cut the node off, then kill all that runs on it. Raises `TestbedError`."""
        lost = self._node(node)
        fabric.cut(lost)
        self._halt(lost)

    def restore(self, node: str) -> None:
        """Start the node again, as a machine that boots: nothing runs and nothing is mounted on it."""
        found = self._node(node)
        with self._alone():
            fabric.ensure_fabric(self.nodes())
            self._start_node(found, self._pause())
            self._wait_ready(self._kubectl(), [found])

    def images(self, node: Node) -> list[str]:
        """Return the images that a node has. Raises `TestbedError`."""
        listed = run(*self._ctr(node), "images", "list", "--quiet").split()
        return sorted(name for name in listed if not name.startswith("sha256:"))

    def daemons_logged(self) -> Sequence[str]:
        """Return the daemons that wrote a log. Raises `TestbedError`."""
        known = sorted(path.stem for path in (self.folder / "logs").glob("*.log"))
        if not known:
            raise TestbedError("no test bed has run here: shadowserve testbed up")
        return known

    def log(self, name: str, lines: int) -> str:
        """Return the end of a daemon's log."""
        text = self.daemons.log(name).read_text(errors="replace")
        return "".join(text.splitlines(keepends=True)[-lines:])

    def _kubectl(self) -> Kubectl:
        return Kubectl(self._binaries.path(KUBECTL), self._files.kubeconfig("admin"))

    def _running(self) -> State:
        state = self.state()
        if state is None or not self.running():
            raise TestbedError("no test bed runs here: shadowserve testbed up")
        return state

    def _node(self, name: str) -> Node:
        for node in self.nodes():
            if node.name == name:
                return node
        raise TestbedError(f"there is no node {name}, only {', '.join(node.name for node in self.nodes())}")

    def _make_room(self, shape: Shape) -> None:
        """Make sure that nothing is in the way: another home's test bed, another shape, or one of an earlier boot."""
        others = {each.folder for each in find_running()} - {str(self.folder)}
        if others:
            raise TestbedError(f"a test bed runs already, in {', '.join(sorted(others))}: take that one down first")
        state = self.state()
        if state is not None and state.boot == boot_id():
            if state.shape != shape:
                raise TestbedError(
                    f"a test bed with {_described(state.shape)} runs, not {_described(shape)}: shadowserve testbed down"
                )
            return
        if self.folder.exists():
            self._home.say("what is left of an earlier test bed is removed")
        remove_all(self.folder)

    def _start_control_plane(self) -> Kubectl:
        programs, kubectl = self._programs, self._kubectl()
        programs.corefile.write_text(programs.corefile_text())
        self.daemons.ensure([programs.store(), programs.api_server()])
        self._wait(kubectl.answers, _API_SECONDS, "the API server", ["etcd", "kube-apiserver"])
        kubectl.run("apply", "--server-side", "-f", "-", manifest=_PROXY_RIGHTS)
        self.daemons.ensure(programs.controllers())
        return kubectl

    def _start_node(self, node: Node, pause: Path) -> None:
        plugins = preflight.plugin_folder()
        assert plugins is not None  # preflight has seen to it
        paths = self._programs.paths(node)
        paths.folder.mkdir(parents=True, exist_ok=True)
        cgroups.ensure_cgroup(cgroup(node))
        write_node_files(node, paths, self._files.api_server.authority, plugins, preflight.runc())
        runtime, *others = self._programs.of_node(node)
        if not self.daemons.running().keys() & {runtime.name, *(other.name for other in others)}:
            self._halt(node)  # as after a boot: nothing runs, and nothing is mounted
            unmount_below(paths.folder)
        self.daemons.ensure([runtime])
        ctr = self._ctr(node)
        self._wait(lambda: succeeds(*ctr, "version"), _RUNTIME_SECONDS, runtime.name, [runtime.name])
        self._import(node, "testbed.local/pause:dev", pause)
        self.daemons.ensure(others)

    def _halt(self, node: Node) -> None:
        """Kill everything on a node."""
        self.daemons.kill([daemon.name for daemon in self._programs.of_node(node)])
        cgroups.kill_cgroup(cgroup(node))

    def _wait_ready(self, kubectl: Kubectl, nodes: Sequence[Node]) -> None:
        wanted = {node.name for node in nodes}
        mine = [daemon.name for node in nodes for daemon in self._programs.of_node(node)]
        self._wait(lambda: wanted <= ready_nodes(kubectl), _NODE_SECONDS, "the nodes to be ready", mine)

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str, daemons: Sequence[str]) -> None:
        """Wait; raises `TestbedError` when it takes too long, or a daemon that it depends on ends."""

        def holds() -> bool:
            if condition():
                return True
            self.daemons.require(daemons)
            return False

        try:
            wait_until(holds, seconds, what)
        except TimeoutError as error:
            tails = "\n".join(self.daemons.tail(name) for name in daemons)
            raise TestbedError(f"{error}\n{tails}") from error

    def _ctr(self, node: Node) -> tuple[str, ...]:
        socket = self._programs.paths(node).socket
        return (str(self._binaries.path(CTR)), "--address", str(socket), "--namespace", "k8s.io")

    def _import(self, node: Node, reference: str, archive: Path) -> bool:
        """Import an image, unless it is the one that the node has: archives of other content have other paths."""
        record = self._programs.paths(node).folder / "images" / reference.replace("/", "_")
        if record.exists() and record.read_text() == str(archive):
            return False
        if archive.stat().st_size > 20 << 20:
            self._home.say(f"{node.name}: importing {reference}, {archive.stat().st_size >> 20} MiB")
        platform = f"linux/{architecture_of(archive)}"
        run(*self._ctr(node), "images", "import", "--platform", platform, str(archive), seconds=_IMPORT_SECONDS)
        record.parent.mkdir(exist_ok=True)
        record.write_text(str(archive))
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from changing a test bed of this machine meanwhile."""
        with _LOCK.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._home.say("somebody else is changing the test bed: waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def ready_nodes(kubectl: Kubectl) -> set[str]:
    """Return the names of the nodes that are ready."""
    return {node["metadata"]["name"] for node in kubectl.items("nodes") if _is_ready(node)}


def _is_ready(node: Mapping[str, Mapping[str, list[Mapping[str, str]]]]) -> bool:
    conditions = node["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _described(shape: Shape) -> str:
    links = "".join(f", {name} at {rate}" for name, rate in shape.rates.items())
    return f"{shape.hosts} hosts and {shape.cards} cards{links}"

"""Kubernetes and what it needs, built from Go modules: pinned, each made once, kept in the home by version.

No registry of binaries or images is needed, only a Go toolchain and its module proxy. `k8s.io/kubernetes` is served as
a module, but its archive lacks the staging folders that its go.mod points to: they are replaced by the modules that
were published from them (v1.36.3 -> v0.36.3).
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowserve_lab.home import Artifact, Home

KUBERNETES = "1.36.3"
ETCD = "3.6.15"
CONTAINERD = "2.2.9"
COREDNS = "1.12.4"
CERT_MANAGER = "1.21.2"
_STAGED = re.compile(r"^\s*(k8s\.io/[a-z-]+) => \./staging", re.MULTILINE)
_TELL_SECONDS = 20.0
_DOWNLOAD_SECONDS = 600.0


class BuildError(Exception):
    """A binary cannot be built; the message says what to do."""


class ModulesUnreachable(BuildError):
    """Its Go modules cannot be had here: there is no Go, or no module proxy, or it does not serve them."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One command of a Go module; `minutes` is about what it takes on two cores with nothing cached.

    `program`, if any, is the source of the command: its package is ours then, and the module only what it is made of.
    """

    name: str
    package: str
    module: str
    version: str
    minutes: float
    tags: str = ""
    program: str = ""

    @property
    def artifact(self) -> Artifact:
        """Where it is kept."""
        ingredients = (self.package, self.module, self.version, self.tags, "stripped, without cgo")
        return Artifact(self.name, (*ingredients, self.program) if self.program else ingredients)


def _kubernetes(name: str, minutes: float) -> Tool:
    return Tool(name, f"k8s.io/kubernetes/cmd/{name}", "k8s.io/kubernetes", KUBERNETES, minutes, "providerless")


def _containerd(name: str, minutes: float) -> Tool:
    module = "github.com/containerd/containerd/v2"
    return Tool(name, f"{module}/cmd/{name}", module, CONTAINERD, minutes, "no_btrfs,no_aufs,no_zfs,no_devmapper")


ETCD_SERVER = Tool("etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", ETCD, 0.5)
API_SERVER = _kubernetes("kube-apiserver", 5)
KUBECTL = _kubernetes("kubectl", 0.5)
CONTROLLER_MANAGER = _kubernetes("kube-controller-manager", 1.5)
SCHEDULER = _kubernetes("kube-scheduler", 0.2)
KUBELET = _kubernetes("kubelet", 0.5)
KUBE_PROXY = _kubernetes("kube-proxy", 0.2)
CONTAINER_RUNTIME = _containerd("containerd", 1)
CONTAINER_SHIM = _containerd("containerd-shim-runc-v2", 0.2)
CTR = _containerd("ctr", 0.2)
KUBEADM = _kubernetes("kubeadm", 1.5)
KIND = Tool("kind", "sigs.k8s.io/kind", "sigs.k8s.io/kind", "0.33.0", 1)
DNS_SERVER = Tool("coredns", "github.com/coredns/coredns", "github.com/coredns/coredns", COREDNS, 2)
CERTIFICATE_MANAGER = Tool(
    "cert-manager",
    ".",
    "github.com/cert-manager/cert-manager",
    CERT_MANAGER,
    3,
    program=Path(__file__).with_name("cert_manager.go").read_text(),
)
"""Its own command is a module that proxies do not serve: the program starts the controllers of the main one."""

CONTROL_PLANE = (ETCD_SERVER, API_SERVER, KUBECTL)
"""What an API server alone needs."""
API_STORIES = (*CONTROL_PLANE, CONTROLLER_MANAGER, CERTIFICATE_MANAGER)
"""What stories on an API server run beside it."""
CLUSTER = (
    *CONTROL_PLANE,
    CONTROLLER_MANAGER,
    SCHEDULER,
    DNS_SERVER,
    KUBELET,
    KUBE_PROXY,
    CONTAINER_RUNTIME,
    CONTAINER_SHIM,
    CTR,
)
"""What a cluster with nodes needs."""


class Binaries:
    """Finds and builds them."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def path(self, tool: Tool) -> Path:
        """Return the binary, building it first if need be. Raises `BuildError`."""
        return self._home.make(tool.artifact, lambda folder: self._build(tool, folder)) / tool.name

    def missing(self, tools: Sequence[Tool]) -> list[Tool]:
        """Return those that are still to be built."""
        return [tool for tool in tools if not self._home.has(tool.artifact)]

    def ensure(self, tools: Sequence[Tool]) -> None:
        """Build those that are missing, and say beforehand how long that may take. Raises `BuildError`."""
        with self._home.locked():
            if missing := self.missing(tools):
                minutes, listed = sum(tool.minutes for tool in missing), ", ".join(tool.name for tool in missing)
                self._home.say(f"to build: {listed}; about {minutes:g} minutes on two cores")
            for tool in tools:
                self.path(tool)

    def _build(self, tool: Tool, folder: Path) -> None:
        go = shutil.which("go")
        if go is None:
            raise ModulesUnreachable(f"{tool.name} is built by Go, not installed: see https://go.dev/doc/install")
        self._home.say(f"{tool.name} {tool.version}: about {tool.minutes:g} minutes on two cores, less when repeated")
        source = folder / "source"
        source.mkdir()
        (source / "go.mod").write_text(_go_mod(go, tool))
        if tool.program:
            (source / "main.go").write_text(tool.program)
        try:
            self._run([go, "mod", "tidy"], source, f"{tool.name}: looking its modules up")
        except BuildError as error:
            raise ModulesUnreachable(str(error)) from error
        flags = ["-trimpath", "-v", "-tags", tool.tags, "-ldflags", _link_flags(tool), "-o", str(folder / tool.name)]
        self._run([go, "build", *flags, tool.package], source, f"{tool.name}: compiling")
        shutil.rmtree(source)

    def _run(self, command: Sequence[str], folder: Path, what: str) -> None:
        """Run a Go command; tells how far it is. Raises `BuildError` with the end of what it printed."""
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
        lines: list[str] = []
        told = time.monotonic()
        with subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    self._home.say(f"{what}, {len(lines)} packages so far")
        if process.returncode:
            raise BuildError(f"{' '.join(command)} failed:\n{''.join(lines[-20:])}")


def _go_mod(go: str, tool: Tool) -> str:
    lines = [f"module testbed/{tool.name}", "", "go 1.26.0", ""]
    lines += [] if tool.program else [f"tool {tool.package}", ""]
    lines += [f"require {tool.module} v{tool.version}", ""]
    if tool.module == "k8s.io/kubernetes":
        published = "v0." + tool.version.removeprefix("1.")
        lines += [f"replace {name} => {name} {published}" for name in _staged_modules(go, tool)]
    return "\n".join(lines) + "\n"


def _staged_modules(go: str, tool: Tool) -> list[str]:
    return _STAGED.findall(_downloaded(go, tool, "GoMod").read_text())


def module_folder(tool: Tool) -> Path:
    """Return where Go keeps the files of a tool's module. Raises `ModulesUnreachable`."""
    return _downloaded("go", tool, "Dir")


def _downloaded(go: str, tool: Tool, what: str) -> Path:
    wanted = f"{tool.module}@v{tool.version}"
    download = [go, "mod", "download", "-json", wanted]
    alone = {**os.environ, "GOWORK": "off"}
    done = subprocess.run(download, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_SECONDS, env=alone)
    found = re.search(rf'"{what}": "([^"]+)"', done.stdout)
    if done.returncode or found is None:
        raise ModulesUnreachable(f"cannot download {wanted}: {done.stdout or done.stderr}")
    return Path(found[1])


def _link_flags(tool: Tool) -> str:
    if tool.module == "github.com/containerd/containerd/v2":
        return f"-s -w -X {tool.module}/version.Version={tool.version}"
    if tool.module != "k8s.io/kubernetes":
        return "-s -w"
    major, minor, _ = tool.version.split(".")
    base = "k8s.io/component-base/version"
    values = {f"{base}.gitVersion": f"v{tool.version}", f"{base}.gitMajor": major, f"{base}.gitMinor": minor}
    values["k8s.io/client-go/pkg/version.gitVersion"] = f"v{tool.version}"
    return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in values.items())])

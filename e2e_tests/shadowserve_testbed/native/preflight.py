"""What the test bed needs of this machine: looked at first, installed where we may, named where we may not."""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shadowserve_lab import system_packages
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.native.cgroups import missing_controllers
from shadowserve_testbed.native.commands import succeeds

_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
_PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_PROGRAMS = {
    "conntrack": "conntrack",
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "runc": "runc",
    "tc": "iproute2",
}
_SYSTEM_PATH = "/usr/sbin:/sbin"
_LONGEST_HOME = 50
"""Sockets lie below it, and their paths may have 107 bytes."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found: `lacking` in words, each with what to do; `packages` would mend the rest."""

    lacking: tuple[str, ...]
    packages: tuple[str, ...]


def look(home: Path) -> Facts:
    """Return what this machine lacks; changes nothing."""
    lacking: list[str] = []
    if platform.system() != "Linux":
        return Facts(("nodes are network namespaces: this needs Linux",), ())
    if os.geteuid() != 0:
        return Facts(("nodes are network namespaces, which only root may make: run it as root (sudo)",), ())
    if len(str(home)) > _LONGEST_HOME:
        lacking.append(f"SHADOWSERVE_HOME={home} is too long for sockets below it: at most {_LONGEST_HOME} characters")
    if missing := missing_controllers():
        lacking.append(f"the kubelet needs the control group controllers {', '.join(missing)}: mount them")
    if "overlay" not in Path("/proc/filesystems").read_text():
        lacking.append("containers need the overlay file system: modprobe overlay")
    if not succeeds("unshare", "--net", "--mount", "true"):
        lacking.append("namespaces cannot be made here: run it outside a container, or in a privileged one")
    packages = {package for program, package in _PROGRAMS.items() if _which(program) is None}
    if plugin_folder() is None:
        packages.add("containernetworking-plugins")
    return Facts(tuple(lacking), tuple(sorted(packages)))


def ensure(home: Path, say: Callable[[str], None]) -> None:
    """Install what is missing if we may. Raises `TestbedError` with everything that the user has to do."""
    facts = look(home)
    problems = list(facts.lacking)
    if facts.packages and not problems:
        try:
            system_packages.install(facts.packages, say)
        except system_packages.NotInstalled as error:
            problems.append(str(error))
        os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
    elif facts.packages:
        problems.append(f"missing Debian packages: {', '.join(facts.packages)}")
    if not problems and not succeeds("iptables", "-t", "nat", "-L", "-n"):
        problems.append("kube-proxy needs iptables with the nat table, which `iptables -t nat -L` cannot read here")
    if problems:
        raise TestbedError("the test bed cannot run here:\n  " + "\n  ".join(problems))


def runc() -> str:
    """Return the path of runc. Raises `TestbedError`."""
    found = _which("runc")
    if found is None:
        raise TestbedError("runc is not installed")
    return found


def plugin_folder() -> Path | None:
    """Return the folder with the network plugins, None when there is none with all that are needed."""
    return next((folder for folder in _PLUGIN_FOLDERS if all((folder / name).exists() for name in _PLUGINS)), None)


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")

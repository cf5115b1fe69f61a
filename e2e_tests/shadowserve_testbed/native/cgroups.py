"""One control group a node, in every hierarchy: what runs on the node is below it, and can be killed by it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from shadowserve_testbed.errors import TestbedError

ROOT = Path("/sys/fs/cgroup")
_NEEDED = frozenset({"cpu", "cpuset", "memory", "pids"})
_WEIGHTS = {"cpu.shares": 1024, "cpu.weight": 100}
"""What one core is worth, in versions 1 and 2: without it a node counts as much as one process beside it."""
_KILL_SECONDS = 20.0


def missing_controllers() -> list[str]:
    """Return the controllers that the kubelet needs and this machine has not got."""
    if (unified := ROOT / "cgroup.controllers").exists():
        return sorted(_NEEDED - set(unified.read_text().split()))
    return sorted(name for name in _NEEDED if not (ROOT / name / "tasks").exists())


def ensure_cgroup(name: str) -> None:
    """Make the group in every hierarchy."""
    for hierarchy in _hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        for kind in ("cpus", "mems"):  # version 1 starts with none, and takes no process then
            file, above = group / f"cpuset.{kind}", hierarchy / f"cpuset.{kind}"
            if above.exists() and not file.read_text().strip():
                file.write_text(above.read_text())
        for kind, one in _WEIGHTS.items():
            if (file := group / kind).exists():
                file.write_text(str(one * (os.cpu_count() or 1)))


def kill_cgroup(name: str) -> None:
    """Kill every process below the group, until there is none. Raises `TestbedError`."""
    end = time.monotonic() + _KILL_SECONDS
    while pids := {pid for hierarchy in _hierarchies() for pid in _processes(hierarchy / name)}:
        if time.monotonic() > end:
            raise TestbedError(f"processes {sorted(pids)} of control group {name} do not die")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove_cgroup(name: str) -> None:
    """Remove the group from every hierarchy; what is in it has been killed."""
    for hierarchy in _hierarchies():
        for folder in sorted((hierarchy / name).glob("**/"), reverse=True):
            if folder.is_dir():
                folder.rmdir()


def present_cgroups() -> list[str]:
    """Return the test bed's groups that there are."""
    return sorted({path.name for hierarchy in _hierarchies() for path in hierarchy.glob("shadowserve-*")})


def _hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [path for path in sorted(ROOT.iterdir()) if (path / "cgroup.procs").exists() and not path.is_symlink()]


def _processes(group: Path) -> Iterator[int]:
    for file in group.glob("**/cgroup.procs"):
        with suppress(OSError):
            yield from (int(line) for line in file.read_text().split())

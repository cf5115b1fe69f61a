"""Removes whatever there is of a test bed. It asks the kernel, not a record, so it works after any crash."""

import shutil
from pathlib import Path

from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.native.cgroups import kill_cgroup, present_cgroups, remove_cgroup
from shadowserve_testbed.native.commands import run
from shadowserve_testbed.native.daemons import Daemons
from shadowserve_testbed.native.fabric import present_namespaces, remove_fabric


def remove_all(folder: Path) -> None:
    """Remove processes, mounts, namespaces, links, control groups and files. Raises `TestbedError`."""
    Daemons(folder).kill()
    for group in present_cgroups():
        kill_cgroup(group)
    Daemons(folder).kill()  # shims that were being started meanwhile
    unmount_below(folder)
    remove_fabric(present_namespaces())
    for group in present_cgroups():
        remove_cgroup(group)
    if mounted_below(folder):  # never remove files through a mount: volumes show folders of others
        raise TestbedError(f"still mounted: {', '.join(mounted_below(folder))}")
    if folder.exists():
        shutil.rmtree(folder)


def unmount_below(folder: Path) -> None:
    """Unmount everything below a folder, the last mounted first. Raises `TestbedError`."""
    for place in reversed(mounted_below(folder)):
        run("umount", "--lazy", place)


def mounted_below(folder: Path) -> list[str]:
    """Return the mount points below a folder, in the order in which they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [place for place in places if place.startswith(f"{folder}/")]

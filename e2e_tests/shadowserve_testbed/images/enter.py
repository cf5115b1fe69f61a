"""Runs a command inside an image without a container runtime: its layers over each other, in namespaces of its own.

As in a pod of ours: an unprivileged user, a root file system that cannot be written, a /tmp that can.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from shadowserve_testbed.images.oci import Configuration

_SCRIPT = """
set -e
root=$1 lower=$2 identity=$3
shift 3
mount -t tmpfs none "$root"
mkdir "$root/image" "$root/empty"
mount -t overlay overlay -o "ro,lowerdir=$lower:$root/empty" "$root/image"
cd "$root/image"
mount -t tmpfs -o mode=1777 none tmp
mount -t proc none proc
mount -t tmpfs none dev
for device in null zero urandom random; do
  touch dev/$device
  mount --bind /dev/$device dev/$device
done
mkdir -m 1777 dev/shm
while [ "$1" != -- ]; do
  mkdir -p ".$1"
  mount --bind "$2" ".$1"
  shift 2
done
shift
exec chroot --userspec="$identity" . "$@"
"""


def run_inside(
    trees: Sequence[Path],
    start: Configuration,
    command: Sequence[str],
    timeout: float,
    folders: Mapping[str, Path] | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `command` over `trees` (from below) for at most `timeout` seconds.

    `folders` appear where their names say: below /tmp, or where the image has a folder. Network, time and host name are
    this machine's. Raises `subprocess.TimeoutExpired`.
    """
    lower = ":".join(str(tree) for tree in reversed(trees))
    bound = [word for name, folder in (folders or {}).items() for word in (name, str(folder))]
    isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _SCRIPT, "sh"]
    environment = {"HOME": "/tmp", "PATH": "/usr/bin:/bin", **dict(start.environment), **(variables or {})}
    environment["PATH"] += ":/usr/sbin:/sbin"  # where this machine has chroot
    return subprocess.run(
        [*isolated, "/mnt", lower, start.user, *bound, "--", *command],
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=timeout,
    )

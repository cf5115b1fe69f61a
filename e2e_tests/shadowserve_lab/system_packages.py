"""Installs Debian packages where that is ours to do: as root, and with apt-get."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

_SECONDS = 900.0


class NotInstalled(Exception):
    """Packages are missing; the message has the command that installs them."""


def install(packages: Sequence[str], say: Callable[[str], None]) -> None:
    """Install packages, without starting what is in them; apt-get's output goes to stderr. Raises `NotInstalled`."""
    listed = " ".join(packages)
    command = f"apt-get update && apt-get install --no-install-recommends -y {listed}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalled(f"not installed: {listed}. As root: {command}")
    say(f"installing {listed} with apt-get")
    quiet = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}  # RUNLEVEL 1: do not start it
    done = subprocess.run(["sh", "-c", f"({command}) >&2"], env=quiet, stdout=sys.stderr, check=False, timeout=_SECONDS)
    if done.returncode:
        raise NotInstalled(f"apt-get failed with exit code {done.returncode}. By hand: {command}")

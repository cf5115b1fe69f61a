"""Runs the programs that images are made with."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from shadowserve_testbed.images.errors import ImageError

COMMAND_SECONDS = 900.0


def require(*names: str) -> None:
    """Make sure that programs are there. Raises `ImageError` with all that are missing."""
    if missing := [name for name in names if shutil.which(name) is None]:
        raise ImageError(f"this machine lacks {', '.join(missing)}, which images are made with: install it")


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command to its end; what it printed is shown only if it failed. Raises `ImageError`."""
    whole = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=COMMAND_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"this did not end within {COMMAND_SECONDS:.0f} s: {' '.join(command)}") from error
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-4000:])
        raise ImageError(f"this failed with exit code {done.returncode}: {' '.join(command)}")

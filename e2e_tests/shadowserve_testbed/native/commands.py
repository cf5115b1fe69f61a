"""Runs the system's commands."""

import subprocess

from shadowserve_testbed.errors import TestbedError

_SECONDS = 30.0


def run(*command: str, seconds: float = _SECONDS) -> str:
    """Run a command to its end and return what it printed. Raises `TestbedError`."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    if done.returncode:
        raise TestbedError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Whether a command ends with 0."""
    return subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS).returncode == 0

"""Long-running programs that outlive whoever started them, and are found again without a record of them.

Every one has a variable in its environment that names it and its test bed; what it starts (containerd its shims)
inherits that. So a file that was lost, or a process id that is used again, can mislead nobody.
"""

import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shadowserve_testbed.errors import TestbedError

_VARIABLE = "SHADOWSERVE_TESTBED_DAEMON"
_POLL_SECONDS = 0.05
_EXECVE_SECONDS = 0.5
"""How long a process may be invisible: it has no environment to be known by while one program becomes another."""
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Daemon:
    """A program with its arguments. `namespace` is the network namespace that it runs in, "" the machine's own."""

    name: str
    command: tuple[str, ...]
    namespace: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A process of the test bed; `name` is the daemon that it is, or that started it."""

    pid: int
    name: str
    folder: str
    program: str


def find_running() -> Iterator[Running]:
    """Return the processes of every test bed on this machine."""
    marker = f"{_VARIABLE}=".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for entry in (process / "environ").read_bytes().split(b"\0"):
                if entry.startswith(marker):
                    folder, _, name = entry.decode().partition("=")[2].rpartition("#")
                    program = os.readlink(process / "exe").removesuffix(" (deleted)").rpartition("/")[2]
                    yield Running(int(process.name), name, folder, program)


class Daemons:
    """Those of the test bed in `folder`; each writes to `logs/NAME.log` there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log(self, name: str) -> Path:
        """Return where a daemon writes."""
        return self._folder / "logs" / f"{name}.log"

    def running(self) -> dict[str, int]:
        """Return the process ids of the daemons that run, by name."""
        return {each.name: each.pid for each in self._mine() if _is_itself(each)}

    def ensure(self, daemons: Sequence[Daemon]) -> None:
        """Start those that do not run."""
        running = self.running()
        for daemon in daemons:
            if daemon.name not in running:
                self._start(daemon)

    def require(self, names: Collection[str]) -> None:
        """Make sure that these run. Raises `TestbedError` with the end of the log of one that ended."""
        end = time.monotonic() + _EXECVE_SECONDS
        while ended := sorted(set(names) - {each.name for each in self._mine()}):
            if time.monotonic() > end:
                raise TestbedError(f"{ended[0]} ended:\n{self.tail(ended[0])}")
            time.sleep(_POLL_SECONDS)

    def kill(self, names: Collection[str] | None = None, seconds: float = 20.0) -> None:
        """Kill these (all, if none are named) and what they started, and wait. Raises `TestbedError`."""
        end = time.monotonic() + seconds
        gone_since: float | None = None
        while gone_since is None or time.monotonic() < gone_since + _EXECVE_SECONDS:
            left = [each for each in self._mine() if names is None or each.name in names]
            if left and time.monotonic() > end:
                raise TestbedError(f"{', '.join(sorted({each.name for each in left}))} cannot be killed")
            for each in left:
                with suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
            gone_since = None if left else gone_since or time.monotonic()
            time.sleep(_POLL_SECONDS)

    def tail(self, name: str) -> str:
        """Return the end of a daemon's log."""
        path = self.log(name)
        lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if path.exists() else []
        return "\n".join([f"--- end of {path}", *lines])

    def _mine(self) -> list[Running]:
        return [each for each in find_running() if each.folder == str(self._folder)]

    def _start(self, daemon: Daemon) -> None:
        log = self.log(daemon.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, _VARIABLE: f"{self._folder}#{daemon.name}"}
        if daemon.path:
            environment["PATH"] = f"{daemon.path}:{environment.get('PATH', '')}"
        # only the network is the node's own: `ip netns exec` would hide its mounts from us as well
        inside = ["nsenter", f"--net=/run/netns/{daemon.namespace}"] if daemon.namespace else []
        with log.open("ab") as output:
            # --fork: it is nobody's child, so nobody has to wait for it
            subprocess.run(
                ["setsid", "--fork", *inside, *daemon.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                check=True,
                timeout=10,
            )


def _is_itself(process: Running) -> bool:
    """Whether it is the daemon, not a program that it started (or what becomes it in a moment)."""
    return process.name == process.program or process.name.startswith(f"{process.program}-on-")

"""Programs of a stack: started under a guard, waited for, killed, paused; logs go to files."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")
_POLL_SECONDS = 0.05
_STOP_SECONDS = 40.0
_TAIL_LINES = 25
_BUS = 10_000
"""So far above its own port a store listens for the other servers of its cluster."""
_FIRST_PORT = 10_240
_PORTS = itertools.cycle(random.SystemRandom().sample(range(_FIRST_PORT, _FIRST_PORT + _BUS), _BUS))
"""None is another's bus, and all are below those that kernels give to whoever asks for any port, or connects."""
PORTS_SHARE = "SHADOWSERVE_LAB_PORTS"
"""Variable `K/N`: of `N` that run side by side (K = 0 to N - 1) each takes ports of its own."""


class ProcessFailed(Exception):
    """A program ended, or did not become ready; the message has the end of its log."""


def free_port() -> int:
    """Return a TCP port that is free now, at every address, and so is the one of a store's bus.

    It is none that the kernel gives away by itself: such a port can be some connection's before a server has started
    there, or has started again; and who connects to it while nobody listens may reach himself. For the same reason it
    is none that this process got before, until it got all of them.
    """
    share, shares = map(int, os.environ.get(PORTS_SHARE, "0/1").split("/"))
    while True:
        port = next(_PORTS)
        if port % shares != share:
            continue
        with socket.socket() as own, socket.socket() as bus, suppress(OSError):
            own.bind(("", port))
            bus.bind(("", port + _BUS))
            return port


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return once `condition` holds; raises `TimeoutError` saying `what` was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(_POLL_SECONDS)


class Program:
    """One running program. `pid` is its own process id, not its guard's."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        reading, status = os.pipe()
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, str(_GUARD), str(status), "--", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=None if environment is None else dict(environment),
                pass_fds=(status,),
                process_group=0,  # not a session: see `main` of guard.py
            )
        os.close(status)
        with os.fdopen(reading) as pipe:
            line = pipe.readline()
        if not line:
            self._guard.communicate()
            raise ProcessFailed(f"{name} could not be started: {self.tail()}")
        self.pid = int(line)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._guard.poll() is None

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Return once `ready()`; raises `ProcessFailed`, with the end of the log, when it ends or takes too long.

        A program that does not become ready is stopped.
        """
        try:
            wait_until(lambda: not self.running or ready(), seconds, f"{self.name} to be ready")
        except BaseException as error:
            self.stop()
            if isinstance(error, TimeoutError):
                raise ProcessFailed(f"{error}\n{self.tail()}") from error
            raise
        if not self.running:
            raise ProcessFailed(f"{self.name} ended with exit code {self.stop()}\n{self.tail()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program itself; harmless when it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._guard.wait(_STOP_SECONDS)

    def stop(self) -> int:
        """Ask it to end, kill what does not, and return its exit code."""
        self.release()
        return self._guard.wait(_STOP_SECONDS)

    def release(self) -> None:
        """Let go of it: it ends in its own time. `stop` waits for that."""
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self.signal(signal.SIGCONT)
            self._guard.stdin.close()

    def tail(self) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"--- end of {self.log}", *lines])


def tree_resident_bytes(pid: int) -> int:
    """Return the memory that a process and its descendants hold for themselves, without shared mappings and files."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    own = (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return own + sum(tree_resident_bytes(int(child)) for task in tasks for child in task.read_text().split())


def pin_tree(pid: int, cores: Sequence[int]) -> None:
    """Let every thread of a process and of its descendants run on `cores` only."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)
        for child in (task / "children").read_text().split():
            pin_tree(int(child), cores)

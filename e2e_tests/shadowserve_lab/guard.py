"""Runs one program and makes sure that nothing of it outlives whoever started it: `guard.py STATUS_FD -- COMMAND`.

The guard is started with a pipe as stdin that nobody writes to. When the pipe closes, because the starter closed it or
died in whatever way, the program gets SIGTERM and, if it does not end in time, everything that descends from it is
killed: orphans fall to the guard, which is their subreaper (prctl(2)). The program's process id goes to STATUS_FD.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 15.0
_LOOK_SECONDS = 0.1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Run the program; returns its exit code, 128 + n if signal n ended it."""
    status, command = int(sys.argv[1]), sys.argv[3:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A group of its own keeps Ctrl-C away from it. A session would too, but Linux shares the cores by session: on few
    # cores a thread that has just been woken then waits tens of milliseconds behind another part's busy loop.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_forget_signals)
    os.write(status, f"{child.pid}\n".encode())
    os.close(status)
    while child.poll() is None and not _abandoned():
        pass
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    _kill_descendants()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _forget_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _abandoned() -> bool:
    """Whether the starter has let go of us; waits a little for it."""
    ready, _, _ = select.select([0], [], [], _LOOK_SECONDS)
    return bool(ready) and not os.read(0, 1)


def _kill_descendants() -> None:
    """Kill until nothing is left: every round also catches what the last one made orphans of us."""
    end = time.monotonic() + GRACE_SECONDS
    while (children := _children(os.getpid())) and time.monotonic() < end:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


if __name__ == "__main__":
    sys.exit(main())

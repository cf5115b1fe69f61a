"""Worker processes on this machine. They share the target's arrays with the master and are called off by a flag."""

import mmap
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from shadowserve_capacity.errors import WorkerError
from shadowserve_capacity.prefetch.links import Link
from shadowserve_capacity.prefetch.local_worker import LARGEST_MESSAGE, packed
from shadowserve_capacity.prefetch.problem import Target
from shadowserve_capacity.prefetch.wire import CallOff, Order, encode

LANES = 2
_RESTARTS = 3
_NO_WAIT = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_ENDS_WITHIN_S = 5.0
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class ProcessLink:
    """One worker process."""

    def __init__(self, slot: int, data: int, flags: int) -> None:
        self.slot = slot
        self._off = np.frombuffer(mmap.mmap(flags, 0), dtype=np.uint64)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (theirs.fileno(), data, flags)
        environment = os.environ | dict.fromkeys(_ONE_THREAD, "1") | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "shadowserve_capacity.prefetch.local_worker", *map(str, fds)]
        self._process = subprocess.Popen(command, pass_fds=fds, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()

    @property
    def pid(self) -> int:
        """Return the process."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the socket."""
        return self._channel.fileno()

    def received(self) -> bytes:
        """Return the next message, empty if there is none yet; raises WorkerError when the process has ended."""
        try:
            data = self._channel.recv(LARGEST_MESSAGE, _NO_WAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        return data

    def buffered(self) -> bool:
        """Return False: the socket tells of every message."""
        return False

    def order(self, order: Order) -> None:
        """Send an order."""
        try:
            self._channel.send(encode(order), _NO_WAIT)
        except OSError as error:
            raise self._gone() from error

    def call_off(self, call: CallOff) -> None:
        """Set the lane's flag: seen between two batches."""
        self._off[call.lane] = call.serial

    def close(self) -> None:
        """Hang up and wait for the end; kill what does not end."""
        self._channel.close()
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End a process that need not be waited for."""
        self._process.kill()

    def _gone(self) -> WorkerError:
        try:
            code: int | None = self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            code = None
        return WorkerError(f"worker process {self.pid} has ended (exit code {code})")


class Processes:
    """`count` worker processes with `target` in memory that all share; each may be replaced three times."""

    def __init__(self, target: Target, count: int) -> None:
        self._data = _memory_file("target", _parts(target))
        self._flags = [_memory_file("flags", [bytes(8 * LANES)]) for _ in range(count)]
        self._replaced = [0] * count
        self._fresh: list[Link] = [ProcessLink(slot, self._data, self._flags[slot]) for slot in range(count)]

    def hired(self) -> list[Link]:
        """Return the processes that were started since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def replace(self, link: Link) -> Link | None:
        """Start another process in place of one that has ended."""
        assert isinstance(link, ProcessLink)
        self._replaced[link.slot] += 1
        if self._replaced[link.slot] > _RESTARTS:
            return None
        return ProcessLink(link.slot, self._data, self._flags[link.slot])

    def fileno(self) -> int | None:
        """Return None: no worker comes by itself."""
        return None

    def close(self) -> None:
        """Free the memory, once the processes have ended."""
        for link in self._fresh:
            link.close()
        for fd in (self._data, *self._flags):
            os.close(fd)


@contextmanager
def processes(target: Target, count: int) -> Iterator[Processes]:
    """Have `count` worker processes; raises WorkerError when the target cannot be given to them."""
    if count < 1:
        raise WorkerError(f"workers: {count} is less than 1")
    hiring = Processes(target, count)
    try:
        yield hiring
    finally:
        hiring.close()


def _parts(target: Target) -> list[bytes | memoryview]:
    try:
        return packed(target)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise WorkerError(
            f"the target cannot be sent to worker processes ({error}): define its class in a module, not in a "
            "function or notebook"
        ) from error


def _memory_file(name: str, parts: list[bytes | memoryview]) -> int:
    fd = os.memfd_create(f"shadowserve-capacity-{name}")
    for part in parts:
        view = memoryview(part).cast("B") if len(part) else memoryview(b"")
        while len(view):
            view = view[os.write(fd, view) :]
    return fd

"""Buffers that are made once: a pool of equal slabs in one anonymous mapping, lent out by lease.

Every page is touched at the start, so that no chunk pays for page faults and a container that is too small fails when
it starts, not under load. A pool that is empty is the back-pressure of the pipeline: whoever wants a slab waits.
"""

import mmap
import threading
from collections import deque
from types import TracebackType

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, DeadlineExceeded, SettingsError


class Lease:
    """One slab, yours until `release` or the end of the `with` block; releasing twice is harmless."""

    __slots__ = ("_pool", "_slab")

    def __init__(self, pool: "BufferPool", slab: int) -> None:
        self._pool: BufferPool | None = pool
        self._slab = slab

    @property
    def view(self) -> memoryview:
        """The slab's bytes, writable, `slab_bytes` long; what the last owner wrote is still there.

        Raises `ValueError` after the release. Views taken before it are not recalled: drop them with the lease.
        """
        if self._pool is None:
            raise ValueError("this lease was released")
        return self._pool.slab(self._slab)

    def release(self) -> None:
        """Give the slab back; the longest waiting `BufferPool.lease` gets it."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.give_back(self._slab)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _Waiter:
    """One thread in the queue for a slab."""

    __slots__ = ("served", "slab")

    def __init__(self) -> None:
        self.served = threading.Event()
        self.slab: int | None = None


class BufferPool:
    """`slabs` buffers of `slab_bytes`, lent to any thread, first come first served.

    `name` is used in error messages only. Raises `SettingsError` for sizes that are not positive, and the operating
    system's `OSError` when there is not that much memory.
    """

    def __init__(self, slab_bytes: int, slabs: int, name: str) -> None:
        if slab_bytes <= 0 or slabs <= 0:
            raise SettingsError(f"{name}: {slabs} slabs of {slab_bytes} bytes: both must be positive")
        self.name = name
        self.slab_bytes = slab_bytes
        self.slabs = slabs
        stride = -(-slab_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = memoryview(mmap.mmap(-1, stride * slabs))
        memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
        self._views = tuple(memory[start : start + slab_bytes] for start in range(0, stride * slabs, stride))
        self._free = list(reversed(range(slabs)))  # the last returned is lent first: it is in the CPU's cache
        self._waiters: deque[_Waiter] = deque()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Slabs that nobody holds."""
        return len(self._free)

    def try_lease(self) -> Lease | None:
        """Return a lease, or None when no slab is free or others are waiting; raises `Cancelled` after `close`."""
        with self._lock:
            self._refuse_when_closed()
            return Lease(self, self._free.pop()) if self._free else None

    def lease(self, deadline: Deadline) -> Lease:
        """Return a lease, waiting for one; raises `DeadlineExceeded`, or `Cancelled` when the pool is closed."""
        with self._lock:
            self._refuse_when_closed()
            if self._free:
                return Lease(self, self._free.pop())
            waiter = _Waiter()
            self._waiters.append(waiter)
        waiter.served.wait(min(deadline.remaining(), threading.TIMEOUT_MAX))
        return self._outcome(waiter)

    def close(self) -> None:
        """Refuse further leases and wake all waiters with `Cancelled`; leases that are out stay valid."""
        with self._lock:
            self._closed = True
            waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            waiter.served.set()

    def slab(self, number: int) -> memoryview:
        """Return the bytes of slab `number`; for `Lease`."""
        return self._views[number]

    def give_back(self, number: int) -> None:
        """Take slab `number` back, or hand it to the first waiter; for `Lease`."""
        with self._lock:
            if not self._waiters:
                self._free.append(number)
                return
            waiter = self._waiters.popleft()
            waiter.slab = number
        waiter.served.set()

    def _outcome(self, waiter: _Waiter) -> Lease:
        with self._lock:
            if waiter.slab is not None:  # also when it came in the very moment the deadline passed
                return Lease(self, waiter.slab)
            self._refuse_when_closed()
            self._waiters.remove(waiter)
        raise DeadlineExceeded(f"{self.name}: no buffer became free in time ({self.slabs} of {self.slabs} in use)")

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Cancelled(f"{self.name}: closed")

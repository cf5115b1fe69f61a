"""The landing buffer: slots that restored chunks land in, lent out by lease.

The rule that everything here serves: bytes of one fetch never reach a slot that was given to another. So a lease has a
number that is never used again, whoever writes says under which lease and is counted while it writes, and a slot whose
lease was revoked stays in quarantine until the last writer has left.
"""

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shadowserve_dataplane.errors import Cancelled, SettingsError


class SlotState(StrEnum):
    """Also the `state` label of the metric `landing_slots`."""

    FREE = "free"
    FILLING = "filling"
    LANDED = "landed"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class SlotRef:
    """A slot under one lease; `lease` is a 64-bit number that is never used again."""

    slot: int
    lease: int


@dataclass(slots=True)
class _Slot:
    state: SlotState = SlotState.FREE
    lease: int = 0
    writers: int = 0
    blank: bool = True
    owner: bytes | None = None
    """Whose bytes are in a slot that is not blank; None: of somebody that is gone."""

    def foreign_to(self, owner: bytes) -> bool:
        """Whether it holds what `owner` must not see."""
        return not self.blank and self.owner != owner


class LandingBuffer:
    """`total_bytes` of memory, every page touched at the start, cut into slots by `carve`. Thread-safe.

    With a `path` it is a file that the engine maps too; the caller removes the file. Touching the pages makes a
    container whose memory limit is too small fail at start, and charges tmpfs pages to whoever owns the buffer.
    Raises `SettingsError` for a size that is not positive or that the file system has no room for.
    """

    def __init__(self, total_bytes: int, path: Path | None = None, mode: int = 0o660) -> None:
        if total_bytes <= 0:
            raise SettingsError(f"landingBuffer: {total_bytes} bytes; it must be positive")
        self.total_bytes = total_bytes
        self.path = path
        self.slot_bytes = 0
        self._memory = memoryview(_mapped(total_bytes, path, mode))
        self._memory[:: mmap.PAGESIZE] = bytes(-(-total_bytes // mmap.PAGESIZE))
        self._slots: list[_Slot] = []
        self._free: list[int] = []
        self._by_lease: dict[int, int] = {}
        self._leases = 0
        self._lock = threading.Lock()

    @property
    def slots(self) -> int:
        """Slots there are; 0 before `carve`."""
        return len(self._slots)

    def carve(self, slot_bytes: int) -> int:
        """Cut the buffer into slots of that size, page-aligned; return how many. Cutting it the same way again is fine.

        Raises `SettingsError` when not one fits, or when it is cut otherwise already and slots are in use.
        """
        if slot_bytes <= 0:
            raise SettingsError(f"landingBuffer: slots of {slot_bytes} bytes; they must have some")
        stride = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with self._lock:
            if stride == self.slot_bytes:
                return len(self._slots)
            if stride > self.total_bytes:
                raise SettingsError(f"landingBuffer: {self.total_bytes} bytes hold no slot of {stride}; make it larger")
            if self._by_lease:
                raise SettingsError("landingBuffer: an engine of another model still holds slots; restart the sidecar")
            blank = not self._slots  # slots cut anew hold what others left
            self.slot_bytes = stride
            self._slots = [_Slot(blank=blank) for _ in range(self.total_bytes // stride)]
            self._free = list(reversed(range(len(self._slots))))
            return len(self._slots)

    def lease(self, owner: bytes) -> SlotRef | None:
        """Return a free slot for `owner`, None when there is none. What another owner left in it is zeroed first.

        The slot that was freed last goes first: its bytes are still in the processor's cache.
        """
        with self._lock:
            if not self._free:
                return None
            ref, stranger = self._take(self._free.pop(), owner)
        if stranger:
            self._zero(ref.slot)
        return ref

    def clean_one(self, owner: bytes) -> bool:
        """Zero a free slot that another owner left, so that `lease` need not; returns whether there was one."""
        with self._lock:
            foreign = next((number for number in self._free if self._slots[number].foreign_to(owner)), None)
            if foreign is None:
                return False
            self._free.remove(foreign)
            ref, _ = self._take(foreign, owner)
        self._zero(foreign)
        self._end(ref.lease)
        return True

    @contextmanager
    def writer(self, ref: SlotRef) -> Iterator[memoryview]:
        """Yield the slot's memory for writing. Raises `Cancelled` when the lease was revoked or is another's."""
        view = self.enter(ref)
        try:
            yield view
        finally:
            self.leave(ref)

    def enter(self, ref: SlotRef) -> memoryview:
        """Begin to write under a lease: until `leave` the slot goes to nobody else. Raises `Cancelled`."""
        with self._lock:
            slot = self._slots[ref.slot] if 0 <= ref.slot < len(self._slots) else None
            if slot is None or slot.lease != ref.lease or slot.state is not SlotState.FILLING:
                raise Cancelled(f"slot {ref.slot}: lease {ref.lease} is not open for writing")
            slot.writers += 1
            return self._view(ref.slot)

    def leave(self, ref: SlotRef) -> None:
        """End a write that `enter` began."""
        with self._lock:
            slot = self._slots[ref.slot]
            slot.writers -= 1
            if slot.state is SlotState.QUARANTINED and not slot.writers:
                self._free_slot(ref.slot)

    def open_for_writing(self, ref: SlotRef) -> bool:
        """Whether bytes under this lease are still wanted."""
        with self._lock:
            number = self._by_lease.get(ref.lease)
            return number == ref.slot and self._slots[ref.slot].state is SlotState.FILLING

    def hand_over(self, lease: int) -> None:
        """The chunk is whole: the slot belongs to the engine until `release`, and takes no more writes."""
        with self._lock:
            number = self._by_lease.get(lease)
            if number is not None and self._slots[number].state is SlotState.FILLING:
                self._slots[number].state = SlotState.LANDED

    def revoke(self, lease: int) -> None:
        """Nobody wants what this lease was for: the slot is free as soon as nobody writes into it."""
        self._end(lease)

    def release(self, lease: int) -> None:
        """The engine has taken what landed; harmless for a lease that ended already."""
        self._end(lease)

    def count(self) -> dict[SlotState, int]:
        """Return how many slots are in each state."""
        with self._lock:
            states = [slot.state for slot in self._slots]
        return {state: states.count(state) for state in SlotState}

    def close(self) -> None:
        """Remove the file, if there is one; mappings stay valid."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _end(self, lease: int) -> None:
        with self._lock:
            number = self._by_lease.get(lease)
            if number is None:
                return
            slot = self._slots[number]
            if slot.writers:
                slot.state = SlotState.QUARANTINED
            else:
                self._free_slot(number)

    def _free_slot(self, number: int) -> None:
        slot = self._slots[number]
        self._by_lease.pop(slot.lease, None)
        slot.state, slot.lease = SlotState.FREE, 0
        self._free.append(number)

    def _take(self, number: int, owner: bytes) -> tuple[SlotRef, bool]:
        slot = self._slots[number]
        self._leases += 1
        slot.state, slot.lease = SlotState.FILLING, self._leases
        self._by_lease[slot.lease] = number
        stranger = slot.foreign_to(owner)
        slot.blank, slot.owner = False, owner
        return SlotRef(number, slot.lease), stranger

    def _zero(self, number: int) -> None:
        self._view(number)[:] = bytes(self.slot_bytes)

    def _view(self, number: int) -> memoryview:
        start = number * self.slot_bytes
        return self._memory[start : start + self.slot_bytes]


def _mapped(size: int, path: Path | None, mode: int) -> mmap.mmap:
    if path is None:
        return mmap.mmap(-1, size)
    path.unlink(missing_ok=True)
    with path.open("xb+") as file:
        path.chmod(mode)
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a file system that is full says so here, not by SIGBUS later
        except OSError as error:
            path.unlink()
            raise SettingsError(f"landingBuffer: no room for {size} bytes at {path}: {error.strerror}") from error
        return mmap.mmap(file.fileno(), size)

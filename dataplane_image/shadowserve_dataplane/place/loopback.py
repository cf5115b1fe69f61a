"""Placement inside one process, with faults on request: for tests, and for trying out how a deployment behaves."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, NetworkError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.base import POLL_SECONDS, Patience


class Fault(Enum):
    """What can go wrong with one commit: lost silently, one bit changed, refused, or the connection lost for good."""

    DROP = auto()
    CORRUPT = auto()
    FAIL = auto()
    DISCONNECT = auto()


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Faults by number of commit, counted from 0 over the target's life; a commit waits for `gate` if there is one."""

    at_commit: Mapping[int, Fault] = field(default_factory=dict)
    gate: threading.Event | None = None
    gate_seconds: float = 5.0


class LoopbackTarget:
    """Copies into a landing buffer of this process; `finished` lists the slots whose chunks came whole."""

    def __init__(self, landing: LandingBuffer, faults: FaultPlan = FaultPlan()) -> None:
        self.landing = landing
        self.faults = faults
        self.finished: list[SlotRef] = []
        self.commits = 0
        self.connected = True
        self._lock = threading.Lock()

    def open(self) -> "LoopbackPlacement":
        """Return a placement for one worker thread."""
        return LoopbackPlacement(self)

    def next_fault(self) -> Fault | None:
        """Count a commit and return what goes wrong with it."""
        with self._lock:
            fault = self.faults.at_commit.get(self.commits)
            self.commits += 1
            if fault is Fault.DISCONNECT:
                self.connected = False
        return fault


class LoopbackPlacement:
    """One worker's view of a `LoopbackTarget`."""

    def __init__(self, target: LoopbackTarget) -> None:
        self._target = target
        self._buffer = memoryview(bytearray())
        self._received: dict[SlotRef, int] = {}
        self._patience = Patience()

    @property
    def piece_bytes(self) -> int:
        """A frame: faults are counted by frames."""
        return 1

    def wait_as_long_as(self, patience: Patience) -> None:
        """Wait that long at the gate."""
        self._patience = patience

    def reserve(self, ref: SlotRef, offset: int, length: int) -> memoryview:
        """Return a part of a buffer of this placement's own. Raises `NetworkError` after a disconnect."""
        self._check_connected()
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))
        return self._buffer[:length]

    def commit(self, ref: SlotRef, offset: int, length: int) -> None:
        """Copy the bytes into the slot, unless a fault says otherwise; under an ended lease they are dropped."""
        self._pass_gate(self._target.faults)
        fault = self._target.next_fault()
        self._check_connected()
        if fault is Fault.FAIL:
            raise NetworkError("loopback: this commit was told to fail")
        if fault is Fault.CORRUPT:
            self._buffer[length // 2] ^= 1
        if fault is Fault.DROP:
            return
        try:
            with self._target.landing.writer(ref) as slot:
                if offset + length > len(slot):
                    raise NetworkError(f"loopback: {offset}..{offset + length} is outside a slot of {len(slot)} bytes")
                slot[offset : offset + length] = self._buffer[:length]
        except Cancelled:
            self._received.pop(ref, None)
        else:
            self._received[ref] = self._received.get(ref, 0) + length

    def finish(self, ref: SlotRef, total_bytes: int) -> None:
        """Note that the chunk is whole; raises `NetworkError` when bytes are missing."""
        self._check_connected()
        received = self._received.pop(ref, 0)
        if not self._target.landing.open_for_writing(ref):
            return
        if received != total_bytes:
            raise NetworkError(f"loopback: {received} of {total_bytes} bytes came")
        self._target.finished.append(ref)

    def abort(self, ref: SlotRef) -> None:
        """Forget what came."""
        self._received.pop(ref, None)

    def close(self) -> None:
        """Forget everything."""
        self._received.clear()

    def _pass_gate(self, faults: FaultPlan) -> None:
        if faults.gate is None:
            return
        limit = Deadline.after(faults.gate_seconds)
        while not faults.gate.wait(min(POLL_SECONDS, limit.remaining())):
            self._patience.check()
            if limit.expired:
                raise NetworkError("loopback: the gate did not open in time")

    def _check_connected(self) -> None:
        if not self._target.connected:
            raise NetworkError("loopback: disconnected")

"""Placement on the same host: the landing buffer is mapped, so decoding into `reserve`d memory places it."""

import sys

from shadowserve_dataplane.errors import Cancelled, NetworkError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.base import Patience


class SharedMemoryTarget:
    """A landing buffer that this process maps and whose leases it keeps."""

    def __init__(self, landing: LandingBuffer) -> None:
        self._landing = landing

    def open(self) -> "SharedMemoryPlacement":
        """Return a placement for one worker thread."""
        return SharedMemoryPlacement(self._landing)


class SharedMemoryPlacement:
    """Writes straight into the slot; counts as its writer between `reserve` and `commit` or `abort`."""

    def __init__(self, landing: LandingBuffer) -> None:
        self._landing = landing
        self._writing: SlotRef | None = None

    @property
    def piece_bytes(self) -> int:
        """All that there is: it is placed by being written."""
        return sys.maxsize

    def wait_as_long_as(self, patience: Patience) -> None:
        """Do nothing: memory takes bytes at once."""

    def reserve(self, ref: SlotRef, offset: int, length: int) -> memoryview:
        """Return that part of the slot. Raises `Cancelled`, and `NetworkError` for a part outside."""
        self._leave()  # a frame that turned out damaged was reserved but not committed
        view = self._landing.enter(ref)
        self._writing = ref
        if offset < 0 or offset + length > len(view):
            self._leave()
            raise NetworkError(f"slot {ref.slot}: {offset}..{offset + length} is outside its {len(view)} bytes")
        return view[offset : offset + length]

    def commit(self, ref: SlotRef, offset: int, length: int) -> None:
        """The bytes are where they belong already."""
        self._leave()

    def finish(self, ref: SlotRef, total_bytes: int) -> None:
        """Raises `Cancelled` when the lease ended meanwhile."""
        if not self._landing.open_for_writing(ref):
            raise Cancelled(f"slot {ref.slot}: lease {ref.lease} ended before the chunk was whole")

    def abort(self, ref: SlotRef) -> None:
        """Stop counting as a writer."""
        self._leave()

    def close(self) -> None:
        """Stop counting as a writer."""
        self._leave()

    def _leave(self) -> None:
        if self._writing is not None:
            self._landing.leave(self._writing)
            self._writing = None

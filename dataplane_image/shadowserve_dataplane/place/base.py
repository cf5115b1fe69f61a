"""What every placement promises; one contract test suite runs over all of them.

* Bytes go nowhere but into the slot, and only while its lease is open: under a revoked lease they are dropped.
* `finish` is seen at the other end only after every byte before it.
* After `abort`, or an error, nothing more is written under that lease by this placement.
* A chunk whose bytes were cut off by a lost connection fails; one that begins afterwards goes over a new connection.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, DeadlineExceeded
from shadowserve_dataplane.landing import SlotRef

POLL_SECONDS = 0.05
"""The longest time that a placement blocks between two looks at its patience."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Patience:
    """How long whoever places is ready to wait for a target that takes nothing."""

    deadline: Deadline = field(default_factory=Deadline.never)
    cancelled: Callable[[], bool] = _never

    def check(self) -> None:
        """Raise `Cancelled` or `DeadlineExceeded` when there is no point in waiting on."""
        if self.cancelled():
            raise Cancelled("the fetch was cancelled while placing")
        if self.deadline.expired:
            raise DeadlineExceeded("the target of the placement did not take the bytes in time")


class Placement(Protocol):
    """How one worker thread places chunks into one landing buffer; not thread-safe.

    Every method raises `NetworkError` when the target cannot be reached and `Cancelled` when the lease is not open
    (a placement over a network may learn that only later, and then drops silently). Those that wait for their target
    also raise what `Patience.check` raises, at most `POLL_SECONDS` late.
    """

    @property
    def piece_bytes(self) -> int:
        """So many bytes are worth reserving at once: what is longer had better be placed while the rest is restored."""
        ...

    def wait_as_long_as(self, patience: Patience) -> None:
        """From now on wait only that long; without it, as long as the placement itself thinks fit."""
        ...

    def reserve(self, ref: SlotRef, offset: int, length: int) -> memoryview:
        """Return where to write `length` bytes that shall land at `offset` of the slot; then `commit` or `abort`."""
        ...

    def commit(self, ref: SlotRef, offset: int, length: int) -> None:
        """The reserved bytes are written: place them."""
        ...

    def finish(self, ref: SlotRef, total_bytes: int) -> None:
        """The chunk is whole: `total_bytes` were committed under this lease."""
        ...

    def abort(self, ref: SlotRef) -> None:
        """Nothing more comes under this lease; never raises."""
        ...

    def close(self) -> None:
        """Give back what this placement holds."""
        ...


class PlacementTarget(Protocol):
    """A landing buffer that chunks can be placed into, here or elsewhere."""

    def open(self) -> Placement:
        """Return a placement for one worker thread; connects when it is first used."""
        ...

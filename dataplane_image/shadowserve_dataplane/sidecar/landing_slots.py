"""The landing buffer as the connector is told of it: cut for the engine's chunks, and clean before its first fetch."""

import logging
import threading

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.connector.messages import Buffer
from shadowserve_dataplane.landing import LandingBuffer, SlotState
from shadowserve_dataplane.sidecar.sessions import Refusal, Session
from shadowserve_dataplane.sidecar.staging import round_to_pages

ENOUGH_SLOTS = 8
"""With fewer slots chunks wait for one another."""

_log = logging.getLogger(__name__)


class LandingSlots:
    """Cuts the buffer anew when an engine with another chunk shape comes."""

    def __init__(self, landing: LandingBuffer) -> None:
        self._landing = landing

    def carve_for(self, shape: KvShape) -> Buffer | Refusal | None:
        """Return the buffer, cut into slots that hold any chunk of `shape`; None: not yet, slots are still in use."""
        slot_bytes = slot_bytes_for(shape)
        total = self._landing.total_bytes
        if slot_bytes > total:
            return Refusal(
                f"the landing buffer has {total} bytes, one chunk of this model needs {slot_bytes}; "
                f"raise landingBufferBytes to at least {ENOUGH_SLOTS * slot_bytes}"
            )
        if slot_bytes != self._landing.slot_bytes:
            if slots_in_use(self._landing):
                return None
            self._landing.carve(slot_bytes)
            if self._landing.slots < ENOUGH_SLOTS:
                _log.warning(
                    "the landing buffer holds %d chunks of this model; raise landingBufferBytes to at least %d",
                    self._landing.slots,
                    ENOUGH_SLOTS * slot_bytes,
                )
        return Buffer(str(self._landing.path), total, slot_bytes, list(range(self._landing.slots)))


def slot_bytes_for(shape: KvShape) -> int:
    """Return how large a slot is that any chunk of this shape fits into."""
    return round_to_pages(LandedLayout.max_bytes(shape))


def owner_of(session: Session) -> bytes:
    """Return who a session's slots belong to: slots of another engine are zeroed before they are lent."""
    return session.engine.encode()


def slots_in_use(landing: LandingBuffer) -> int:
    """Return how many slots are not free."""
    count = landing.count()
    return sum(count.values()) - count.get(SlotState.FREE, 0)


def zero_for(landing: LandingBuffer, owner: bytes) -> None:
    """Start to zero the free slots that others had, so that the first fetch of `owner` need not.

    A slot that is in use is zeroed when it is lent next.
    """
    threading.Thread(target=_zero, args=(landing, owner), name="shadowserve-zero", daemon=True).start()


def _zero(landing: LandingBuffer, owner: bytes) -> None:
    while landing.clean_one(owner):
        pass

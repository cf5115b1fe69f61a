"""The placements, each with a landing buffer to place into, for the tests that all of them must pass."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from real_store import Certificate, wait_until

from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.base import Placement, PlacementTarget
from shadowserve_dataplane.place.loopback import LoopbackTarget
from shadowserve_dataplane.place.receiver import TcpPlacementReceiver
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.place.tcp import TcpTarget

TOKEN = bytes(range(32))
SLOT_BYTES = 8192
SLOTS = 4
KINDS = ("shared memory", "loopback", "tcp", "local", "tls")


@dataclass
class Arena:
    """A landing buffer of `SLOTS` slots, a target that places into it, and what was seen to finish."""

    landing: LandingBuffer
    target: PlacementTarget
    finished: Callable[[], list[SlotRef]]

    def slot(self, number: int) -> bytes:
        """Return what lies in a slot."""
        return bytes(self.landing._view(number))

    def lease(self, owner: bytes = b"engine") -> SlotRef:
        """Return a lease of a free slot."""
        ref = self.landing.lease(owner)
        assert ref is not None
        return ref

    def wait_finished(self, ref: SlotRef) -> None:
        """Return once the end of that chunk was seen where the landing buffer is."""
        wait_until(lambda: ref in self.finished(), f"{ref} is finished")

    def chunk_passes(self, placement: Placement) -> bool:
        """Whether a whole chunk can be placed now; what was sent before it on this placement is through by then."""
        ref = self.lease(b"engine")
        put(placement, ref, 0, b"whole")
        placement.finish(ref, 5)
        self.wait_finished(ref)
        landed = self.slot(ref.slot)[:5] == b"whole"
        self.landing.release(ref.lease)
        return landed


@dataclass
class _Ends:
    """Finished chunks, as a receiver or a sender tells of them."""

    refs: list[SlotRef] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, ref: SlotRef) -> None:
        with self.lock:
            self.refs.append(ref)

    def all(self) -> list[SlotRef]:
        with self.lock:
            return list(self.refs)


class _TellingTarget:
    """Shared memory has no other end to see `finish`: it counts once it returned."""

    def __init__(self, landing: LandingBuffer, ends: _Ends) -> None:
        self._inner = SharedMemoryTarget(landing)
        self._ends = ends

    def open(self) -> Placement:
        placement = self._inner.open()
        plain_finish, ends = placement.finish, self._ends

        def finish_and_tell(ref: SlotRef, total_bytes: int) -> None:
            plain_finish(ref, total_bytes)
            ends.add(ref)

        placement.finish = finish_and_tell  # type: ignore[method-assign]
        return placement


@contextmanager
def arena_of(kind: str, certificate: Certificate) -> Iterator[Arena]:
    """Yield an arena with a placement of that kind."""
    landing = LandingBuffer(SLOTS * SLOT_BYTES)
    landing.carve(SLOT_BYTES)
    ends = _Ends()
    if kind == "shared memory":
        yield Arena(landing, _TellingTarget(landing, ends), ends.all)
    elif kind == "loopback":
        target = LoopbackTarget(landing)
        yield Arena(landing, target, lambda: list(target.finished))
    else:
        with receiver_of(landing, ends.add, certificate if kind == "tls" else None) as receiver:
            tls = certificate.client_context() if kind == "tls" else None
            port = 1 if kind == "local" else receiver.port  # nobody listens there: it has to be the unix socket
            local = receiver.local_name if kind == "local" else ""
            yield Arena(landing, TcpTarget("127.0.0.1", port, TOKEN, tls, local=local), ends.all)


@contextmanager
def receiver_of(
    landing: LandingBuffer,
    on_finished: Callable[[SlotRef], None],
    certificate: Certificate | None = None,
    port: int = 0,
) -> Iterator[TcpPlacementReceiver]:
    """Yield a receiver on a free port, with TLS if there is a certificate; it is closed at the end."""
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate.certificate, certificate.key)
    receiver = TcpPlacementReceiver(landing, ("127.0.0.1", port), TOKEN, on_finished, tls)
    try:
        yield receiver
    finally:
        receiver.close()


@contextmanager
def opened(target: PlacementTarget) -> Iterator[Placement]:
    """Yield a placement of `target`; it is closed at the end."""
    placement = target.open()
    try:
        yield placement
    finally:
        placement.close()


def put(placement: Placement, ref: SlotRef, offset: int, data: bytes) -> None:
    """Place `data` at `offset` of a slot."""
    placement.reserve(ref, offset, len(data))[:] = data
    placement.commit(ref, offset, len(data))


def put_until_refused(placement: Placement, ref: SlotRef, offset: int, data: bytes) -> None:
    """Place again and again: over a network the refusal of what was sent is seen only by what is sent later."""

    def again() -> bool:
        put(placement, ref, offset, data)
        return False

    wait_until(again, "the refusal")

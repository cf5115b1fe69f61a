"""The promises of `place.base`, for every placement: shared memory, TCP, TCP with TLS, loopback."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest
from real_store import Certificate, wait_until
from shadowserve_dataplane.errors import Cancelled, NetworkError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.base import Placement, PlacementTarget
from shadowserve_dataplane.place.frames import FrameKind, PlacementFrame, pack_frame, pack_greeting
from shadowserve_dataplane.place.loopback import Fault, FaultPlan, LoopbackTarget
from shadowserve_dataplane.place.receiver import TcpPlacementReceiver
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.place.tcp import TcpTarget

SLOT = 64 * 1024
TOKEN = bytes(range(32))
SECONDS = 10.0
KINDS = ["shared memory", "tcp", "tls", "loopback"]


@dataclass
class Bench:
    """A landing buffer, a way into it, and which slots are known to be whole."""

    landing: LandingBuffer
    target: PlacementTarget
    finished: list[SlotRef] = field(default_factory=list)
    receiver: TcpPlacementReceiver | None = None

    def lease(self) -> SlotRef:
        ref = self.landing.lease(b"engine")
        assert ref is not None
        return ref

    def content(self, ref: SlotRef) -> bytes:
        """Return a slot's bytes, whoever has it."""
        start = ref.slot * self.landing.slot_bytes
        return bytes(self.landing._memory[start : start + self.landing.slot_bytes])

    def settled(self, ref: SlotRef) -> None:
        wait_until(lambda: ref in self.finished, "the chunk to be whole", SECONDS)


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Bench]:
    with opened(request.param, certificate) as bench:
        yield bench


@contextmanager
def opened(kind: str, certificate: Certificate) -> Iterator[Bench]:
    landing = LandingBuffer(4 * SLOT)
    landing.carve(SLOT)
    if kind == "shared memory":
        yield Bench(landing, SharedMemoryTarget(landing))
    elif kind == "loopback":
        target = LoopbackTarget(landing)
        yield Bench(landing, target, target.finished)
    else:
        finished: list[SlotRef] = []
        server = server_context(certificate) if kind == "tls" else None
        client = certificate.client_context() if kind == "tls" else None
        receiver = TcpPlacementReceiver(landing, ("127.0.0.1", 0), TOKEN, finished.append, server)
        yield Bench(landing, TcpTarget("127.0.0.1", receiver.port, TOKEN, client), finished, receiver)
        receiver.close()


def server_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def place(placement: Placement, ref: SlotRef, offset: int, data: bytes) -> None:
    placement.reserve(ref, offset, len(data))[:] = data
    placement.commit(ref, offset, len(data))


def finish(bench: Bench, placement: Placement, ref: SlotRef, size: int) -> None:
    placement.finish(ref, size)
    if not isinstance(bench.target, SharedMemoryTarget):
        bench.settled(ref)


def test_bytes_land_where_they_belong_and_nowhere_else(bench: Bench) -> None:
    placement, ref, other = bench.target.open(), bench.lease(), bench.lease()
    place(placement, ref, 100, b"hello")
    place(placement, ref, SLOT - 5, b"world")
    finish(bench, placement, ref, 10)
    content = bench.content(ref)
    assert (content[100:105], content[-5:]) == (b"hello", b"world")
    assert content.count(0) == SLOT - 10
    assert not any(bench.content(other))
    placement.close()


def test_many_chunks_over_one_placement(bench: Bench) -> None:
    placement = bench.target.open()
    for number in range(20):
        ref = bench.lease()
        place(placement, ref, 0, bytes([number]) * SLOT)
        finish(bench, placement, ref, SLOT)
        assert set(bench.content(ref)) == {number}
        bench.landing.hand_over(ref.lease)
        bench.landing.release(ref.lease)
    placement.close()


def test_bytes_of_an_ended_lease_never_reach_the_next_owner(bench: Bench) -> None:
    placement, ref = bench.target.open(), bench.lease()
    place(placement, ref, 0, b"a" * 10)
    bench.landing.revoke(ref.lease)
    taken = [bench.lease() for _ in range(4)]
    mine = next(each for each in taken if each.slot == ref.slot)
    before = bench.content(mine)
    try:
        place(placement, ref, 0, b"late" * 10)
        placement.finish(ref, 50)
    except Cancelled:
        placement.abort(ref)
    survivor = bench.target.open()
    other = taken[0] if taken[0] is not mine else taken[1]
    place(survivor, other, 0, b"after")
    finish(bench, survivor, other, 5)
    assert bench.content(mine) == before
    assert ref not in bench.finished
    placement.close()
    survivor.close()


def test_after_abort_the_slot_can_be_given_to_another(bench: Bench) -> None:
    placement, ref = bench.target.open(), bench.lease()
    placement.reserve(ref, 0, 4)
    placement.abort(ref)
    bench.landing.revoke(ref.lease)
    again = [bench.lease() for _ in range(4)]
    assert ref.slot in {each.slot for each in again}
    place(placement, again[0], 0, b"fine")
    finish(bench, placement, again[0], 4)
    placement.close()


# What only a network can do wrong.


@pytest.fixture
def tcp(certificate: Certificate) -> Iterator[Bench]:
    with opened("tcp", certificate) as bench:
        yield bench


def raw(bench: Bench, *data: bytes) -> bytes:
    """Send bytes as a sender that knows no rules; return what comes back before it is hung up on."""
    assert bench.receiver is not None
    with socket.create_connection(("127.0.0.1", bench.receiver.port), SECONDS) as stream:
        stream.settimeout(SECONDS)
        received = b""
        with suppress(OSError):  # it may hang up before it has read everything
            for piece in data:
                stream.sendall(piece)
            stream.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while piece := stream.recv(1024):
                received += piece
        return received


def data_frame(ref: SlotRef, offset: int, length: int, checksum: int = 0) -> bytes:
    return pack_frame(PlacementFrame(FrameKind.DATA, ref, offset, length, checksum))


def test_a_wrong_token_is_refused(tcp: Bench) -> None:
    assert isinstance(tcp.target, TcpTarget)
    stranger = TcpTarget(tcp.target.host, tcp.target.port, bytes(32)).open()
    with pytest.raises(NetworkError, match="token"):
        place(stranger, tcp.lease(), 0, b"x")


def test_another_version_is_refused(tcp: Bench) -> None:
    greeting = bytearray(pack_greeting(TOKEN))
    greeting[4] = 99
    assert raw(tcp, bytes(greeting))[6] == 1


@pytest.mark.parametrize(
    "case", ["garbage greeting", "garbage frame", "outside the slot", "wrong checksum", "cut off", "wrong total"]
)
def test_a_sender_that_breaks_the_rules_is_hung_up_on_and_others_are_not(tcp: Bench, case: str) -> None:
    good, ref, victim = tcp.target.open(), tcp.lease(), tcp.lease()
    place(good, ref, 0, b"be")
    frames = {
        "garbage frame": b"?" * 40,
        "outside the slot": data_frame(victim, SLOT - 1, 2),
        "wrong checksum": data_frame(victim, 0, 4, 1) + b"evil",
        "cut off": data_frame(victim, 0, 1000) + b"only this",
        "wrong total": pack_frame(PlacementFrame(FrameKind.FINISH, victim, 77, 0, 0)),
    }
    if case == "garbage greeting":
        raw(tcp, b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n" + b" " * 40)
    else:
        raw(tcp, pack_greeting(TOKEN), frames[case])
    assert victim not in tcp.finished
    place(good, ref, 2, b"fore")
    finish(tcp, good, ref, 6)
    tcp.landing.revoke(victim.lease)
    refs = [tcp.lease() for _ in range(3)]
    assert victim.slot in {each.slot for each in refs}, "the slot came back: nobody counts as its writer"
    good.close()


def test_a_sender_reconnects_after_the_receiver_was_gone(tcp: Bench) -> None:
    assert tcp.receiver is not None
    placement = tcp.target.open()
    place(placement, tcp.lease(), 0, b"x")
    tcp.receiver.close()

    def refused() -> bool:
        try:
            place(placement, ref, 0, b"y" * SLOT)
        except NetworkError:
            return True
        return False

    ref = tcp.lease()
    wait_until(refused, "the sender to notice", SECONDS)


def test_tls_senders_need_a_certificate_of_the_authority(certificate: Certificate) -> None:
    with opened("tls", certificate) as bench:
        assert isinstance(bench.target, TcpTarget)
        plain = TcpTarget(bench.target.host, bench.target.port, TOKEN, connect_timeout=1.0).open()
        with pytest.raises(NetworkError):
            place(plain, bench.lease(), 0, b"x")


# Faults that the loopback can be told to have.


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.DISCONNECT])
def test_loopback_fails_when_told_to(fault: Fault) -> None:
    landing = LandingBuffer(SLOT)
    landing.carve(SLOT)
    target = LoopbackTarget(landing, FaultPlan({1: fault}))
    ref = landing.lease(b"engine")
    assert ref is not None
    placement = target.open()
    place(placement, ref, 0, b"one")
    with pytest.raises(NetworkError):
        place(placement, ref, 3, b"two")
    assert target.connected is (fault is Fault.FAIL)


def test_loopback_notices_what_it_was_told_to_drop() -> None:
    landing = LandingBuffer(SLOT)
    landing.carve(SLOT)
    target = LoopbackTarget(landing, FaultPlan({0: Fault.DROP}))
    ref = landing.lease(b"engine")
    assert ref is not None
    placement = target.open()
    place(placement, ref, 0, b"gone")
    with pytest.raises(NetworkError, match="0 of 4 bytes"):
        placement.finish(ref, 4)
    assert not target.finished


def test_loopback_corrupts_one_bit_and_waits_at_the_gate() -> None:
    landing = LandingBuffer(SLOT)
    landing.carve(SLOT)
    gate = threading.Event()
    target = LoopbackTarget(landing, FaultPlan({0: Fault.CORRUPT}, gate))
    ref = landing.lease(b"engine")
    assert ref is not None
    thread = threading.Thread(target=place, args=(target.open(), ref, 0, b"\0\0\0"))
    thread.start()
    gate.set()
    thread.join(SECONDS)
    with landing.writer(ref) as slot:
        assert bytes(slot[:3]) == b"\0\1\0"

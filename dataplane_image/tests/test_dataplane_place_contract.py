"""What every placement promises, and how the receiver deals with senders that break the rules."""

import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import xxhash
from placements import KINDS, SLOT_BYTES, SLOTS, TOKEN, Arena, arena_of, opened, put, receiver_of
from real_store import Certificate, free_port, wait_until
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, DeadlineExceeded, NetworkError, PeerProtocolError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef, SlotState
from shadowserve_dataplane.place import frames
from shadowserve_dataplane.place.base import Patience
from shadowserve_dataplane.place.frames import FrameKind, PlacementFrame, pack_frame, pack_greeting
from shadowserve_dataplane.place.loopback import Fault, FaultPlan, LoopbackTarget
from shadowserve_dataplane.place.tcp import TcpTarget

EMPTY = bytes(SLOT_BYTES)


@pytest.fixture(params=KINDS)
def arena(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Arena]:
    with arena_of(request.param, certificate) as made:
        yield made


@pytest.fixture(params=["tcp", "tls"])
def network(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Arena]:
    with arena_of(request.param, certificate) as made:
        yield made


@pytest.fixture
def tcp(certificate: Certificate) -> Iterator[Arena]:
    with arena_of("tcp", certificate) as made:
        yield made


# What all promise


def test_bytes_land_where_they_shall_and_nowhere_else(arena: Arena) -> None:
    refs = [arena.lease() for _ in range(3)]
    with opened(arena.target) as placement:
        put(placement, refs[1], 100, b"a" * 500)
        put(placement, refs[1], 600, b"b" * 7)
        placement.finish(refs[1], 507)
        arena.wait_finished(refs[1])
    expected = bytes(100) + b"a" * 500 + b"b" * 7 + bytes(SLOT_BYTES - 607)
    assert [arena.slot(number) for number in range(SLOTS)] == [EMPTY, expected, EMPTY, EMPTY]


def test_a_slot_can_be_filled_to_its_last_byte_and_not_beyond(arena: Arena) -> None:
    inside, outside = arena.lease(), arena.lease()
    with opened(arena.target) as placement:
        put(placement, inside, SLOT_BYTES - 3, b"end")
        placement.finish(inside, 3)
        arena.wait_finished(inside)
        with pytest.raises(NetworkError):
            put_until_refused(placement, outside, SLOT_BYTES - 3, b"ends")
        placement.abort(outside)
    assert arena.slot(inside.slot).endswith(b"end")
    assert [arena.slot(n) for n in range(SLOTS) if n != inside.slot] == [EMPTY] * 3
    assert outside not in arena.finished()


def put_until_refused(placement, ref: SlotRef, offset: int, data: bytes) -> None:
    """Place again and again: over a network the refusal of what was sent is seen only by what is sent later."""
    wait_until(lambda: put(placement, ref, offset, data) is not None, "the refusal")


def test_many_chunks_interleaved_from_two_placements_each_end_up_whole(arena: Arena) -> None:
    refs = [arena.lease() for _ in range(SLOTS)]
    with opened(arena.target) as one, opened(arena.target) as two:
        for piece in range(8):
            for number, ref in enumerate(refs):
                put((one, two)[number % 2], ref, piece * 1024, bytes([16 * number + piece]) * 1024)
        for number, ref in enumerate(refs):
            (one, two)[number % 2].finish(ref, SLOT_BYTES)
            arena.wait_finished(ref)
    for number, ref in enumerate(refs):
        assert arena.slot(ref.slot) == b"".join(bytes([16 * number + piece]) * 1024 for piece in range(8))
    assert sorted(arena.finished(), key=lambda ref: ref.lease) == refs


def test_the_end_is_seen_only_once_every_byte_is_there(certificate: Certificate) -> None:
    seen: list[bytes] = []
    landing = LandingBuffer(4 << 20)
    landing.carve(1 << 20)
    with (
        receiver_of(landing, lambda ref: seen.append(bytes(landing._view(ref.slot)))) as receiver,
        opened(TcpTarget("127.0.0.1", receiver.port, TOKEN)) as placement,
    ):
        for number in range(4):
            ref = landing.lease(b"engine")
            assert ref is not None
            for piece in range(16):
                put(placement, ref, piece << 16, bytes([number + 1]) * (1 << 16))
            placement.finish(ref, 1 << 20)
        wait_until(lambda: len(seen) == 4, "all chunks are finished")
    assert seen == [bytes([number + 1]) * (1 << 20) for number in range(4)]


def test_a_revoked_lease_drops_its_bytes_and_the_next_owner_of_the_slot_is_never_touched(arena: Arena) -> None:
    old = arena.lease(b"first")
    with opened(arena.target) as placement:
        put(placement, old, 0, b"x" * 64)
        arena.landing.revoke(old.lease)
        others = [arena.lease(b"second") for _ in range(arena.landing.count()[SlotState.FREE])]
        for attempt in range(3):
            try:
                put(placement, old, 64 * attempt, b"y" * 64)
            except Cancelled:
                placement.abort(old)
        try:
            placement.finish(old, 256)
        except Cancelled:
            placement.abort(old)
        for ref in others[:-1]:
            assert arena.slot(ref.slot) in (EMPTY, b"x" * 64 + EMPTY[64:])  # the first bytes may still be on their way
        arena.landing.revoke(others[-1].lease)
        assert arena.chunk_passes(placement), "the placement still works"
    wait_until(lambda: arena.landing.count()[SlotState.QUARANTINED] == 0, "the last writer has left")
    again = [ref for ref in others[:-1] if ref.slot == old.slot]
    assert all(b"y" not in arena.slot(ref.slot) for ref in again)
    assert old not in arena.finished()


def test_a_revoked_slot_is_blank_for_its_next_owner_whatever_came_late(arena: Arena) -> None:
    slots = [arena.lease(b"first") for _ in range(SLOTS)]
    with opened(arena.target) as placement:
        for ref in slots:
            put(placement, ref, 0, b"secret" * 100)
        for ref in slots:
            arena.landing.revoke(ref.lease)
        wait_until(lambda: arena.landing.count()[SlotState.FREE] == SLOTS, "all slots are free")
        heirs = [arena.lease(b"second") for _ in range(SLOTS - 1)]
        assert arena.chunk_passes(placement), "all that was sent before is through"
        assert [arena.slot(ref.slot) for ref in heirs] == [EMPTY] * (SLOTS - 1)


def test_an_aborted_chunk_never_finishes_and_its_slot_is_free_at_once(arena: Arena) -> None:
    ref = arena.lease()
    with opened(arena.target) as placement:
        placement.reserve(ref, 0, 10)  # a frame that turns out damaged is reserved, never committed
        placement.abort(ref)
        placement.abort(ref)
        put(placement, ref, 0, b"z" * 10)
        placement.abort(ref)
        arena.landing.revoke(ref.lease)
        assert arena.chunk_passes(placement)
    assert arena.landing.count()[SlotState.FREE] == SLOTS
    assert ref not in arena.finished()


def test_a_damaged_frame_of_one_chunk_does_not_hold_its_slot_when_another_goes_on(arena: Arena) -> None:
    damaged, good = arena.lease(), arena.lease()
    with opened(arena.target) as placement:
        placement.reserve(damaged, 0, 10)
        put(placement, good, 0, b"good")  # from another shard, before the reader is done with the damaged one
        placement.abort(damaged)
        placement.finish(good, 4)
        arena.wait_finished(good)
    arena.landing.revoke(damaged.lease)
    assert arena.landing.count()[SlotState.QUARANTINED] == 0


def test_a_lease_that_never_was_is_dropped(arena: Arena) -> None:
    for ref in (SlotRef(0, 99), SlotRef(SLOTS + 5, 1)):
        with opened(arena.target) as placement:
            try:
                put(placement, ref, 0, b"stray")
                placement.finish(ref, 5)
            except Cancelled:
                placement.abort(ref)
            assert arena.chunk_passes(placement)
        assert ref not in arena.finished()


# Over a network


def test_nobody_there_is_a_network_error_that_names_the_address() -> None:
    port = free_port()
    with (
        opened(TcpTarget("127.0.0.1", port, TOKEN)) as placement,
        pytest.raises(NetworkError, match=f"placement to 127.0.0.1:{port}: .*refused"),
    ):
        put(placement, SlotRef(0, 1), 0, b"hello")


def test_a_wrong_token_is_told_and_does_not_disturb_others(network: Arena) -> None:
    target = network.target
    assert isinstance(target, TcpTarget)
    stranger = TcpTarget("127.0.0.1", target.port, b"?" * 32, target.tls)
    with opened(target) as good, opened(stranger) as bad:
        ref, other = network.lease(), network.lease()
        put(good, ref, 0, b"one")
        with pytest.raises(NetworkError, match="token: attach again"):
            put(bad, other, 0, b"evil")
        put(good, ref, 3, b"two")
        good.finish(ref, 6)
        network.wait_finished(ref)
    assert network.slot(ref.slot)[:6] == b"onetwo"
    assert network.slot(other.slot) == EMPTY


def test_another_version_is_told_by_number(tcp: Arena) -> None:
    target, greeting = tcp.target, pack_greeting(TOKEN)
    assert isinstance(target, TcpTarget)
    with socket.create_connection(("127.0.0.1", target.port), 5) as newer:
        newer.sendall(greeting[:4] + struct.pack("<H", 9) + greeting[6:])
        answer = newer.recv(frames.ANSWER_BYTES)
        assert _receive(newer) == b"", "the receiver hangs up"
    with pytest.raises(PeerProtocolError, match="speaks placement version 1"):
        frames.check_answer(answer)


def test_a_receiver_that_is_something_else_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answering = threading.Thread(target=_answer_once, args=(server, b"HTTP/1.1 400 Bad Request\r\n"))
        answering.start()
        with (
            opened(TcpTarget("127.0.0.1", port, TOKEN)) as placement,
            pytest.raises(NetworkError, match="not a placement receiver"),
        ):
            put(placement, SlotRef(0, 1), 0, b"hello")
        answering.join(5)


def _answer_once(server: socket.socket, answer: bytes) -> None:
    stream, _ = server.accept()
    with stream:
        stream.recv(frames.GREETING_BYTES)
        stream.sendall(answer)


def test_plain_bytes_to_a_receiver_with_tls_are_refused_and_it_goes_on(certificate: Certificate) -> None:
    with arena_of("tls", certificate) as arena:
        target = arena.target
        assert isinstance(target, TcpTarget)
        with (
            opened(TcpTarget("127.0.0.1", target.port, TOKEN)) as plain,
            pytest.raises(NetworkError, match="placement to 127"),
        ):
            put(plain, arena.lease(), 0, b"hello")
        with opened(target) as placement:
            assert arena.chunk_passes(placement)


def test_a_certificate_of_another_authority_is_refused(certificate: Certificate, tmp_path) -> None:
    other = Certificate.make(tmp_path / "other")
    with arena_of("tls", certificate) as arena:
        target = arena.target
        assert isinstance(target, TcpTarget)
        suspicious = TcpTarget("127.0.0.1", target.port, TOKEN, other.client_context())
        with opened(suspicious) as placement, pytest.raises(NetworkError, match="certificate verify failed"):
            put(placement, arena.lease(), 0, b"hello")
        with opened(target) as placement:
            assert arena.chunk_passes(placement)


def _frame(kind: FrameKind, ref: SlotRef, offset: int, payload: bytes, checksum: int | None = None) -> bytes:
    found = xxhash.xxh3_64_intdigest(payload) if checksum is None else checksum
    return pack_frame(PlacementFrame(kind, ref, offset, len(payload), found)) + payload


BAD_STREAMS: dict[str, tuple[Callable[[SlotRef], bytes], str]] = {
    "garbage instead of a greeting": (lambda ref: b"GET / HTTP/1.1\r\n" * 8, "not a placement stream"),
    "garbage instead of a frame": (lambda ref: pack_greeting(TOKEN) + b"\xaa" * 48, "not a placement frame"),
    "a kind that there is not": (
        lambda ref: pack_greeting(TOKEN) + b"SSPF\x09" + _frame(FrameKind.FINISH, ref, 0, b"")[5:],
        "kind 9",
    ),
    "a checksum that does not match": (
        lambda ref: pack_greeting(TOKEN) + _frame(FrameKind.DATA, ref, 0, b"bits", checksum=1),
        "checksum",
    ),
    "bytes outside the slot": (
        lambda ref: pack_greeting(TOKEN) + _frame(FrameKind.DATA, ref, SLOT_BYTES - 1, b"bits"),
        f"of a slot of {SLOT_BYTES} bytes",
    ),
    "an offset that wraps around": (
        lambda ref: pack_greeting(TOKEN) + _frame(FrameKind.DATA, ref, (1 << 64) - 2, b"bits"),
        "of a slot of",
    ),
    "an end with a payload": (
        lambda ref: pack_greeting(TOKEN) + _frame(FrameKind.FINISH, ref, 0, b"bits"),
        "FINISH with 4 bytes",
    ),
    "an end before all bytes": (
        lambda ref: (
            pack_greeting(TOKEN) + _frame(FrameKind.DATA, ref, 0, b"bits") + _frame(FrameKind.FINISH, ref, 8, b"")
        ),
        "4 bytes came, 8 were sent",
    ),
    "a hang-up in the middle of a frame": (
        lambda ref: pack_greeting(TOKEN) + _frame(FrameKind.DATA, ref, 0, b"b" * 100)[:-50],
        "hung up in the middle of a frame",
    ),
    "a hang-up in the middle of a frame's header": (
        lambda ref: pack_greeting(TOKEN) + _frame(FrameKind.DATA, ref, 0, b"")[:20],
        "hung up in the middle of a frame",
    ),
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_a_sender_that_breaks_the_rules_is_hung_up_on_and_others_go_on(
    name: str, tcp: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    make, words = BAD_STREAMS[name]
    ref, victim = tcp.lease(), tcp.lease()
    target = tcp.target
    assert isinstance(target, TcpTarget)
    with opened(target) as good, socket.create_connection(("127.0.0.1", target.port), 5) as bad:
        put(good, ref, 0, b"be")
        bad.sendall(make(victim))
        with suppress(OSError):  # it may have hung up already
            bad.shutdown(socket.SHUT_WR)
        assert all(iter(lambda: _receive(bad), b"")), "the receiver hangs up"
        put(good, ref, 2, b"fore")
        good.finish(ref, 6)
        tcp.wait_finished(ref)
        wait_until(lambda: any(words in record.getMessage() for record in caplog.records), f"the words {words!r}")
        assert tcp.chunk_passes(good)
    tcp.landing.revoke(victim.lease)
    wait_until(lambda: tcp.landing.count()[SlotState.QUARANTINED] == 0, "nobody writes for the victim any more")
    assert victim not in tcp.finished()
    assert all(record.levelno <= logging.WARNING for record in caplog.records)


def _receive(stream: socket.socket) -> bytes:
    try:
        return stream.recv(4096)
    except ConnectionResetError:  # bytes that it had not read make a hang-up a reset
        return b""


def test_a_lost_connection_fails_the_chunks_it_cut_off_and_no_others(certificate: Certificate) -> None:
    with arena_of("tcp", certificate) as arena:
        target = arena.target
        assert isinstance(target, TcpTarget)
        cut_off, also_cut_off, later = arena.lease(), arena.lease(), arena.lease()
        ends: list[SlotRef] = []
        landing, port = arena.landing, free_port()
        with opened(TcpTarget("127.0.0.1", port, TOKEN)) as placement:
            with receiver_of(landing, ends.append, port=port):
                put(placement, cut_off, 0, b"half")
                put(placement, also_cut_off, 0, b"half")
                wait_until(lambda: arena.slot(also_cut_off.slot)[:4] == b"half", "both came")
            with receiver_of(landing, ends.append, port=port):
                with pytest.raises(NetworkError):
                    put_until_refused(placement, cut_off, 4, b"more")
                placement.abort(cut_off)
                put(placement, later, 0, b"new")
                with pytest.raises(NetworkError, match="in the middle of this chunk"):
                    put(placement, also_cut_off, 4, b"rest")
                with pytest.raises(NetworkError, match="in the middle of this chunk"):
                    placement.finish(also_cut_off, 8)
                placement.abort(also_cut_off)
                placement.finish(later, 3)
                wait_until(lambda: ends == [later], "the chunk that began later")


def test_a_receiver_that_was_restarted_between_chunks_costs_no_chunk(certificate: Certificate) -> None:
    for tls in (None, certificate):
        landing, port, ends = LandingBuffer(SLOTS * SLOT_BYTES), free_port(), []
        landing.carve(SLOT_BYTES)
        context = tls.client_context() if tls else None
        with opened(TcpTarget("127.0.0.1", port, TOKEN, context)) as placement:
            for number in range(2):
                with receiver_of(landing, ends.append, tls, port):
                    ref = landing.lease(b"engine")
                    assert ref is not None
                    put(placement, ref, 0, b"whole")
                    placement.finish(ref, 5)
                    wait_until(lambda ref=ref, ends=ends: ref in ends, f"chunk {number}")


def test_a_receiver_that_takes_nothing_any_more_is_a_network_error(certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        release = threading.Event()
        silent = threading.Thread(target=_welcome_and_stall, args=(server, release))
        silent.start()
        with opened(TcpTarget("127.0.0.1", port, TOKEN, send_timeout=0.1)) as placement:
            with pytest.raises(NetworkError, match="takes nothing any more"):
                put_until_refused(placement, SlotRef(0, 1), 0, b"x" * (1 << 20))
            release.set()
        silent.join(5)


@pytest.mark.parametrize("error", [DeadlineExceeded, Cancelled])
def test_whoever_places_waits_for_a_stalled_receiver_no_longer_than_it_wants(
    error: type[Exception], tcp: Arena
) -> None:
    patience = Patience(Deadline.after(0)) if error is DeadlineExceeded else Patience(cancelled=lambda: True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        release = threading.Event()
        silent = threading.Thread(target=_welcome_and_stall, args=(server, release))
        silent.start()
        with opened(TcpTarget("127.0.0.1", server.getsockname()[1], TOKEN, send_timeout=60.0)) as placement:
            put(placement, SlotRef(0, 1), 0, b"x")
            placement.wait_as_long_as(patience)
            with pytest.raises(error):
                put_until_refused(placement, SlotRef(0, 1), 1, b"x" * (1 << 20))
            placement.abort(SlotRef(0, 1))
            release.set()
        silent.join(5)


def test_a_receiver_that_stalled_is_left_alone_for_a_while() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = TcpTarget("127.0.0.1", server.getsockname()[1], TOKEN, connect_timeout=0.05)
        with opened(target) as placement:
            for number, words in enumerate(("timed out", "stalled a moment ago")):
                with pytest.raises(NetworkError, match=words):
                    put(placement, SlotRef(number, number + 1), 0, b"hello")


def _welcome_and_stall(server: socket.socket, release: threading.Event) -> None:
    stream, _ = server.accept()
    with stream:
        stream.recv(frames.GREETING_BYTES)
        stream.sendall(frames.pack_answer(frames.Verdict.WELCOME))
        release.wait(10)


def test_closing_the_receiver_hangs_up_on_everybody(network: Arena, certificate: Certificate) -> None:
    landing, ends = LandingBuffer(SLOTS * SLOT_BYTES), []
    landing.carve(SLOT_BYTES)
    target = network.target
    assert isinstance(target, TcpTarget)
    tls = certificate if target.tls else None
    before = threading.active_count()
    with receiver_of(landing, ends.append, tls) as receiver:
        placements = [TcpTarget("127.0.0.1", receiver.port, TOKEN, target.tls).open() for _ in range(3)]
        for placement in placements:
            ref = landing.lease(b"engine")
            assert ref is not None
            put(placement, ref, 0, b"part")
        wait_until(lambda: threading.active_count() >= before + 4, "every sender has its thread")
    wait_until(lambda: threading.active_count() <= before, "its threads have ended")
    for placement in placements:
        placement.close()


# Loopback's faults


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.FAIL, Fault.DISCONNECT])
def test_a_loopback_fault_is_a_network_error_at_the_latest_at_the_end(fault: Fault, certificate: Certificate) -> None:
    with arena_of("loopback", certificate) as arena:
        target = LoopbackTarget(arena.landing, FaultPlan({1: fault}))
        ref = arena.lease()
        with opened(target) as placement:
            put(placement, ref, 0, b"first")
            with pytest.raises(NetworkError, match="loopback"):
                _put_and_finish(placement, ref)
            placement.abort(ref)
            if fault is Fault.DISCONNECT:
                with pytest.raises(NetworkError, match="disconnected"):
                    placement.reserve(ref, 0, 1)
                target.connected = True
            put(placement, ref, 0, b"first")
            placement.finish(ref, 5)
    assert target.finished == [ref]


def _put_and_finish(placement, ref: SlotRef) -> None:
    put(placement, ref, 5, b"second")
    placement.finish(ref, 11)


def test_a_loopback_can_change_one_bit() -> None:
    landing = LandingBuffer(SLOT_BYTES)
    landing.carve(SLOT_BYTES)
    ref = landing.lease(b"engine")
    assert ref is not None
    with opened(LoopbackTarget(landing, FaultPlan({0: Fault.CORRUPT}))) as placement:
        put(placement, ref, 0, bytes(11))
    assert sum(byte.bit_count() for byte in bytes(landing._view(0))) == 1


@pytest.mark.parametrize("error", [DeadlineExceeded, Cancelled])
def test_a_loopback_waits_at_its_gate_as_long_as_it_is_told(error: type[Exception]) -> None:
    patience = Patience(Deadline.after(0.01)) if error is DeadlineExceeded else Patience(cancelled=lambda: True)
    landing = LandingBuffer(SLOT_BYTES)
    landing.carve(SLOT_BYTES)
    with opened(LoopbackTarget(landing, FaultPlan(gate=threading.Event(), gate_seconds=60.0))) as placement:
        placement.wait_as_long_as(patience)
        with pytest.raises(error):
            put(placement, SlotRef(0, 1), 0, b"never")


def test_a_loopback_waits_at_its_gate_and_and_says_when_it_never_opens() -> None:
    landing = LandingBuffer(SLOT_BYTES)
    landing.carve(SLOT_BYTES)
    ref = landing.lease(b"engine")
    assert ref is not None
    gate = threading.Event()
    with opened(LoopbackTarget(landing, FaultPlan(gate=gate, gate_seconds=0.01))) as placement:
        with pytest.raises(NetworkError, match="gate did not open"):
            put(placement, ref, 0, b"late")
        gate.set()
        put(placement, ref, 0, b"soon")
    assert bytes(landing._view(0))[:4] == b"soon"

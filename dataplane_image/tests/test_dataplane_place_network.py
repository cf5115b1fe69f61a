"""Placement over a network: connections that break, and senders and receivers that break the rules."""

import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
import xxhash
from placements import SLOT_BYTES, SLOTS, TOKEN, Arena, arena_of, opened, put, put_until_refused, receiver_of
from real_store import Certificate, wait_until

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, DeadlineExceeded, NetworkError, PeerProtocolError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef, SlotState
from shadowserve_dataplane.place import frames
from shadowserve_dataplane.place.base import Patience
from shadowserve_dataplane.place.frames import FrameKind, PlacementFrame, pack_frame, pack_greeting
from shadowserve_dataplane.place.tcp import TcpTarget
from shadowserve_lab.processes import free_port

EMPTY = bytes(SLOT_BYTES)
SECONDS = 60.0


@pytest.fixture(params=["tcp", "local", "tls"])
def network(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Arena]:
    with arena_of(request.param, certificate) as made:
        yield made


@pytest.fixture
def tcp(certificate: Certificate) -> Iterator[Arena]:
    with arena_of("tcp", certificate) as made:
        yield made


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
    stranger = replace(target, token=b"?" * 32)
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


def test_a_receiver_that_is_not_on_this_host_is_reached_by_tcp(tcp: Arena) -> None:
    assert isinstance(tcp.target, TcpTarget)
    with opened(replace(tcp.target, local="of-another-host")) as placement:
        assert tcp.chunk_passes(placement)


def test_a_receiver_with_tls_takes_nothing_in_the_clear(certificate: Certificate) -> None:
    landing = LandingBuffer(SLOTS * SLOT_BYTES)
    with receiver_of(landing, lambda ref: None, certificate) as receiver:
        assert receiver.local_name == ""


def test_another_version_is_told_by_number(tcp: Arena) -> None:
    target, greeting = tcp.target, pack_greeting(TOKEN)
    assert isinstance(target, TcpTarget)
    with socket.create_connection(("127.0.0.1", target.port), SECONDS) as newer:
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
        answering.join(SECONDS)


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
    with opened(target) as good, socket.create_connection(("127.0.0.1", target.port), SECONDS) as bad:
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
        silent.join(SECONDS)


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
        silent.join(SECONDS)


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
        release.wait(SECONDS)


def test_closing_the_receiver_hangs_up_on_everybody(network: Arena, certificate: Certificate) -> None:
    landing, ends = LandingBuffer(SLOTS * SLOT_BYTES), []
    landing.carve(SLOT_BYTES)
    target = network.target
    assert isinstance(target, TcpTarget)
    tls = certificate if target.tls else None
    before = set(threading.enumerate())  # of other tests, whose threads may still be ending
    with receiver_of(landing, ends.append, tls) as receiver:
        placements = [TcpTarget("127.0.0.1", receiver.port, TOKEN, target.tls).open() for _ in range(3)]
        for placement in placements:
            ref = landing.lease(b"engine")
            assert ref is not None
            put(placement, ref, 0, b"part")
        wait_until(lambda: len(set(threading.enumerate()) - before) >= 4, "every sender has its thread")
    wait_until(lambda: not set(threading.enumerate()) - before, "its threads have ended")
    for placement in placements:
        placement.close()

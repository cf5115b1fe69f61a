"""What every placement promises, and the faults that the loopback can have."""

import threading
from collections.abc import Iterator

import pytest
from placements import KINDS, SLOT_BYTES, SLOTS, TOKEN, Arena, arena_of, opened, put, put_until_refused, receiver_of
from real_store import Certificate, wait_until

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, DeadlineExceeded, NetworkError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef, SlotState
from shadowserve_dataplane.place.base import Patience
from shadowserve_dataplane.place.loopback import Fault, FaultPlan, LoopbackTarget
from shadowserve_dataplane.place.tcp import TcpTarget

EMPTY = bytes(SLOT_BYTES)


@pytest.fixture(params=KINDS)
def arena(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Arena]:
    with arena_of(request.param, certificate) as made:
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

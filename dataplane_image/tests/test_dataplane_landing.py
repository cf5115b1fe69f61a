"""The landing buffer: bytes of one fetch never reach a slot that was given to another."""

import stat
import threading
from pathlib import Path

import pytest
from shadowserve_dataplane.errors import Cancelled, SettingsError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef, SlotState

PAGE = 4096


def buffer_of(slots: int) -> LandingBuffer:
    landing = LandingBuffer(slots * PAGE)
    landing.carve(PAGE)
    return landing


def lease(landing: LandingBuffer, owner: bytes = b"engine") -> SlotRef:
    ref = landing.lease(owner)
    assert ref is not None
    return ref


def test_slots_are_lent_until_none_is_left() -> None:
    landing = buffer_of(2)
    first, second = lease(landing), lease(landing)
    assert landing.lease(b"engine") is None
    landing.release(first.lease)
    assert lease(landing).slot == first.slot
    assert second.slot != first.slot


def test_a_lease_number_is_never_used_again() -> None:
    landing = buffer_of(1)
    seen = set()
    for _ in range(100):
        ref = lease(landing)
        seen.add(ref.lease)
        landing.release(ref.lease)
    assert len(seen) == 100


def test_what_another_owner_left_is_zeroed() -> None:
    landing = buffer_of(1)
    ref = lease(landing, b"one")
    with landing.writer(ref) as slot:
        slot[:6] = b"secret"
    landing.release(ref.lease)
    again = lease(landing, b"one")
    with landing.writer(again) as slot:
        assert bytes(slot[:6]) == b"secret"
    landing.release(again.lease)
    with landing.writer(lease(landing, b"other")) as slot:
        assert not any(slot)


@pytest.mark.parametrize("end", ["revoke", "release", "hand_over"])
def test_nobody_writes_under_a_lease_that_ended(end: str) -> None:
    landing = buffer_of(1)
    ref = lease(landing)
    getattr(landing, end)(ref.lease)
    with pytest.raises(Cancelled):
        landing.enter(ref)
    assert not landing.open_for_writing(ref)


@pytest.mark.parametrize("ref", [SlotRef(0, 999), SlotRef(7, 1), SlotRef(-1, 1)])
def test_nobody_writes_under_a_lease_that_never_was(ref: SlotRef) -> None:
    landing = buffer_of(2)
    lease(landing)
    with pytest.raises(Cancelled):
        landing.enter(ref)


def test_a_revoked_slot_is_in_quarantine_until_its_last_writer_has_left() -> None:
    landing = buffer_of(1)
    ref = lease(landing)
    with landing.writer(ref):
        with landing.writer(ref):
            landing.revoke(ref.lease)
            assert landing.count()[SlotState.QUARANTINED] == 1
            assert landing.lease(b"engine") is None
        assert landing.lease(b"engine") is None
    assert lease(landing).lease != ref.lease


def test_ending_a_lease_twice_is_harmless() -> None:
    landing = buffer_of(1)
    ref = lease(landing)
    landing.revoke(ref.lease)
    landing.release(ref.lease)
    assert lease(landing).slot == 0
    landing.release(ref.lease)
    assert landing.count()[SlotState.FILLING] == 1


def test_a_buffer_too_small_for_one_slot_says_so() -> None:
    with pytest.raises(SettingsError, match="landingBuffer: 4096 bytes hold no slot of 8192"):
        LandingBuffer(PAGE).carve(PAGE + 1)


def test_slots_in_use_are_not_cut_anew() -> None:
    landing = buffer_of(4)
    lease(landing)
    assert landing.carve(PAGE) == 4
    with pytest.raises(SettingsError, match="still holds slots"):
        landing.carve(2 * PAGE)


def test_slots_cut_anew_do_not_show_what_was_there() -> None:
    landing = buffer_of(2)
    ref = lease(landing)
    with landing.writer(ref) as slot:
        slot[:] = b"x" * PAGE
    landing.release(ref.lease)
    landing.carve(2 * PAGE)
    with landing.writer(lease(landing)) as slot:
        assert not any(slot)


def test_the_file_has_the_size_and_mode_asked_for_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "landing"
    landing = LandingBuffer(3 * PAGE, path, mode=0o600)
    assert path.stat().st_size == 3 * PAGE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    landing.carve(PAGE)
    with landing.writer(lease(landing)) as slot:
        slot[:2] = b"hi"
    assert path.read_bytes()[:2] == b"hi"
    landing.close()
    assert not path.exists()


def test_threads_never_meet_in_a_slot() -> None:
    """Writers whose leases are revoked under them, and others that get the slots: nobody sees another's bytes."""
    landing = buffer_of(3)
    mixed: list[bytes] = []

    def work(name: int) -> None:
        for _ in range(300):
            ref = landing.lease(b"engine")
            if ref is None:
                continue
            try:
                with landing.writer(ref) as slot:
                    slot[:] = bytes([name]) * PAGE
                    landing.revoke(ref.lease)
                    if set(slot) != {name}:
                        mixed.append(bytes(slot))
            except Cancelled:
                mixed.append(b"a fresh lease was not open")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not mixed
    assert landing.count()[SlotState.FREE] == 3

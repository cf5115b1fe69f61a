"""The landing buffer: whose slot it is, who may write, and what the next owner sees."""

import mmap
import random
import stat
import threading
from pathlib import Path

import pytest

from shadowserve_dataplane.errors import Cancelled, SettingsError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef, SlotState

PAGE = mmap.PAGESIZE


def carved(slots: int = 3) -> LandingBuffer:
    landing = LandingBuffer(slots * PAGE)
    assert landing.carve(PAGE) == slots
    return landing


def leased(landing: LandingBuffer, owner: bytes = b"engine") -> SlotRef:
    ref = landing.lease(owner)
    assert ref is not None
    return ref


def fill(landing: LandingBuffer, ref: SlotRef, byte: int) -> None:
    with landing.writer(ref) as view:
        view[:] = bytes([byte]) * len(view)


def content(landing: LandingBuffer, ref: SlotRef) -> bytes:
    with landing.writer(ref) as view:
        return bytes(view)


def test_carving_gives_page_aligned_slots_and_twice_the_same_is_fine() -> None:
    landing = LandingBuffer(10 * PAGE)
    assert landing.carve(PAGE + 1) == 5
    assert landing.slot_bytes == 2 * PAGE
    leased(landing)
    assert landing.carve(2 * PAGE) == 5
    assert landing.slots == 5


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_that_are_not_positive_are_refused(size: int) -> None:
    with pytest.raises(SettingsError, match="landingBuffer"):
        LandingBuffer(size)
    with pytest.raises(SettingsError, match="landingBuffer"):
        LandingBuffer(PAGE).carve(size)


def test_a_buffer_too_small_for_one_slot_says_so() -> None:
    with pytest.raises(SettingsError, match=f"{PAGE} bytes hold no slot of {2 * PAGE}; make it larger"):
        LandingBuffer(PAGE).carve(2 * PAGE)


def test_slots_in_use_are_not_cut_anew() -> None:
    landing = carved(4)
    ref = leased(landing)
    with pytest.raises(SettingsError, match="another model still holds slots"):
        landing.carve(2 * PAGE)
    with landing.writer(ref):
        landing.revoke(ref.lease)
        with pytest.raises(SettingsError, match="still holds slots"):
            landing.carve(2 * PAGE)
    assert landing.carve(2 * PAGE) == 2


def test_slots_cut_anew_show_nothing_of_what_was_there() -> None:
    landing = carved(2)
    for _ in range(2):
        fill(landing, leased(landing), 0xAA)
    for lease in (1, 2):
        landing.release(lease)
    landing.carve(2 * PAGE)
    assert content(landing, leased(landing)) == bytes(2 * PAGE)


@pytest.mark.parametrize("heir", [b"other", b""])
def test_another_owner_finds_zeros_the_same_owner_its_own_bytes(heir: bytes) -> None:
    landing = carved(1)
    first = leased(landing, b"one")
    fill(landing, first, 0x55)
    landing.hand_over(first.lease)
    landing.release(first.lease)
    again = leased(landing, b"one")
    assert content(landing, again) == b"\x55" * PAGE, "zeroing for the same owner would only cost time"
    landing.revoke(again.lease)
    assert content(landing, leased(landing, heir)) == bytes(PAGE)


def test_an_owner_without_a_name_is_an_owner_too() -> None:
    landing = carved(1)
    ref = leased(landing, b"")
    fill(landing, ref, 1)
    landing.release(ref.lease)
    assert content(landing, leased(landing, b"one")) == bytes(PAGE)


def test_lease_numbers_are_never_used_again() -> None:
    landing = carved(2)
    seen = set()
    for _ in range(50):
        refs = [leased(landing), leased(landing)]
        assert landing.lease(b"engine") is None, "there are only two"
        seen |= {ref.lease for ref in refs}
        for ref in refs:
            landing.release(ref.lease)
    assert len(seen) == 100
    assert 0 not in seen


def test_only_an_open_lease_is_written_under() -> None:
    landing = carved()
    ref = leased(landing)
    for wrong in (SlotRef(ref.slot, ref.lease + 1), SlotRef(ref.slot + 1, ref.lease), SlotRef(-1, 1), SlotRef(99, 1)):
        with pytest.raises(Cancelled, match="not open for writing"):
            landing.enter(wrong)
        assert not landing.open_for_writing(wrong)
    assert landing.open_for_writing(ref)
    landing.hand_over(ref.lease)
    assert not landing.open_for_writing(ref)
    with pytest.raises(Cancelled):
        landing.enter(ref)


def test_a_revoked_slot_waits_in_quarantine_for_its_last_writer() -> None:
    landing = carved(1)
    ref = leased(landing)
    landing.enter(ref)
    landing.enter(ref)
    landing.revoke(ref.lease)
    with pytest.raises(Cancelled):
        landing.enter(ref)
    assert landing.lease(b"other") is None
    landing.leave(ref)
    assert landing.lease(b"other") is None
    assert landing.count()[SlotState.QUARANTINED] == 1
    landing.leave(ref)
    assert landing.count()[SlotState.QUARANTINED] == 0
    assert leased(landing, b"other").slot == ref.slot


def test_a_writer_that_fails_leaves_too() -> None:
    landing = carved(1)
    ref = leased(landing)

    def fail() -> None:
        with landing.writer(ref):
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        fail()
    landing.revoke(ref.lease)
    assert landing.count()[SlotState.FREE] == 1


def test_ending_a_lease_twice_does_nothing_to_its_successor() -> None:
    landing = carved(1)
    first = leased(landing)
    landing.release(first.lease)
    second = leased(landing)
    for end in (landing.release, landing.revoke, landing.hand_over):
        end(first.lease)
        end(12345)
    assert landing.open_for_writing(second)
    assert landing.count()[SlotState.FREE] == 0
    landing.enter(second)
    landing.revoke(second.lease)
    landing.release(second.lease)
    landing.revoke(second.lease)
    landing.leave(second)
    assert landing.count()[SlotState.FREE] == 1
    assert leased(landing).lease > second.lease
    assert landing.lease(b"engine") is None, "a slot ended twice must not be lent twice"


def test_counts_tell_every_state() -> None:
    landing = carved(4)
    _filling, landed, quarantined = leased(landing), leased(landing), leased(landing)
    landing.hand_over(landed.lease)
    landing.enter(quarantined)
    landing.revoke(quarantined.lease)
    assert landing.count() == dict.fromkeys(SlotState, 1)
    assert [state.value for state in SlotState] == ["free", "filling", "landed", "quarantined"]


def test_the_file_has_its_mode_and_size_and_shows_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "landing"
    path.write_text("left by a sidecar that crashed")
    landing = LandingBuffer(3 * PAGE + 5, path, 0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_size == 3 * PAGE + 5
    assert path.stat().st_blocks * 512 >= 3 * PAGE, "its pages are there, not promised"
    assert landing.carve(PAGE) == 3
    ref = leased(landing)
    fill(landing, ref, 7)
    assert path.read_bytes()[ref.slot * PAGE : (ref.slot + 1) * PAGE] == b"\x07" * PAGE
    landing.close()
    landing.close()
    assert not path.exists()
    assert content(landing, ref) == b"\x07" * PAGE, "the mapping stays"


def test_a_file_system_without_room_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "landing"
    with pytest.raises(SettingsError, match="landingBuffer: no room for"):
        LandingBuffer(1 << 60, path)
    assert not path.exists()


class Disturbed(AssertionError):
    """A slot held bytes of somebody else."""


def _one_fetch(landing: LandingBuffer, owner: int, rng: random.Random) -> SlotRef | None:
    """Lease, write everywhere, check that nobody else did, and end the lease in one of the ways there are."""
    ref = landing.lease(bytes([owner]))
    if ref is None:
        return None
    late = threading.Thread(target=_late_writer, args=(landing, ref, owner)) if rng.random() < 0.3 else None
    if late is not None:
        late.start()
    with landing.writer(ref) as view:
        if strangers := set(bytes(view)) - {0, owner}:
            raise Disturbed(f"slot {ref.slot} of {owner} holds bytes of {strangers}")
        view[:] = bytes([owner]) * len(view)
        if set(bytes(view)) != {owner}:
            raise Disturbed(f"slot {ref.slot} of {owner} was written by another")
    if rng.random() < 0.5:
        landing.hand_over(ref.lease)
        landing.release(ref.lease)
    landing.revoke(ref.lease)
    if late is not None:
        late.join()
    return ref


def _late_writer(landing: LandingBuffer, ref: SlotRef, owner: int) -> None:
    """Write as long as the lease is open, like a data plane that does not know yet that it was cancelled."""
    for _ in range(20):
        try:
            with landing.writer(ref) as view:
                view[:] = bytes([owner]) * len(view)
        except Cancelled:
            return


def test_owners_on_many_threads_never_see_one_another() -> None:
    landing = carved(3)
    leases: list[int] = []
    trouble: list[BaseException] = []

    def work(owner: int) -> None:
        rng = random.Random(owner)
        try:
            refs = [_one_fetch(landing, owner, rng) for _ in range(150)]
            leases.extend(ref.lease for ref in refs if ref is not None)
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=work, args=(owner,)) for owner in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not trouble
    assert len(leases) == len(set(leases)) > 100
    assert landing.count()[SlotState.FREE] == 3


def test_the_slot_freed_last_is_lent_first() -> None:
    landing = LandingBuffer(4 * PAGE)
    landing.carve(PAGE)
    first, second = leased(landing), leased(landing)
    landing.release(first.lease)
    landing.release(second.lease)
    assert leased(landing).slot == second.slot
    assert leased(landing).slot == first.slot


def test_cleaning_zeroes_what_others_left_and_nothing_else() -> None:
    landing = LandingBuffer(3 * PAGE)
    landing.carve(PAGE)
    mine, foreign = leased(landing, b"mine"), leased(landing, b"foreign")
    for ref in (mine, foreign):
        fill(landing, ref, 0xAA)
        landing.release(ref.lease)
    assert landing.clean_one(b"mine")
    assert not landing.clean_one(b"mine"), "nothing foreign is left"
    assert landing.count()[SlotState.FREE] == 3
    contents = {ref.slot: content(landing, ref) for ref in (leased(landing, b"mine") for _ in range(3))}
    assert contents[mine.slot] == b"\xaa" * PAGE
    assert contents[foreign.slot] == bytes(PAGE)


def test_slots_in_use_are_not_cleaned() -> None:
    landing = LandingBuffer(PAGE)
    landing.carve(PAGE)
    fill(landing, leased(landing, b"foreign"), 0xAA)
    assert not landing.clean_one(b"mine")

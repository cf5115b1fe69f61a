"""Loads and stores under way: when the engine is told that one is over, and what it may do with the blocks then."""

import itertools

import pytest

from shadowserve_dataplane.connector.plan import ChunkLoad, ChunkStore, LoadPlan
from shadowserve_dataplane.connector.transfers import EndedLoad, Loads, Stores


def plan(load: int = 1, chunks: int = 3) -> LoadPlan:
    return LoadPlan(
        load, f"request-{load}", tuple(ChunkLoad((bytes([i]),), (10 * i, 10 * i + 1)) for i in range(chunks))
    )


def ended(loads: Loads) -> list[EndedLoad]:
    return loads.take_ended()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_load_ends_when_every_chunk_is_scattered_in_any_order(order: tuple[int, ...]) -> None:
    loads = Loads()
    loads.begin(plan(), deadline=1.0)
    for index in order:
        assert not ended(loads)
        assert loads.claim(1, index) is not None
        assert not ended(loads)
        loads.settle(1, index, done=True)
    assert ended(loads) == [EndedLoad(1, "request-1", (), whole=True, all_answered=True)]
    assert not ended(loads)
    assert len(loads) == 0


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_load_ends_at_its_first_missing_chunk_once_those_before_it_are_there(missing: int) -> None:
    loads = Loads()
    loads.begin(plan(), deadline=1.0)
    assert loads.fail(1, missing)
    for index in range(missing):
        assert not ended(loads)
        loads.claim(1, index)
        loads.settle(1, index, done=True)
    (end,) = ended(loads)
    assert end.failed_blocks == tuple(block for i in range(missing, 3) for block in (10 * i, 10 * i + 1))
    assert not end.whole
    assert end.all_answered is (missing == 2)


def test_a_load_never_ends_while_a_chunk_of_it_is_being_scattered() -> None:
    loads = Loads()
    loads.begin(plan(), deadline=1.0)
    loads.claim(1, 2)
    loads.fail(1, 0)
    loads.cancel(1)
    loads.fail_pending(lambda deadline: True)
    assert not ended(loads)
    loads.settle(1, 2, done=True)
    assert len(ended(loads)) == 1


def test_a_cancelled_load_ends_without_failed_blocks_and_takes_no_chunk_any_more() -> None:
    loads = Loads()
    loads.begin(plan(), deadline=1.0)
    assert loads.cancel(1)
    assert loads.claim(1, 0) is None
    (end,) = ended(loads)
    assert end.failed_blocks == ()
    assert not loads.cancel(1)
    assert loads.claim(1, 0) is None


def test_only_overdue_loads_lose_their_pending_chunks() -> None:
    loads = Loads()
    loads.begin(plan(1), deadline=1.0)
    loads.begin(plan(2), deadline=2.0)
    loads.claim(1, 0)
    loads.settle(1, 0, done=True)
    assert loads.fail_pending(lambda deadline: deadline <= 1.5) == 2
    (end,) = ended(loads)
    assert end.load == 1
    assert end.failed_blocks == (10, 11, 20, 21)


def test_what_nobody_waits_for_is_not_claimed() -> None:
    loads = Loads()
    loads.begin(plan(), deadline=1.0)
    assert loads.claim(1, 3) is None
    assert loads.claim(2, 0) is None
    assert loads.claim(1, 0) is not None
    assert loads.claim(1, 0) is None
    assert not loads.fail(1, 0)
    assert not loads.fail(7, 0)


def store(number: int, request: str = "r") -> ChunkStore:
    return ChunkStore(number, request, (b"k",), (1, 2), first=False)


def waiting(*stores: ChunkStore) -> Stores:
    entries = Stores()
    entries.waiting.update((entry.store, entry) for entry in stores)
    return entries


def test_stores_are_read_oldest_first() -> None:
    stores = waiting(store(1), store(2))
    assert stores.claim() == store(1)
    assert stores.settle(1)
    assert stores.claim() == store(2)
    assert stores.claim() is None


def test_a_held_request_is_free_when_the_last_of_its_stores_was_read() -> None:
    stores = waiting(store(1), store(2), store(3, "other"))
    stores.hold("r", deadline=5.0)
    stores.claim()
    assert not stores.any_freed
    stores.settle(1)
    assert stores.take_freed() == set()
    stores.claim()
    stores.settle(2)
    assert stores.any_freed
    assert stores.take_freed() == {"r"}
    assert stores.take_freed() == set()


def test_a_request_without_stores_is_free_as_soon_as_it_is_held() -> None:
    stores = Stores()
    stores.hold("r", deadline=5.0)
    assert stores.take_freed() == {"r"}


def test_a_store_dropped_while_it_is_read_is_not_sound_and_holds_nobody() -> None:
    stores = waiting(store(1), store(2))
    stores.hold("r", deadline=5.0)
    stores.claim()
    assert sorted(stores.drop(lambda entry: entry.request == "r")) == [1, 2]
    assert stores.drop(lambda entry: True) == []
    assert stores.take_freed() == {"r"}
    assert not stores.settle(1)


def test_held_requests_are_overdue_after_their_time() -> None:
    stores = waiting(store(1))
    stores.hold("r", deadline=5.0)
    assert stores.overdue(4.9) == set()
    assert stores.overdue(5.0) == {"r"}

"""The pool of leased buffers, and deadlines."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from real_store import wait_until

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, DeadlineExceeded, SettingsError
from shadowserve_dataplane.pool import BufferPool


def test_slabs_are_writable_distinct_and_of_the_size_asked_for() -> None:
    pool = BufferPool(5000, 3, "test")
    leases = [pool.lease(Deadline.after(1)) for _ in range(3)]
    for number, lease in enumerate(leases):
        lease.view[:] = bytes([number]) * 5000
    assert [bytes(lease.view) for lease in leases] == [bytes([number]) * 5000 for number in range(3)]
    assert pool.free == 0


def test_a_lease_ends_once_and_its_view_with_it() -> None:
    pool = BufferPool(10, 1, "test")
    with pool.lease(Deadline.after(1)) as lease:
        assert pool.free == 0
    lease.release()
    assert pool.free == 1
    with pytest.raises(ValueError, match="released"):
        _ = lease.view


def test_an_empty_pool_says_so_at_once_or_at_the_deadline() -> None:
    pool = BufferPool(10, 1, "receive buffers")
    with pool.lease(Deadline.after(1)):
        assert pool.try_lease() is None
        with pytest.raises(DeadlineExceeded, match="receive buffers"):
            pool.lease(Deadline.after(0.01))
    assert pool.try_lease() is not None, "a waiter that gave up must not be handed the slab"


def test_waiters_are_served_in_the_order_they_came() -> None:
    pool = BufferPool(10, 1, "test")
    served: list[int] = []

    def wait(number: int) -> None:
        with pool.lease(Deadline.after(60)):
            served.append(number)

    held = pool.lease(Deadline.after(1))
    with ThreadPoolExecutor(4) as threads:
        for number in range(4):
            threads.submit(wait, number)
            wait_until(lambda wanted=number + 1: len(pool._waiters) == wanted, "the thread waits")
        held.release()
    assert served == [0, 1, 2, 3]
    assert pool.free == 1


def test_who_comes_late_does_not_overtake_a_waiter() -> None:
    pool = BufferPool(10, 1, "test")
    held = pool.lease(Deadline.after(1))
    got = threading.Event()
    release = threading.Event()

    def wait() -> None:
        with pool.lease(Deadline.after(60)):
            got.set()
            release.wait(60)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(wait)
        wait_until(lambda: len(pool._waiters) == 1, "the thread waits")
        held.release()
        assert pool.try_lease() is None
        assert got.wait(60)
        release.set()


def test_closing_wakes_waiters_and_refuses_further_leases() -> None:
    pool = BufferPool(10, 1, "test")
    held = pool.lease(Deadline.after(1))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.lease, Deadline.never())
        wait_until(lambda: len(pool._waiters) == 1, "the thread waits")
        pool.close()
        with pytest.raises(Cancelled):
            waiting.result(60)
    held.view[:] = bytes(10)  # what is out stays valid
    held.release()
    with pytest.raises(Cancelled):
        pool.try_lease()


def test_no_slab_is_lost_or_lent_twice_under_contention() -> None:
    pool = BufferPool(8, 3, "test")

    def work(number: int) -> bool:
        for _ in range(300):
            with pool.lease(Deadline.after(60)) as lease:
                lease.view[:] = number.to_bytes(8, "little")
                if bytes(lease.view) != number.to_bytes(8, "little"):
                    return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    assert pool.free == 3


@pytest.mark.parametrize(("size", "count"), [(0, 1), (1, 0), (-1, 1)])
def test_sizes_that_cannot_work_are_refused(size: int, count: int) -> None:
    with pytest.raises(SettingsError, match="receive"):
        BufferPool(size, count, "receive")


def test_a_deadline_counts_down_on_its_clock() -> None:
    now = 100.0
    deadline = Deadline.after(5, lambda: now)
    assert (deadline.remaining(), deadline.expired) == (5.0, False)
    now = 104.0
    assert deadline.remaining() == 1.0
    now = 105.0
    assert (deadline.remaining(), deadline.expired) == (0.0, True)
    assert deadline.remaining(lambda: 102.0) == 3.0


def test_the_earlier_deadline_is_the_smaller() -> None:
    early, late = Deadline.after(1), Deadline.after(2)
    assert min(late, early, Deadline.never()) is early
    assert not Deadline.never().expired

"""Bulk reads from real servers: bytes, clusters, back-pressure, cancellation."""

import threading
from collections.abc import Iterator

import pytest
from bulk_getters import SLAB, MakeGetter, fill, fill_cluster, key, requests, shard_of, soon
from chunk_sinks import RecordingSink
from held_clock import HeldClock
from real_store import RedisCluster, RedisServer

from shadowserve_dataplane.chunks import store_key
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import (
    Cancelled,
    ChunkDamaged,
    ChunkRefused,
    DeadlineExceeded,
    NetworkError,
)
from shadowserve_dataplane.store.bulk import BulkRequest
from shadowserve_dataplane.store.topology import slot_of


def test_values_of_all_sizes_and_missing_ones(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    sizes = dict(enumerate([0, 1, 2, 1023, 16_384, 16_385, 300_000, SLAB - 1, SLAB]))
    values = fill(redis_standalone, sizes)
    sink = getter_of(redis_standalone.settings()).get(requests(range(12)))
    assert sink.values == values
    assert sink.absent == {9, 10, 11}
    assert sink.errors == {}


def test_nothing_to_read_needs_no_store(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    getter = getter_of(redis_standalone.settings())
    redis_standalone.kill()
    assert getter.get([]).order == []


def test_a_value_larger_than_a_slab_is_refused_and_the_others_come(
    redis_standalone: RedisServer, getter_of: MakeGetter
) -> None:
    values = fill(redis_standalone, {0: 1000, 1: SLAB + 1, 2: 4 * SLAB, 3: 2000})
    sink = getter_of(redis_standalone.settings()).get(requests(range(4)))
    assert sink.values == {0: values[0], 3: values[3]}
    assert {index: type(error) for index, error in sink.errors.items()} == {1: ChunkRefused, 2: ChunkRefused}
    assert str(SLAB + 1) in str(sink.errors[1])


def test_requests_are_taken_only_when_there_is_room(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    fill(redis_standalone, dict.fromkeys(range(20), 100_000))
    sink = RecordingSink()
    ahead: list[int] = []

    def source() -> Iterator[BulkRequest]:
        for request in requests(range(20)):
            ahead.append(request.index - len(sink.order))
            yield request

    assert len(getter_of(redis_standalone.settings()).get(source(), sink=sink).values) == 20
    assert max(ahead) <= 2


def test_two_getters_share_the_requests_of_one_iterator(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    values = fill(redis_standalone, dict.fromkeys(range(40), 50_000))
    waiting = iter(requests(range(40)))
    lock = threading.Lock()

    def shared() -> Iterator[BulkRequest]:
        while True:
            with lock:
                request = next(waiting, None)
            if request is None:
                return
            yield request

    getters = [getter_of(redis_standalone.settings()) for _ in range(2)]
    sinks = [RecordingSink(), RecordingSink()]
    threads = [
        threading.Thread(target=getter.get, args=(shared(),), kwargs={"sink": sink})
        for getter, sink in zip(getters, sinks, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sinks[0].values | sinks[1].values == values
    assert not sinks[0].values.keys() & sinks[1].values.keys()


def test_all_shards_of_a_cluster(redis_cluster: RedisCluster, getter_of: MakeGetter) -> None:
    values = fill_cluster(redis_cluster, dict.fromkeys(range(30), 200_000))
    sink = getter_of(redis_cluster.settings()).get(requests(range(33)))
    assert sink.values == values
    assert sink.absent == {30, 31, 32}


def test_one_slab_is_enough_for_three_shards(redis_cluster: RedisCluster, getter_of: MakeGetter) -> None:
    values = fill_cluster(redis_cluster, dict.fromkeys(range(12), 300_000))
    assert getter_of(redis_cluster.settings(), slabs=1).get(requests(range(12))).values == values


def test_waits_for_a_slab_that_somebody_else_holds(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    values = fill(redis_standalone, {0: 500_000})
    getter = getter_of(redis_standalone.settings(), slabs=1)
    held = getter.buffers.lease(soon())
    looks = iter(range(1000))

    def release_after_some_looks() -> bool:
        if next(looks) == 20:
            held.release()
        return False

    assert getter.get(requests(range(1)), cancelled=release_after_some_looks).values == values


def test_no_slab_until_the_deadline(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    values = fill(redis_standalone, {0: 500_000, 1: 500_000})
    getter = getter_of(redis_standalone.settings(), slabs=1)
    sink = RecordingSink()
    with getter.buffers.lease(soon()):
        getter.bulk.get(requests(range(2)), sink, Deadline.after(0.1))
    assert {index: type(error) for index, error in sink.errors.items()} == dict.fromkeys(range(2), DeadlineExceeded)
    assert getter.get(requests(range(2))).values == values


def test_moved_while_reading(redis_cluster: RedisCluster, getter_of: MakeGetter) -> None:
    values = fill_cluster(redis_cluster, dict.fromkeys(range(20), 100_000))
    slot = slot_of(store_key(key(10)))
    target = next(shard for shard in redis_cluster.shards if shard is not shard_of(redis_cluster, 10))

    def source() -> Iterator[BulkRequest]:
        for request in requests(range(20)):
            if request.index == 10:
                redis_cluster.begin_migration(slot, target)
                redis_cluster.migrate_keys(slot, target, [store_key(key(10))])
                redis_cluster.end_migration(slot, target)
            yield request

    getter = getter_of(redis_cluster.settings())
    assert getter.get(source()).values == values
    assert getter.get(requests(range(20))).values == values


def test_ask_while_a_slot_migrates(redis_cluster: RedisCluster, getter_of: MakeGetter) -> None:
    values = fill_cluster(redis_cluster, dict.fromkeys(range(8), 100_000))
    slot = slot_of(store_key(key(3)))
    target = next(shard for shard in redis_cluster.shards if shard is not shard_of(redis_cluster, 3))
    redis_cluster.begin_migration(slot, target)
    getter = getter_of(redis_cluster.settings())
    assert getter.get(requests(range(8))).values == values, "not moved yet: the source still answers"
    redis_cluster.migrate_keys(slot, target, [store_key(key(3))])
    for _ in range(2):  # ASK is for one command only: the second time the source is asked first again
        assert getter.get(requests(range(8))).values == values
    redis_cluster.end_migration(slot, target)


def test_one_paused_shard_holds_up_only_its_own_chunks(redis_cluster: RedisCluster, getter_of: MakeGetter) -> None:
    values = fill_cluster(redis_cluster, dict.fromkeys(range(60), 20_000))
    getter = getter_of(redis_cluster.settings())
    getter.get(requests(range(60)))
    silent = redis_cluster.shards[1]
    theirs = {number for number in values if shard_of(redis_cluster, number) is silent}
    silent.pause()
    held, sink = HeldClock(), RecordingSink()

    def clock() -> float:
        if len(sink.values) == len(values) - len(theirs):
            held.let_go()
        return held()

    getter.get(requests(range(60)), Deadline.after(0.5, clock), sink=sink)
    assert sink.errors.keys() == theirs
    assert {type(error) for error in sink.errors.values()} == {DeadlineExceeded}
    assert sink.values.keys() == values.keys() - theirs
    assert set(sink.order[-len(theirs) :]) == theirs, "the others were there long before the deadline"
    silent.resume()
    assert getter.get(requests(range(60))).values == values


def test_a_store_that_accepts_and_never_answers(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    values = fill(redis_standalone, dict.fromkeys(range(5), 100_000))
    getter = getter_of(redis_standalone.settings())
    redis_standalone.pause()
    sink = getter.get(requests(range(5)), Deadline.after(0.2))
    assert {index: type(error) for index, error in sink.errors.items()} == dict.fromkeys(range(5), DeadlineExceeded)
    assert str(redis_standalone.address) in str(sink.errors[0])
    redis_standalone.resume()
    assert getter.get(requests(range(5))).values == values


def test_paused_in_the_middle_only_what_is_outstanding_is_lost(
    redis_standalone: RedisServer, getter_of: MakeGetter
) -> None:
    values = fill(redis_standalone, dict.fromkeys(range(8), 100_000))
    clock, sink = HeldClock(), RecordingSink()

    def source() -> Iterator[BulkRequest]:
        for request in requests(range(8)):
            if request.index == 5:
                redis_standalone.pause()
                clock.let_go()
            yield request

    getter = getter_of(redis_standalone.settings())
    getter.get(source(), Deadline.after(0.3, clock), sink=sink)
    assert sink.values.keys() | sink.errors.keys() == values.keys()
    assert sink.values.keys() >= {0, 1, 2, 3}
    assert {type(error) for error in sink.errors.values()} == {DeadlineExceeded}
    redis_standalone.resume()
    assert getter.get(requests(range(8))).values == values


def test_killed_store_then_restarted(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    getter = getter_of(redis_standalone.settings())
    assert getter.get(requests(range(3))).absent == {0, 1, 2}
    redis_standalone.kill()
    sink = getter.get(requests(range(30)))
    assert {index: type(error) for index, error in sink.errors.items()} == dict.fromkeys(range(30), NetworkError)
    redis_standalone.start()
    values = fill(redis_standalone, {1: 1000})
    assert getter.get(requests(range(3))).values == values


def test_killed_and_restarted_during_one_read(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    fill(redis_standalone, dict.fromkeys(range(4), 1000))

    def source() -> Iterator[BulkRequest]:
        for request in requests(range(10)):
            if request.index == 5:
                redis_standalone.kill()
                redis_standalone.start()
            yield request

    sink = getter_of(redis_standalone.settings()).get(source())
    assert sink.errors == {}
    assert sink.absent >= set(range(5, 10)), "asked again on the new connection"


def test_a_dead_shard_fails_its_chunks_soon_and_no_others(redis_cluster: RedisCluster, getter_of: MakeGetter) -> None:
    values = fill_cluster(redis_cluster, dict.fromkeys(range(30), 20_000))
    getter = getter_of(redis_cluster.settings())
    getter.get(requests(range(30)))
    dead = redis_cluster.shards[2]
    theirs = {number for number in values if shard_of(redis_cluster, number) is dead}
    dead.kill()
    sink = getter.get(requests(range(30)))
    assert sink.errors.keys() == theirs
    assert {type(error) for error in sink.errors.values()} == {NetworkError}
    assert sink.values.keys() == values.keys() - theirs


def test_cancelled_in_the_middle_of_a_value(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    values = fill(redis_standalone, dict.fromkeys(range(10), SLAB))
    sink = RecordingSink()
    seen: list[int] = []
    sink.on_received = lambda index, view, available: seen.append(index)
    getter = getter_of(redis_standalone.settings())
    getter.get(requests(range(10)), sink=sink, cancelled=lambda: 3 in seen and 3 not in sink.values)
    assert sink.values.keys() == {0, 1, 2}
    assert {index: type(error) for index, error in sink.errors.items()} == dict.fromkeys(range(3, 10), Cancelled)
    assert getter.get(requests(range(10))).values == values


def test_a_chunk_the_sink_finds_damaged_fails_alone(redis_standalone: RedisServer, getter_of: MakeGetter) -> None:
    values = fill(redis_standalone, dict.fromkeys(range(6), 600_000))
    sink = RecordingSink()
    told: list[int] = []

    def complain(index: int, view: memoryview, available: int) -> None:
        if index == 2:
            told.append(available)
            raise ChunkDamaged("frame 0", 1, 2)

    def refuse(index: int, size: int) -> None:
        if index == 4:
            raise ChunkRefused("an unknown version")

    sink.on_received, sink.on_begin = complain, refuse
    getter_of(redis_standalone.settings()).get(requests(range(6)), sink=sink)
    assert {index: type(error) for index, error in sink.errors.items()} == {2: ChunkDamaged, 4: ChunkRefused}
    assert sink.values == {index: values[index] for index in (0, 1, 3, 5)}
    assert len(told) == 1, "no more of that chunk after it failed"


def test_a_mistake_in_the_sink_reaches_the_caller_and_the_getter_works_on(
    redis_standalone: RedisServer, getter_of: MakeGetter
) -> None:
    values = fill(redis_standalone, dict.fromkeys(range(4), 300_000))
    getter = getter_of(redis_standalone.settings())
    sink = RecordingSink()

    def stumble(index: int, view: memoryview, available: int) -> None:
        raise ZeroDivisionError

    sink.on_received = stumble
    with pytest.raises(ZeroDivisionError):
        getter.get(requests(range(4)), sink=sink)
    assert getter.get(requests(range(4))).values == values

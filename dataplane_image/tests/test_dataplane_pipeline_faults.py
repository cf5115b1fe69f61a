"""The pipeline when things go wrong in the middle of a chunk, and what it costs in memory when nothing does."""

import threading
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from held_clock import HeldClock
from pipeline_bench import SECONDS, SHAPE, PipelineBench, Results, StoredChunk, make_stored, put
from placements import TOKEN, receiver_of
from real_store import RedisCluster, RedisServer, wait_until

from shadowserve_dataplane.chunks import ChunkKey, KvShape, store_key
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.pipeline import Pipeline, PipelineSettings
from shadowserve_dataplane.fetch.placements import MAX_OPEN, PlacementShelf
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.fetch.restore import DecoderShelf
from shadowserve_dataplane.landing import LandingBuffer, SlotRef, SlotState
from shadowserve_dataplane.place.loopback import Fault, FaultPlan, LoopbackPlacement, LoopbackTarget
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.place.tcp import TcpTarget
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.topology import slot_of
from shadowserve_lab.processes import free_port

LANDED = ChunkOutcome.LANDED
BIG = KvShape(layers=16, kv_heads=8, head_dim=64)
"""Chunks of 8 MiB: more than the sockets between here and the store can hold."""


def keys_of(chunks: Sequence[StoredChunk]) -> list[ChunkKey]:
    return [chunk.key for chunk in chunks]


def put_sharded(cluster: RedisCluster, chunks: Sequence[StoredChunk]) -> None:
    for chunk in chunks:
        shard_of(cluster, chunk).admin("SET", store_key(chunk.key), chunk.encoded)


def shard_of(cluster: RedisCluster, chunk: StoredChunk) -> RedisServer:
    return cluster.owner(slot_of(store_key(chunk.key)))


def big_bench(store: RedisServer) -> PipelineBench:
    return PipelineBench(store.settings(), workers=1, slots=2, shape=BIG)


def test_a_store_that_dies_in_the_middle_of_a_chunk_fails_it_and_serves_again_later(
    redis_standalone: RedisServer,
) -> None:
    chunks = make_stored(2, shape=BIG)
    put(redis_standalone, chunks)
    gate = threading.Event()
    with big_bench(redis_standalone) as bench:
        target = Watched(bench.landing, FaultPlan(gate=gate, gate_seconds=SECONDS))
        job = bench.job(keys_of(chunks))
        results = bench.fetch(job, target)
        wait_until(target.waiting.is_set, "the first frame to be placed", SECONDS)
        redis_standalone.kill()
        gate.set()
        assert results.outcomes() == [ChunkOutcome.STORE_ERROR] * 2
        assert not target.finished
        bench.end(job)
        redis_standalone.start()
        put(redis_standalone, chunks)
        again = bench.job(keys_of(chunks))
        assert bench.fetch(again).outcomes() == [LANDED] * 2
        assert np.array_equal(bench.landed(again, 1), chunks[1].values)


class Watched(LoopbackTarget):
    """Tells when somebody came to its gate."""

    def __init__(self, landing: LandingBuffer, faults: FaultPlan) -> None:
        super().__init__(landing, faults)
        self.waiting = threading.Event()

    def open(self) -> "WatchedPlacement":
        return WatchedPlacement(self)


class WatchedPlacement(LoopbackPlacement):
    """Says that it came to the gate before it waits there."""

    def __init__(self, target: Watched) -> None:
        super().__init__(target)
        self._watched = target

    def commit(self, ref: SlotRef, offset: int, length: int) -> None:
        self._watched.waiting.set()
        super().commit(ref, offset, length)


def test_a_store_that_stalls_in_the_middle_of_a_chunk_costs_the_deadline(redis_standalone: RedisServer) -> None:
    chunks = make_stored(2, shape=BIG)
    put(redis_standalone, chunks)
    gate = threading.Event()
    with big_bench(redis_standalone) as bench:
        target = Watched(bench.landing, FaultPlan(gate=gate, gate_seconds=SECONDS))
        clock = HeldClock()
        job = bench.job(keys_of(chunks), seconds=0.3, clock=clock)
        results = bench.fetch(job, target)
        wait_until(target.waiting.is_set, "the first frame to be placed", SECONDS)
        redis_standalone.pause()
        clock.let_go()
        gate.set()
        assert results.outcomes() == [ChunkOutcome.DEADLINE] * 2
        redis_standalone.resume()
        bench.end(job)
        assert bench.fetch(bench.job(keys_of(chunks))).outcomes() == [LANDED] * 2


def test_a_stalled_shard_holds_up_only_its_own_chunks(redis_cluster: RedisCluster) -> None:
    chunks = make_stored(12)
    put_sharded(redis_cluster, chunks)
    stalled = shard_of(redis_cluster, chunks[0])
    slow = [index for index, chunk in enumerate(chunks) if shard_of(redis_cluster, chunk) is stalled]
    with PipelineBench(redis_cluster.settings(), slots=24) as bench:
        warm = bench.job(keys_of(chunks))
        assert bench.fetch(warm).outcomes() == [LANDED] * 12
        bench.end(warm)
        stalled.pause()
        clock = HeldClock()
        job = bench.job(keys_of(chunks), seconds=0.3, clock=clock)
        results = bench.fetch(job)
        wait_until(lambda: len(results.seen) == 12 - len(slow), "the other shards' chunks", SECONDS)
        assert all(result.outcome is LANDED and result.index not in slow for result in results.seen)
        clock.let_go()
        outcomes = results.outcomes()
        assert [index for index, outcome in enumerate(outcomes) if outcome is ChunkOutcome.DEADLINE] == slow
        stalled.resume()
        bench.end(job)
        assert bench.fetch(bench.job(keys_of(chunks))).outcomes() == [LANDED] * 12


def test_a_damaged_chunk_of_one_shard_leaves_its_slot_at_once(redis_cluster: RedisCluster) -> None:
    chunks = make_stored(9)
    put_sharded(redis_cluster, chunks)
    for chunk in chunks[::2]:
        middle = len(chunk.encoded) // 2
        damaged = chunk.encoded[:middle] + bytes([chunk.encoded[middle] ^ 1]) + chunk.encoded[middle + 1 :]
        shard_of(redis_cluster, chunk).admin("SET", store_key(chunk.key), damaged)
    with PipelineBench(redis_cluster.settings()) as bench:
        for _ in range(5):
            job = bench.job(keys_of(chunks))
            outcomes = bench.fetch(job).outcomes()
            assert outcomes == [ChunkOutcome.DAMAGED, LANDED] * 4 + [ChunkOutcome.DAMAGED]
            bench.end(job)
            assert bench.landing.count()[SlotState.FREE] == bench.slots, "nobody counts as a writer any more"


def test_a_placement_that_loses_its_connection_fails_what_is_left_and_recovers(redis_standalone: RedisServer) -> None:
    chunks = make_stored(5)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings(), workers=1) as bench:
        target = LoopbackTarget(bench.landing, FaultPlan({7: Fault.DISCONNECT}))
        job = bench.job(keys_of(chunks))
        results = bench.fetch(job, target).wait()
        landed = {job.chunks[index].ref for index, result in results.items() if result.outcome is LANDED}
        others = {result.outcome for result in results.values()} - {LANDED}
        assert landed == set(target.finished)
        assert others == {ChunkOutcome.PLACE_ERROR}
        assert 0 < len(landed) < 5
        target.connected = True
        bench.end(job)
        assert bench.fetch(bench.job(keys_of(chunks)), target).outcomes() == [LANDED] * 5


def test_a_receiver_that_goes_away_fails_chunks_and_is_found_again(redis_standalone: RedisServer) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    finished: list[SlotRef] = []
    port = free_port()
    with PipelineBench(redis_standalone.settings(), slots=12) as bench:
        target = TcpTarget("127.0.0.1", port, TOKEN)
        jobs = [bench.job(keys_of(chunks)) for _ in range(3)]
        for job in (jobs[0], jobs[2]):
            with receiver_of(bench.landing, finished.append, port=port):
                assert bench.fetch(job, target).outcomes() == [LANDED] * 4
                wait_until(lambda job=job: {c.ref for c in job.chunks} <= set(finished), "all to be finished", SECONDS)
            if job is jobs[0]:
                assert bench.fetch(jobs[1], target).outcomes() == [ChunkOutcome.PLACE_ERROR] * 4
        assert all(np.array_equal(bench.landed(jobs[2], i), chunk.values) for i, chunk in enumerate(chunks))


def test_bytes_of_a_job_that_was_cancelled_do_not_reach_the_slots_next_owner(redis_standalone: RedisServer) -> None:
    chunks = make_stored(2, shape=BIG)
    put(redis_standalone, chunks)
    gate = threading.Event()
    with big_bench(redis_standalone) as bench:
        target = Watched(bench.landing, FaultPlan(gate=gate, gate_seconds=SECONDS))
        job = bench.job(keys_of(chunks))
        results = bench.fetch(job, target)
        wait_until(target.waiting.is_set, "the first frame to be placed", SECONDS)
        bench.end(job)
        heirs = [bench.landing.lease(b"another engine") for _ in range(2)]
        gate.set()
        results.wait()
        assert not target.finished
        for ref in heirs:
            assert ref is not None
            with bench.landing.writer(ref) as slot:
                assert not np.frombuffer(slot, np.uint8).any()


class Grumbling:
    """An observer with a bug."""

    def chunk_began(self) -> None:
        pass

    def chunk_ended(self, result: ChunkResult) -> None:
        raise RuntimeError("boom")


def test_an_observer_with_a_bug_keeps_no_result_from_anybody(redis_standalone: RedisServer) -> None:
    chunks = make_stored(3)
    put(redis_standalone, chunks)
    store = redis_standalone.settings()
    with PipelineBench(store) as bench:
        job, results = bench.job(keys_of(chunks)), Results(3)
        pipeline = Pipeline(PipelineSettings(1), store, topology_source(store), Grumbling())
        pipeline.submit(job, SharedMemoryTarget(bench.landing), results)
        assert results.outcomes() == [LANDED] * 3
        pipeline.close(Deadline.after(SECONDS))
        assert pipeline.unanswered_chunks == 0


def test_an_index_that_comes_twice_is_refused_before_anything_begins(redis_standalone: RedisServer) -> None:
    with PipelineBench(redis_standalone.settings()) as bench:
        good = bench.job([ChunkKey(bytes(32))])
        twice = type(good)(good.job, good.shape, good.mode, good.chunks * 2, good.deadline)
        with pytest.raises(ValueError, match="index"):
            bench.fetch(twice)
        assert bench.pipeline.unanswered_chunks == 0
        assert bench.fetch(good).outcomes() == [ChunkOutcome.MISSING]


@pytest.mark.parametrize("tier", [Tier.LOSSLESS, Tier.BALANCED])
@pytest.mark.parametrize("mode", list(LandingMode))
def test_a_chunk_costs_next_to_no_memory_in_steady_state(
    redis_standalone: RedisServer, tier: Tier, mode: LandingMode
) -> None:
    chunks = make_stored(7, tier)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings(), workers=1) as bench:

        def fetch_all() -> None:
            job = bench.job(keys_of(chunks), mode)
            assert bench.fetch(job).outcomes() == [LANDED] * 7
            bench.end(job)

        for _ in range(3):
            fetch_all()
        tracemalloc.start()
        try:
            fetch_all()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(3):
                fetch_all()
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - before < 7 * 4096, "a job's own records, for chunks of half a megabyte"
    assert after - before < 7 * 4096, "and they do not pile up"


def test_decoders_are_used_again_and_those_of_old_shapes_let_go() -> None:
    shelf, other = DecoderShelf(), KvShape(layers=1, kv_heads=1, head_dim=16, tokens=16)
    taken = [shelf.take(SHAPE) for _ in range(3)]
    for decoder in taken:
        shelf.put_back(SHAPE, decoder)
    assert {id(shelf.take(SHAPE)) for _ in range(3)} == {id(decoder) for decoder in taken}
    for decoder in taken:
        shelf.put_back(SHAPE, decoder)
    small = shelf.take(other)
    shelf.put_back(other, small)
    assert shelf.take(other) is small
    assert shelf.take(SHAPE) not in taken, "a process that serves one model keeps no memory for the last one"


class Closing(LoopbackTarget):
    """Notes what is open."""

    def __init__(self, landing: LandingBuffer, opened: set[int], number: int) -> None:
        super().__init__(landing)
        self.opened, self.number = opened, number

    def open(self) -> "ClosingPlacement":
        self.opened.add(self.number)
        return ClosingPlacement(self)


class ClosingPlacement(LoopbackPlacement):
    """Takes its note back."""

    def __init__(self, target: Closing) -> None:
        super().__init__(target)
        self._noted = target

    def close(self) -> None:
        self._noted.opened.discard(self._noted.number)


def test_placements_that_were_not_used_for_long_are_closed() -> None:
    landing, opened = LandingBuffer(4096), set[int]()
    shelf = PlacementShelf()
    for number in range(3 * MAX_OPEN):
        shelf.into(Closing(landing, opened, number))
    assert opened == set(range(2 * MAX_OPEN, 3 * MAX_OPEN))
    shelf.close()
    assert not opened

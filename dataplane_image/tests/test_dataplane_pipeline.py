"""The pipeline over a real store: chunks land right, each gets one result, and what fails fails alone."""

import threading
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from pipeline_bench import SECONDS, SHAPE, PipelineBench, Results, StoredChunk, make_stored, put
from placements import TOKEN, receiver_of
from real_store import RedisCluster, RedisServer, wait_until

from shadowserve_dataplane.chunks import ChunkKey, KvShape, store_key
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, ChunkOutcome
from shadowserve_dataplane.place.base import Placement
from shadowserve_dataplane.place.loopback import Fault, FaultPlan, LoopbackPlacement, LoopbackTarget
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.place.tcp import TcpTarget
from shadowserve_dataplane.store.topology import slot_of

LANDED = ChunkOutcome.LANDED


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", list(LandingMode))
def test_chunks_land_as_they_were_stored(redis_standalone: RedisServer, workers: int, mode: LandingMode) -> None:
    chunks = make_stored(7)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings(), workers) as bench:
        job = bench.job([chunk.key for chunk in chunks], mode)
        results = bench.fetch(job).wait()
        for index, chunk in enumerate(chunks):
            assert results[index].outcome is LANDED
            assert results[index].encoded_bytes == len(chunk.encoded)
            assert results[index].values_bytes == SHAPE.values_bytes
            assert np.array_equal(bench.landed(job, index), chunk.values)


@pytest.mark.parametrize("tier", [Tier.HIGH, Tier.BALANCED, Tier.COMPACT])
def test_lossy_chunks_give_the_same_values_either_way_they_land(redis_standalone: RedisServer, tier: Tier) -> None:
    chunks = make_stored(3, tier)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings()) as bench:
        jobs = [bench.job([chunk.key for chunk in chunks], mode) for mode in LandingMode]
        for job in jobs:
            assert bench.fetch(job).outcomes() == [LANDED] * 3
        for index in range(3):
            assert np.array_equal(bench.landed(jobs[0], index), bench.landed(jobs[1], index))


def test_chunks_of_a_cluster_land_from_every_shard(redis_cluster: RedisCluster) -> None:
    chunks = make_stored(12)
    for chunk in chunks:
        redis_cluster.owner(_slot(chunk)).admin("SET", store_key(chunk.key), chunk.encoded)
    with PipelineBench(redis_cluster.settings()) as bench:
        job = bench.job([chunk.key for chunk in chunks])
        assert bench.fetch(job).outcomes() == [LANDED] * 12
        assert all(np.array_equal(bench.landed(job, i), chunk.values) for i, chunk in enumerate(chunks))


def _slot(chunk: StoredChunk) -> int:
    return slot_of(store_key(chunk.key))


def flipped(chunk: bytes, at: int) -> bytes:
    return chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda chunk: flipped(chunk, 60), ChunkOutcome.DAMAGED),
        (lambda chunk: flipped(chunk, len(chunk) - 1), ChunkOutcome.DAMAGED),
        (lambda chunk: flipped(chunk, len(chunk) // 2), ChunkOutcome.DAMAGED),
        (lambda chunk: chunk[: len(chunk) // 2], ChunkOutcome.DAMAGED),
        (lambda chunk: chunk[:50], ChunkOutcome.DAMAGED),
        (lambda chunk: b"", ChunkOutcome.DAMAGED),
        (lambda chunk: chunk + b"more", ChunkOutcome.DAMAGED),
        (lambda chunk: chunk[:4] + b"\x63" + chunk[5:], ChunkOutcome.REFUSED),
        (lambda chunk: b"x" * (2 * Encoder.max_encoded_bytes(SHAPE)), ChunkOutcome.REFUSED),
    ],
)
def test_a_broken_chunk_fails_alone(
    redis_standalone: RedisServer, change: Callable[[bytes], bytes], outcome: ChunkOutcome
) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    redis_standalone.admin("SET", store_key(chunks[1].key), change(chunks[1].encoded))
    with PipelineBench(redis_standalone.settings()) as bench:
        job = bench.job([chunk.key for chunk in chunks])
        results = bench.fetch(job).wait()
        assert [results[i].outcome for i in range(4)] == [LANDED, outcome, LANDED, LANDED]
        assert results[1].detail
        assert all(np.array_equal(bench.landed(job, i), chunks[i].values) for i in (0, 2, 3))


def test_a_chunk_of_another_model_is_refused(redis_standalone: RedisServer) -> None:
    [chunk] = make_stored(1)
    other = KvShape(layers=2, kv_heads=2, head_dim=64)
    foreign = Encoder(other, Tier.LOSSLESS).encode(memoryview(bytes(other.values_bytes)), chunk.key, False)
    redis_standalone.admin("SET", store_key(chunk.key), bytes(foreign))
    with PipelineBench(redis_standalone.settings()) as bench:
        result = bench.fetch(bench.job([chunk.key])).wait()[0]
    assert result.outcome is ChunkOutcome.REFUSED
    assert "layers=2" in result.detail


def test_a_missing_chunk_is_missing(redis_standalone: RedisServer) -> None:
    with PipelineBench(redis_standalone.settings()) as bench:
        assert bench.fetch(bench.job([ChunkKey(bytes(32))])).outcomes() == [ChunkOutcome.MISSING]


def test_a_stalled_store_costs_the_deadline_and_no_more(redis_standalone: RedisServer) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    keys = [chunk.key for chunk in chunks]
    with PipelineBench(redis_standalone.settings()) as bench:
        assert bench.fetch(bench.job(keys)).outcomes() == [LANDED] * 4
        redis_standalone.pause()
        assert bench.fetch(bench.job(keys, seconds=0.3)).outcomes() == [ChunkOutcome.DEADLINE] * 4
        redis_standalone.resume()
        assert bench.fetch(bench.job(keys)).outcomes() == [LANDED] * 4


def test_a_job_that_no_worker_begins_ends_at_its_deadline(redis_standalone: RedisServer) -> None:
    chunks = make_stored(8)
    put(redis_standalone, chunks)
    keys = [chunk.key for chunk in chunks]
    with PipelineBench(redis_standalone.settings(), slots=20) as bench:
        redis_standalone.pause()
        first = bench.fetch(bench.job(keys))
        wait_until(lambda: bench.pipeline.store_connections == 2, "both workers to be at it", SECONDS)
        assert bench.fetch(bench.job(keys[:4], seconds=0.2)).outcomes() == [ChunkOutcome.DEADLINE] * 4
        assert bench.fetch(bench.job(keys[:4], seconds=0)).outcomes() == [ChunkOutcome.DEADLINE] * 4
        assert not first.seen
        redis_standalone.resume()
        assert first.outcomes() == [LANDED] * 8


def test_a_store_that_dies_fails_its_chunks_and_serves_again_later(redis_standalone: RedisServer) -> None:
    chunks = make_stored(4)
    with PipelineBench(redis_standalone.settings()) as bench:
        redis_standalone.kill()
        job = bench.job([chunk.key for chunk in chunks])
        assert set(bench.fetch(job).outcomes()) == {ChunkOutcome.STORE_ERROR}
        bench.end(job)
        redis_standalone.start()
        put(redis_standalone, chunks)
        assert bench.fetch(bench.job([chunk.key for chunk in chunks])).outcomes() == [LANDED] * 4


def test_a_cancelled_job_ends_at_once(redis_standalone: RedisServer) -> None:
    chunks = make_stored(6)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings()) as bench:
        redis_standalone.pause()
        job = bench.job([chunk.key for chunk in chunks])
        results = bench.fetch(job)
        bench.pipeline.cancel(job.job)
        assert results.outcomes() == [ChunkOutcome.CANCELLED] * 6
        redis_standalone.resume()
        bench.end(job)
        assert bench.fetch(bench.job([chunk.key for chunk in chunks])).outcomes() == [LANDED] * 6
        bench.pipeline.cancel(99)


def test_a_revoked_slot_is_not_written_and_the_chunk_is_cancelled(redis_standalone: RedisServer) -> None:
    chunks = make_stored(2)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings()) as bench:
        job = bench.job([chunk.key for chunk in chunks])
        bench.landing.revoke(job.chunks[0].ref.lease)
        assert bench.fetch(job).outcomes() == [ChunkOutcome.CANCELLED, LANDED]


def test_a_failing_placement_fails_its_chunk_and_recovers(redis_standalone: RedisServer) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings(), workers=1) as bench:
        target = LoopbackTarget(bench.landing, FaultPlan({2: Fault.FAIL}))
        job = bench.job([chunk.key for chunk in chunks])
        outcomes = bench.fetch(job, target).outcomes()
        assert outcomes.count(ChunkOutcome.PLACE_ERROR) == 1
        assert outcomes.count(LANDED) == 3


def test_a_placement_that_stalls_costs_the_deadline_or_the_cancellation(redis_standalone: RedisServer) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    keys = [chunk.key for chunk in chunks]
    with PipelineBench(redis_standalone.settings(), slots=12) as bench:
        stalled = LoopbackTarget(bench.landing, FaultPlan(gate=threading.Event(), gate_seconds=SECONDS))
        assert bench.fetch(bench.job(keys, seconds=0.1), stalled).outcomes() == [ChunkOutcome.DEADLINE] * 4
        job = bench.job(keys)
        results = bench.fetch(job, stalled)
        bench.pipeline.cancel(job.job)
        assert results.outcomes() == [ChunkOutcome.CANCELLED] * 4
        assert bench.fetch(bench.job(keys)).outcomes() == [LANDED] * 4


class Exploding:
    """A target with a bug nobody thought of."""

    def __init__(self, where: str) -> None:
        self._where = where

    def open(self) -> Placement:
        if self._where == "open":
            raise RuntimeError("boom")
        return self  # type: ignore[return-value]

    def __getattr__(self, name: str) -> object:
        def call(*_: object) -> memoryview:
            if name == self._where:
                raise RuntimeError("boom")
            return memoryview(bytearray(1 << 22))

        return call


@pytest.mark.parametrize("where", ["open", "reserve", "commit", "finish", "abort"])
def test_a_bug_in_a_placement_answers_every_chunk_and_kills_no_worker(
    redis_standalone: RedisServer, where: str
) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks[:3])
    keys = [chunk.key for chunk in chunks]
    with PipelineBench(redis_standalone.settings()) as bench:
        job = bench.job(keys)
        assert len(bench.fetch(job, Exploding(where)).wait()) == 4  # type: ignore[arg-type]
        bench.end(job)
        assert bench.fetch(bench.job(keys[:3])).outcomes() == [LANDED] * 3


def test_a_bug_in_whoever_takes_results_kills_no_worker(redis_standalone: RedisServer) -> None:
    chunks = make_stored(3)
    put(redis_standalone, chunks)
    keys = [chunk.key for chunk in chunks]
    with PipelineBench(redis_standalone.settings()) as bench:
        told = threading.Event()

        def explode(_: object) -> None:
            told.set()
            raise RuntimeError("boom")

        bench.pipeline.submit(bench.job(keys), SharedMemoryTarget(bench.landing), explode)
        assert told.wait(SECONDS)
        assert bench.fetch(bench.job(keys)).outcomes() == [LANDED] * 3
        wait_until(lambda: bench.pipeline.unanswered_chunks == 0, "the first job to be forgotten", SECONDS)


class Counting(LoopbackTarget):
    """Counts how often it is opened."""

    opened = 0

    def open(self) -> LoopbackPlacement:
        self.opened += 1
        return super().open()


def test_placements_stay_open_for_the_next_job(redis_standalone: RedisServer) -> None:
    chunks = make_stored(2)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings(), workers=2) as bench:
        targets = [Counting(bench.landing), Counting(bench.landing)]
        for target in targets * 4:
            job = bench.job([chunk.key for chunk in chunks])
            assert bench.fetch(job, target).outcomes() == [LANDED] * 2
            bench.end(job)
        assert max(target.opened for target in targets) <= 2


@pytest.mark.parametrize("mode", list(LandingMode))
@pytest.mark.parametrize("tier", [Tier.LOSSLESS, Tier.BALANCED])
@pytest.mark.parametrize("remote", [False, True], ids=["shared memory", "tcp"])
def test_nothing_is_allocated_per_frame_once_warm(
    redis_standalone: RedisServer, mode: LandingMode, tier: Tier, remote: bool
) -> None:
    chunks = make_stored(7, tier)
    put(redis_standalone, chunks)
    with (
        PipelineBench(redis_standalone.settings(), workers=1) as bench,  # so that the one that works is warm
        receiver_of(bench.landing, lambda ref: None) as receiver,
    ):
        target = TcpTarget("127.0.0.1", receiver.port, TOKEN) if remote else SharedMemoryTarget(bench.landing)
        for warm in (False, False, False, True):
            job = bench.job([chunk.key for chunk in chunks], mode)
            if warm:
                tracemalloc.start()
            try:
                assert bench.fetch(job, target).outcomes() == [LANDED] * 7
                bench.end(job)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert peak < 32 * 1024, "the job's own objects are 20 KiB, one frame is more than all of this"


def test_many_jobs_at_once(redis_standalone: RedisServer) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings(), slots=40) as bench:
        jobs = [bench.job([chunk.key for chunk in chunks]) for _ in range(10)]
        results = [bench.fetch(job) for job in jobs]
        for job, each in zip(jobs, results, strict=True):
            assert each.outcomes() == [LANDED] * 4
            assert np.array_equal(bench.landed(job, 3), chunks[3].values)


def test_closing_lets_jobs_finish_and_takes_no_more(redis_standalone: RedisServer) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings()) as bench:
        job = bench.job([chunk.key for chunk in chunks])
        results = bench.fetch(job)
        bench.pipeline.close(Deadline.after(SECONDS))
        assert results.outcomes() == [LANDED] * 4
        with pytest.raises(Cancelled, match="closing"):
            bench.pipeline.submit(bench.job([chunks[0].key]), LoopbackTarget(bench.landing), Results(1))


def test_closing_cancels_what_cannot_finish(redis_standalone: RedisServer) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    with PipelineBench(redis_standalone.settings()) as bench:
        redis_standalone.pause()
        results = [bench.fetch(bench.job([chunk.key for chunk in chunks])) for _ in range(3)]
        bench.pipeline.close(Deadline.after(0.1))
        assert {outcome for each in results for outcome in each.outcomes()} == {ChunkOutcome.CANCELLED}
        redis_standalone.resume()


def test_a_job_number_under_way_is_not_taken_twice(redis_standalone: RedisServer) -> None:
    with PipelineBench(redis_standalone.settings()) as bench:
        redis_standalone.pause()
        job = bench.job([ChunkKey(bytes(32))])
        results = bench.fetch(job)
        with pytest.raises(ValueError, match="under way already"):
            bench.fetch(job)
        redis_standalone.resume()
        assert results.outcomes() == [ChunkOutcome.MISSING]

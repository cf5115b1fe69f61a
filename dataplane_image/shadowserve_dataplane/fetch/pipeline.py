"""The chunked pipeline: receive, decompress, (dequantize,) place, over frames, on a few threads.

Every worker runs a frame to completion as soon as its bytes are in: it reads from its own connections, decodes into
memory that its placement gave, places, and reads on, while the kernel's socket buffer keeps the link busy. No chunk
waits for another: workers take chunks from a job one by one, and they finish in any order. Bounded buffers are the
back-pressure: a worker that has none free does not ask the store for more.

The pipeline does not know where it runs: data-plane process, sidecar and benchmarks are thin mains over it.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from shadowserve_dataplane.codec.format import Limits
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, ChunkOutcome, SettingsError, ShadowServeError
from shadowserve_dataplane.fetch.placements import PlacementShelf
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult, NoObserver, PipelineObserver
from shadowserve_dataplane.fetch.restore import ChunkRestorer, DecoderShelf
from shadowserve_dataplane.place.base import Patience, Placement, PlacementTarget
from shadowserve_dataplane.pool import BufferPool
from shadowserve_dataplane.store.bulk import BulkGetter, BulkRequest
from shadowserve_dataplane.store.discovery import TopologySource
from shadowserve_dataplane.store.settings import StoreSettings

_log = logging.getLogger(__name__)
OnResult = Callable[[ChunkResult], None]


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """`workers` threads; each reads chunks of up to `max_chunk_bytes`, `buffers_per_worker` at a time (one a shard)."""

    workers: int = 2
    max_chunk_bytes: int = 16 << 20
    buffers_per_worker: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1 or self.buffers_per_worker < 1 or self.max_chunk_bytes < 1:
            raise SettingsError(f"workers, max_chunk_bytes and buffers_per_worker must be positive: {self}")


class _ActiveJob:
    """A job under way; its chunks are claimed one by one by whichever worker has room."""

    def __init__(self, job: FetchJob, target: PlacementTarget, on_result: OnResult) -> None:
        self.job = job
        self.target = target
        self.on_result = on_result
        self.cancelled = False
        self._unclaimed = deque(job.chunks)

    @property
    def waiting(self) -> bool:
        """Whether some chunk is claimed by nobody."""
        return bool(self._unclaimed)

    def claim(self) -> ChunkRequest | None:
        """Return a chunk that is now the caller's, None when all are taken."""
        try:
            return self._unclaimed.popleft()
        except IndexError:
            return None


class Pipeline:
    """Restores the chunks of jobs into landing slots. Thread-safe; `on_result` is called on worker threads.

    Every chunk of a submitted job gets exactly one `ChunkResult`, whatever happens.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        store: StoreSettings,
        topology: TopologySource,
        observer: PipelineObserver | None = None,
    ) -> None:
        self._settings = settings
        self._observer = observer or NoObserver()
        self._jobs: dict[int, _ActiveJob] = {}
        self._queue: deque[_ActiveJob] = deque()
        self._unanswered: dict[int, int] = {}
        self._closing = False
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._sooner = threading.Condition(lock)
        self._woken_at = math.inf
        self._buffers = BufferPool(
            settings.max_chunk_bytes, settings.workers * settings.buffers_per_worker, "chunk buffers"
        )
        self._getters = [BulkGetter(store, topology, self._buffers) for _ in range(settings.workers)]
        self._threads = [
            threading.Thread(target=_Worker(self, getter).run, name=f"pipeline-{number}", daemon=True)
            for number, getter in enumerate(self._getters)
        ]
        self._threads.append(threading.Thread(target=self._keep_time, name="pipeline-time", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def limits(self) -> Limits:
        """What chunks may be at most."""
        return Limits(max_total_bytes=self._settings.max_chunk_bytes)

    @property
    def store_connections(self) -> int:
        """Connections to the store that are open."""
        return sum(lane.connected for getter in self._getters for lane in list(getter.lanes))

    @property
    def unanswered_chunks(self) -> int:
        """Chunks submitted that have no result yet."""
        with self._changed:
            return sum(self._unanswered.values())

    def submit(self, job: FetchJob, target: PlacementTarget, on_result: OnResult) -> None:
        """Start a job. Raises `Cancelled` when the pipeline is closing.

        Raises `ValueError` for the number of a job under way, and for an index that comes twice.
        """
        if len({chunk.index for chunk in job.chunks}) != len(job.chunks):
            raise ValueError(f"job {job.job} has an index twice")
        active = _ActiveJob(job, target, on_result)
        with self._changed:
            if self._closing:
                raise Cancelled("the pipeline is closing")
            if job.job in self._jobs:
                raise ValueError(f"job {job.job} is under way already")
            if not job.chunks:
                return
            self._jobs[job.job] = active
            self._unanswered[job.job] = len(job.chunks)
            self._queue.append(active)
            for _ in job.chunks if job.counted else ():
                self._observer.chunk_began()
            self._changed.notify(min(len(job.chunks), self._settings.workers))
            if job.deadline.at < self._woken_at:
                self._sooner.notify()

    def cancel(self, job: int) -> None:
        """Stop a job: its chunks end as cancelled within 50 ms or so. Harmless for one that has ended."""
        with self._changed:
            active = self._jobs.get(job)
        if active is None:
            return
        active.cancelled = True
        self.fail_unclaimed(active, ChunkOutcome.CANCELLED, "cancelled")

    def close(self, drain: Deadline) -> None:
        """Take no more jobs, let those under way finish until `drain`, cancel the rest, and stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._sooner.notify()
            self._changed.wait_for(lambda: not self._jobs, min(drain.remaining(), threading.TIMEOUT_MAX))
            left = list(self._jobs)
        for job in left:
            self.cancel(job)
        for thread in self._threads:
            thread.join()
        self._buffers.close()

    def next_job(self) -> _ActiveJob | None:
        """Return a job with chunks to claim, waiting for one; None when the pipeline is closed. For workers."""
        with self._changed:
            while True:
                while self._queue and not self._queue[0].waiting:
                    self._queue.popleft()
                if self._queue:
                    return self._queue[0]
                if self._closing and not self._jobs:
                    return None
                self._changed.wait()

    def report(self, active: _ActiveJob, result: ChunkResult) -> None:
        """Pass a chunk's result on, and forget the job with its last one. For workers; never raises."""
        for tell in (self._observer.chunk_ended, active.on_result) if active.job.counted else (active.on_result,):
            try:
                tell(result)
            except Exception:
                _log.exception("job %d: whoever takes its results failed", result.job)
        with self._changed:
            self._unanswered[result.job] -= 1
            if not self._unanswered[result.job]:
                del self._unanswered[result.job], self._jobs[result.job]
                self._changed.notify_all()
                if self._closing:
                    self._sooner.notify()

    def fail_unclaimed(self, active: _ActiveJob, outcome: ChunkOutcome, why: str) -> None:
        """Report every chunk that nobody has claimed as failed. For workers."""
        while (request := active.claim()) is not None:
            self.report(active, ChunkResult(active.job.job, request.index, outcome, detail=why))

    def _keep_time(self) -> None:
        """End chunks at their deadline that no worker has begun; what a worker has begun ends in its hands."""
        while (overdue := self._next_overdue()) is not None:
            for active in overdue:
                self.fail_unclaimed(active, ChunkOutcome.DEADLINE, "no worker was free before the deadline")

    def _next_overdue(self) -> list[_ActiveJob] | None:
        with self._changed:
            while self._jobs or not self._closing:
                waiting = [active for active in self._jobs.values() if active.waiting]
                if overdue := [active for active in waiting if active.job.deadline.expired]:
                    return overdue
                first = min((active.job.deadline for active in waiting), default=Deadline.never())
                self._woken_at = first.at
                self._sooner.wait(min(first.remaining(), threading.TIMEOUT_MAX))
            return None


class _Worker:
    """One thread: takes chunks of jobs and restores them."""

    def __init__(self, pipeline: Pipeline, getter: BulkGetter) -> None:
        self._pipeline = pipeline
        self._getter = getter
        self._shelf = DecoderShelf()
        self._placements = PlacementShelf()

    def run(self) -> None:
        """Work until the pipeline closes; a job that fails in a way nobody thought of fails alone."""
        while (active := self._pipeline.next_job()) is not None:
            try:
                placement = self._placements.into(active.target)
            except Exception as error:
                _log.exception("job %d: its placement cannot be opened", active.job.job)
                self._pipeline.fail_unclaimed(active, ChunkOutcome.PLACE_ERROR, repr(error))
            else:
                self._restore(active, placement)
        self._placements.close()
        self._getter.close()

    def _restore(self, active: _ActiveJob, placement: Placement) -> None:
        report = partial(self._pipeline.report, active)
        restorer = ChunkRestorer(active.job, placement, self._shelf, self._pipeline.limits, report)
        patience = Patience(active.job.deadline, lambda: active.cancelled)
        try:
            placement.wait_as_long_as(patience)
            self._getter.get(self._claims(active, restorer), restorer, patience.deadline, patience.cancelled)
        except Exception as error:
            _log.exception("job %d: a worker met an unexpected error", active.job.job)
            if not restorer.fail_all(ShadowServeError(f"unexpected: {error!r}")):  # so trying again would not help
                self._pipeline.fail_unclaimed(active, ChunkOutcome.STORE_ERROR, f"unexpected: {error!r}")
            self._placements.drop(active.target)

    @staticmethod
    def _claims(active: _ActiveJob, restorer: ChunkRestorer) -> Iterator[BulkRequest]:
        while (request := active.claim()) is not None:
            restorer.expect(request)
            yield BulkRequest(request.index, request.key)

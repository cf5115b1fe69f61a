"""What runs batches: the promise, and the pipeline inside this process."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled
from shadowserve_dataplane.fetch.pipeline import Pipeline, PipelineSettings
from shadowserve_dataplane.fetch.plan import FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.landing import LandingBuffer
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Topology

Report = Callable[[ChunkResult], None]

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 0.5
_BUFFERS = {Topology.STANDALONE: 2, Topology.CLUSTER: 4}
"""Chunk buffers of a worker: with a cluster several shards are read at once, and one may stall."""


class Runner(Protocol):
    """Restores the chunks of batches. Reports arrive on the event loop, never from inside `submit` or `cancel`."""

    def submit(self, batch: FetchJob) -> None:
        """Start a batch. Raises `Cancelled` when there is nothing that could run it."""
        ...

    def cancel(self, batch: int) -> None:
        """Stop a batch; what is still reported of it does not matter. Harmless for one that is not known."""
        ...


class HostRunner:
    """The pipeline in this process, placing into the landing buffer itself; its threads start with the first engine."""

    def __init__(self, workers: int, store: StoreSettings, landing: LandingBuffer, report: Report) -> None:
        self._workers = workers
        self._store = store
        self._topology = topology_source(store)
        self._target = SharedMemoryTarget(landing)
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._max_chunk_bytes = 0
        self._pipeline: Pipeline | None = None

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline as it is now; None before the first engine."""
        return self._pipeline

    def prepare(self, shape: KvShape) -> None:
        """Make sure that chunks of this shape fit into the pipeline's buffers."""
        needed = Encoder.max_encoded_bytes(shape)
        if needed <= self._max_chunk_bytes:
            return
        outgrown, self._max_chunk_bytes = self._pipeline, needed
        settings = PipelineSettings(self._workers, needed, _BUFFERS[self._store.topology])
        self._pipeline = Pipeline(settings, self._store, self._topology)
        if outgrown is not None:
            self._loop.run_in_executor(None, outgrown.close, Deadline.after(_CLOSE_SECONDS))

    def submit(self, batch: FetchJob) -> None:
        """Start a batch; raises `Cancelled` before the first `prepare` and after `close`."""
        if self._pipeline is None:
            raise Cancelled("the pipeline is not running")
        self._pipeline.submit(batch, self._target, self._on_worker)

    def cancel(self, batch: int) -> None:
        """Stop a batch."""
        if self._pipeline is not None:
            self._pipeline.cancel(batch)

    async def close(self) -> None:
        """Cancel what runs and stop the threads."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            await self._loop.run_in_executor(None, pipeline.close, Deadline.after(0))

    def _on_worker(self, result: ChunkResult) -> None:
        self._loop.call_soon_threadsafe(self._report, result)

"""A pipeline over a real store and a landing buffer of this process, for tests."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from codec_samples import sample_values

from shadowserve_dataplane.chunks import ChunkKey, KvShape, store_key
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.codec.quantize import Bits, dequantized, narrow
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.connector.landed_image import ValuesImage, parse_image
from shadowserve_dataplane.deadline import Clock, Deadline
from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.pipeline import Pipeline, PipelineSettings
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.landing import LandingBuffer
from shadowserve_dataplane.place.base import PlacementTarget
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.settings import StoreSettings

SHAPE = KvShape(layers=4, kv_heads=2, head_dim=64)
SECONDS = 60.0


@dataclass(frozen=True)
class StoredChunk:
    """A chunk, its values, and how it lies in the store."""

    key: ChunkKey
    values: Bits
    encoded: bytes


def make_stored(number: int, tier: Tier = Tier.LOSSLESS, shape: KvShape = SHAPE) -> list[StoredChunk]:
    """Return different chunks, encoded."""
    encoder = Encoder(shape, tier)
    chunks = []
    for index in range(number):
        key, values = ChunkKey(bytes([index, tier]) * 16), sample_values(shape, index)
        chunks.append(StoredChunk(key, values, bytes(encoder.encode(memoryview(values).cast("B"), key, index == 0))))
    return chunks


class Results:
    """Collects the results of one job; `wait` returns them once every chunk has one."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._all = threading.Event()
        self.seen: list[ChunkResult] = []

    def __call__(self, result: ChunkResult) -> None:
        self.seen.append(result)
        if len(self.seen) >= self._expected:
            self._all.set()

    def wait(self) -> dict[int, ChunkResult]:
        """Return the results by index."""
        assert self._all.wait(SECONDS), f"only {len(self.seen)} of {self._expected} chunks were reported"
        assert len(self.seen) == self._expected, "a chunk was reported twice"
        return {result.index: result for result in self.seen}

    def outcomes(self) -> list[ChunkOutcome]:
        """Return the outcomes in order of index."""
        results = self.wait()
        return [results[index].outcome for index in sorted(results)]


@dataclass
class PipelineBench:
    """Use as a context manager; closes the pipeline."""

    store: StoreSettings
    workers: int = 2
    slots: int = 16
    shape: KvShape = SHAPE
    landing: LandingBuffer = field(init=False)
    pipeline: Pipeline = field(init=False)
    jobs: int = 0

    def __enter__(self) -> "PipelineBench":
        slot = LandedLayout.max_bytes(self.shape)
        self.landing = LandingBuffer(self.slots * (slot + 4096))
        self.landing.carve(slot)
        settings = PipelineSettings(self.workers, Encoder.max_encoded_bytes(self.shape), 3)
        self.pipeline = Pipeline(settings, self.store, topology_source(self.store))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pipeline.close(Deadline.after(0))

    def job(
        self,
        keys: Sequence[ChunkKey],
        mode: LandingMode = LandingMode.CODES,
        seconds: float = SECONDS,
        clock: Clock = time.monotonic,
    ) -> FetchJob:
        """Return a job for fresh slots."""
        self.jobs += 1
        refs = [self.landing.lease(b"engine") for _ in keys]
        requests = [ChunkRequest(i, key, ref) for i, (key, ref) in enumerate(zip(keys, refs, strict=True)) if ref]
        assert len(requests) == len(keys), "not enough slots"
        return FetchJob(self.jobs, self.shape, mode, tuple(requests), Deadline.after(seconds, clock))

    def fetch(self, job: FetchJob, target: PlacementTarget | None = None) -> Results:
        """Submit a job."""
        results = Results(len(job.chunks))
        self.pipeline.submit(job, target or SharedMemoryTarget(self.landing), results)
        return results

    def end(self, job: FetchJob) -> None:
        """Give the job's slots back."""
        for chunk in job.chunks:
            self.landing.revoke(chunk.ref.lease)

    def landed(self, job: FetchJob, index: int) -> Bits:
        """Return what landed, as the engine would see it."""
        with self.landing.writer(job.chunks[index].ref) as slot:
            image = parse_image(slot, self.shape)
            if isinstance(image, ValuesImage):
                return np.array(image.values)
            planes = [dequantized(image.codes[p], image.steps[p], image.means[p]) for p in range(self.shape.planes)]
            bits = narrow(np.stack(planes), self.shape.dtype)
            bits[:, image.exact_tokens] = image.exact_rows.transpose(1, 0, 2)
            return bits


def put(client: object, chunks: Sequence[StoredChunk]) -> None:
    """Put chunks into the store: `client` is a `RedisServer` or `RedisCluster` of real_store."""
    for chunk in chunks:
        client.admin("SET", store_key(chunk.key), chunk.encoded)  # type: ignore[attr-defined]

"""Our fetch path on the caller's own thread, so that what one chunk costs can be looked into."""

from collections.abc import Iterator, Sequence

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.format import Limits
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.fetch.restore import ChunkRestorer, DecoderShelf
from shadowserve_dataplane.landing import LandingBuffer
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.pool import BufferPool
from shadowserve_dataplane.store.bulk import BulkGetter, BulkRequest
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.settings import StoreSettings

_SECONDS = 60.0


class CountingRestorer(ChunkRestorer):
    """Remembers how many frames of each chunk were still to be restored when its last byte came."""

    def watch(self, left: list[int]) -> "CountingRestorer":
        """Append to `left` from now on."""
        self._left = left
        return self

    def received(self, index: int, view: memoryview, available: int) -> None:
        """Count, then restore."""
        progress = self._progress[index]
        if available == len(view) and progress.opened is not None:
            self._left.append(len(progress.opened.header.frames) - progress.next_frame)
        super().received(index, view, available)


class InThread:
    """Bulk reads into a restorer into shared memory, as a pipeline's worker does it."""

    def __init__(self, store: StoreSettings, shape: KvShape, mode: LandingMode, landing: LandingBuffer) -> None:
        buffers = BufferPool(Encoder.max_encoded_bytes(shape), 2, "chunk buffers")
        self._getter = BulkGetter(store, topology_source(store), buffers)
        self._placement, self._shelf = SharedMemoryTarget(landing).open(), DecoderShelf()
        self._shape, self._mode = shape, mode

    def fetch(self, requests: Sequence[ChunkRequest]) -> list[int]:
        """Restore the chunks; return the frames of each that were left when its last byte came."""
        job = FetchJob(1, self._shape, self._mode, tuple(requests), Deadline.after(_SECONDS))
        left: list[int] = []
        restorer = CountingRestorer(job, self._placement, self._shelf, Limits(), lambda _: None).watch(left)

        def asked() -> Iterator[BulkRequest]:
            for request in requests:
                restorer.expect(request)
                yield BulkRequest(request.index, request.key)

        self._getter.get(asked(), restorer, job.deadline)
        return left

    def close(self) -> None:
        """Hang up."""
        self._getter.close()

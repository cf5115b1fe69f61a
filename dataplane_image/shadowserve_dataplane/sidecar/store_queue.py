"""The store path as the rest of the sidecar sees it: a bounded queue before the store thread, dropped first."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.connector.messages import FromSidecar, Store, Stored
from shadowserve_dataplane.sidecar.metrics import SidecarMetrics
from shadowserve_dataplane.sidecar.sessions import Session
from shadowserve_dataplane.sidecar.staging import StagingBuffer
from shadowserve_dataplane.sidecar.store_policy import DropReason, Load, reason_to_drop
from shadowserve_dataplane.sidecar.stores import StoreJob, StoreResult, StoreSteps, StoreThread
from shadowserve_dataplane.store.settings import StoreSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Queued:
    session: Session
    job: StoreJob


class StoreQueue:
    """Chunks on their way into the store; `fetches` says how many fetch jobs are unfinished."""

    def __init__(
        self,
        staging: StagingBuffer,
        thread: tuple[StoreSettings, StoreSteps],
        tell: Callable[[Session, FromSidecar], None],
        fetches: Callable[[], int],
        metrics: SidecarMetrics,
    ) -> None:
        self._staging = staging
        self._tell = tell
        self._fetches = fetches
        self._metrics = metrics
        self._queued: dict[tuple[int, int], _Queued] = {}
        self._closing = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._loop = asyncio.get_running_loop()
        self._thread = StoreThread(*thread, self._done_on_thread)

    def __len__(self) -> int:
        return len(self._queued)

    def store(self, session: Session, slots: frozenset[int], message: Store) -> str:
        """Queue or drop a staged chunk; returns what is wrong with the message, nothing if it was understood."""
        if message.slot not in slots:
            return f"staging slot {message.slot} is not this worker's"
        if (session.number, message.slot) in self._queued:
            return f"staging slot {message.slot} is being stored already"
        load = Load(len(self._queued), self._staging.slots, self._fetches(), self._closing)
        if reason := reason_to_drop(load):
            self._drop(session, message.slot, reason)
            return ""
        values = self._staging.slot(message.slot, session.shape.values_bytes)
        job = StoreJob(session.number, message.slot, ChunkKey(message.key), session.shape, message.first, values)
        self._queued[session.number, message.slot] = _Queued(session, job)
        self._empty.clear()
        self._thread.submit(job)
        return ""

    def drop(self, session: Session) -> None:
        """Forget what a session staged: its slots are given away."""
        for queued in self._queued.values():
            if queued.session is session:
                queued.job.revoked = True

    async def drain(self, seconds: float) -> None:
        """Take nothing more, give what is queued that long, and drop the rest."""
        self._closing = True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            _log.info("%d chunks are not stored: the time to drain is over", len(self._queued))

    async def close(self, seconds: float) -> None:
        """Stop the thread, waiting for the chunk in hand at most that long."""
        self._closing = True
        await self._loop.run_in_executor(None, self._thread.close, seconds)

    def _done_on_thread(self, job: StoreJob, result: StoreResult) -> None:
        self._loop.call_soon_threadsafe(self._done, job, result)

    def _done(self, job: StoreJob, result: StoreResult) -> None:
        queued = self._queued.pop((job.session, job.slot))
        if not self._queued:
            self._empty.set()
        if result.dropped is not None:
            _log.debug("a chunk was not stored: %s: %s", result.dropped, result.detail)
            self._metrics.dropped(result.dropped)
        elif result.encoded_bytes:
            self._metrics.stored(result.encoded_bytes)
        if not job.revoked:
            self._tell(queued.session, Stored(job.slot, result.outcome))

    def _drop(self, session: Session, slot: int, reason: DropReason) -> None:
        self._metrics.dropped(reason)
        self._tell(session, Stored(slot, f"dropped:{reason}"))

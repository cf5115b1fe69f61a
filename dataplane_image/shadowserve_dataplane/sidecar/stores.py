"""Encode and put finished chunks: one thread of the lowest priority, with an event loop and a store client of its own.

Everything that takes time on this path (the exists check, the encoder, copying the value to a socket) happens in this
thread, so that look-ups and fetches never wait behind it.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.tiers import Tier
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ShadowServeError
from shadowserve_dataplane.sidecar.store_policy import DropReason
from shadowserve_dataplane.store.client import PutOutcome, StoreClient
from shadowserve_dataplane.store.settings import StoreSettings

_log = logging.getLogger(__name__)
_LOWEST_PRIORITY = 19


@dataclass(slots=True)
class StoreJob:
    """A staged chunk. `values` is its staging slot; once `revoked` is set, what is in there may be another's."""

    session: int
    slot: int
    key: ChunkKey
    shape: KvShape
    first: bool
    values: memoryview = field(repr=False)
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class StoreResult:
    """How a store ended: `stored` with its encoded bytes, `present`, or dropped."""

    put: PutOutcome | None
    encoded_bytes: int = 0
    dropped: DropReason | None = None
    detail: str = ""

    @property
    def outcome(self) -> str:
        """The word of the `Stored` message."""
        if self.put is not None:
            return self.put.value
        return f"dropped:{self.dropped}"


class PutsChunks(Protocol):
    """What storing needs of the store client."""

    async def present(self, key: ChunkKey, deadline: Deadline) -> bool:
        """Return whether the chunk is there."""
        ...

    async def put(self, key: ChunkKey, value: memoryview, deadline: Deadline) -> PutOutcome:
        """Put the chunk unless it is there."""
        ...


class StoreSteps:
    """Takes one chunk through check, encode and put; owned by one thread."""

    def __init__(self, tier: Tier, allowed_seconds: float) -> None:
        self._tier = tier
        self._allowed = allowed_seconds
        self._encoder: Encoder | None = None
        self._shape: KvShape | None = None

    async def store(self, job: StoreJob, client: PutsChunks) -> StoreResult:
        """Store the chunk. Never raises: whatever goes wrong is a reason to drop it."""
        try:
            return await self._store(job, client, Deadline.after(self._allowed))
        except ShadowServeError as error:
            return StoreResult(None, dropped=DropReason.STORE_ERROR, detail=str(error))
        except ValueError as error:
            return StoreResult(None, dropped=DropReason.NOT_FINITE, detail=str(error))

    async def _store(self, job: StoreJob, client: PutsChunks, deadline: Deadline) -> StoreResult:
        if await client.present(job.key, deadline):
            return StoreResult(PutOutcome.PRESENT)
        encoded = self._encoder_for(job.shape).encode(job.values, job.key, job.first)
        if job.revoked:  # the slot may have changed under the encoder: these bytes must not reach the store
            return StoreResult(None, dropped=DropReason.SHUTDOWN, detail="its engine is gone")
        put = await client.put(job.key, encoded, deadline)
        return StoreResult(put, len(encoded) if put is PutOutcome.STORED else 0)

    def _encoder_for(self, shape: KvShape) -> Encoder:
        if self._encoder is None or shape != self._shape:
            self._encoder = Encoder(shape, self._tier)
            self._shape = shape
        return self._encoder


class StoreThread:
    """Stores chunks one after the other; `on_done` is called on this thread for every job, whatever became of it."""

    def __init__(
        self, settings: StoreSettings, steps: StoreSteps, on_done: Callable[[StoreJob, StoreResult], None]
    ) -> None:
        self._settings = settings
        self._steps = steps
        self._on_done = on_done
        self._closing = False
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadowserve-stores", daemon=True)
        self._thread.start()
        self._started.wait()

    def submit(self, job: StoreJob) -> None:
        """Queue a job; how many may wait is the caller's rule."""
        self._loop.call_soon_threadsafe(self._jobs.put_nowait, job)

    def close(self, wait_seconds: float) -> None:
        """Drop what is queued, finish the job in hand, and wait for the thread for at most that long."""
        self._closing = True
        self._loop.call_soon_threadsafe(self._jobs.put_nowait, None)
        self._thread.join(wait_seconds)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: asyncio.Queue[StoreJob | None] = asyncio.Queue()
        self._started.set()
        client = StoreClient(self._settings)
        try:
            while (job := await self._jobs.get()) is not None:
                self._on_done(job, await self._store(job, client))
        finally:
            await client.close()

    async def _store(self, job: StoreJob, client: StoreClient) -> StoreResult:
        if self._closing or job.revoked:
            return StoreResult(None, dropped=DropReason.SHUTDOWN)
        try:
            return await self._steps.store(job, client)
        except Exception as error:
            _log.exception("a chunk could not be stored")
            return StoreResult(None, dropped=DropReason.STORE_ERROR, detail=repr(error))

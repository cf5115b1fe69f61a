"""The store path as the rest of the sidecar sees it: a bounded queue before the store process, dropped first."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.connector.messages import FromSidecar, Store, Stored
from shadowserve_dataplane.errors import NetworkError
from shadowserve_dataplane.sidecar.metrics import SidecarMetrics
from shadowserve_dataplane.sidecar.quiet_log import QuietLog
from shadowserve_dataplane.sidecar.sessions import Session
from shadowserve_dataplane.sidecar.spoiled import SpoiledKeys
from shadowserve_dataplane.sidecar.staging import StagingBuffer
from shadowserve_dataplane.sidecar.store_messages import Done, Work
from shadowserve_dataplane.sidecar.store_policy import DropReason, Load, reason_to_drop
from shadowserve_dataplane.store.client import PutOutcome

_PUT_OUTCOMES = frozenset(PutOutcome)

_log = logging.getLogger(__name__)


class StoresChunks(Protocol):
    """What the queue needs of the store process."""

    async def store(self, work: Work, still_wanted: Callable[[], bool]) -> Done:
        """Have one chunk stored. Raises `NetworkError`."""
        ...

    async def close(self) -> None:
        """Stop."""
        ...


@dataclass(slots=True)
class _Queued:
    """A staged chunk. Once `revoked`, what lies in its slot may be another's."""

    session: Session
    message: Store
    revoked: bool = False


class StoreQueue:
    """Chunks on their way into the store; `fetches` says how many fetch jobs are unfinished."""

    def __init__(
        self,
        staging: StagingBuffer,
        link: StoresChunks,
        tell: Callable[[Session, FromSidecar], None],
        fetches: Callable[[], int],
        metrics: SidecarMetrics,
        spoiled: SpoiledKeys | None = None,
    ) -> None:
        self._spoiled = spoiled or SpoiledKeys()
        self._staging = staging
        self._link = link
        self._tell = tell
        self._fetches = fetches
        self._metrics = metrics
        self._queued: dict[tuple[int, int], _Queued] = {}
        self._waiting: asyncio.Queue[_Queued] = asyncio.Queue()
        self._closing = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._quiet = QuietLog(_log)
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    def __len__(self) -> int:
        return len(self._queued)

    def store(self, session: Session, slots: frozenset[int], message: Store) -> str:
        """Queue or drop a staged chunk; returns what is wrong with the message, nothing if it was understood."""
        name = (session.number, message.slot)
        if message.slot not in slots:
            return f"staging slot {message.slot} is not this worker's"
        if name in self._queued:
            return f"staging slot {message.slot} is being stored already"
        load = Load(len(self._queued), self._staging.slots, self._fetches(), self._closing)
        if reason := reason_to_drop(load):
            self._metrics.dropped(reason)
            self._tell(session, Stored(message.slot, f"dropped:{reason}"))
            return ""
        queued = self._queued[name] = _Queued(session, message)
        self._empty.clear()
        self._waiting.put_nowait(queued)
        return ""

    def drop(self, session: Session) -> None:
        """Forget what a session staged: its slots are given away."""
        for queued in self._queued.values():
            if queued.session is session:
                queued.revoked = True

    async def drain(self, seconds: float) -> None:
        """Take nothing more, and give what is queued that long."""
        self._closing = True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            _log.info("%d chunks are not stored: the time to drain is over", len(self._queued))

    async def close(self) -> None:
        """Stop, and drop what is queued."""
        self._closing = True
        self._serving.cancel()
        await asyncio.wait([self._serving])
        await self._link.close()
        for queued in list(self._queued.values()):
            self._done(queued, Done(DropReason.SHUTDOWN))

    async def _serve(self) -> None:
        while True:
            queued = await self._waiting.get()
            self._done(queued, await self._store(queued))

    async def _store(self, queued: _Queued) -> Done:
        if queued.revoked:
            return Done(DropReason.SHUTDOWN)
        shape, message = queued.session.shape, queued.message
        extents = (shape.layers, shape.kv_heads, shape.head_dim, shape.dtype, shape.tokens)
        replace = ChunkKey(message.key) in self._spoiled
        work = Work(self._staging.offset(message.slot), message.key, message.first, *extents, replace)
        try:
            return await self._link.store(work, lambda: not queued.revoked)
        except NetworkError as error:
            return Done(DropReason.STORE_ERROR, detail=str(error))

    def _done(self, queued: _Queued, done: Done) -> None:
        del self._queued[queued.session.number, queued.message.slot]
        if not self._queued:
            self._empty.set()
        stored = done.outcome in _PUT_OUTCOMES
        if not stored:
            self._metrics.dropped(DropReason(done.outcome))
            self._quiet.warning(done.outcome, f"a chunk was not stored: {done.outcome}: {done.detail}")
        elif done.encoded_bytes:
            self._metrics.stored(done.encoded_bytes)
            self._spoiled.replaced(ChunkKey(queued.message.key))
        if not queued.revoked:
            outcome = done.outcome if stored else f"dropped:{done.outcome}"
            self._tell(queued.session, Stored(queued.message.slot, outcome))

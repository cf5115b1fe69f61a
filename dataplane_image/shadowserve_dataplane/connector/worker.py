"""The worker half: fetches chunks and scatters them, gathers finished chunks and hands them to the sidecar.

Four kinds of threads meet here: the engine's (once a step, never waits long), the client's (messages), the copier's
(all copying). One condition guards all state; nothing is copied or sent while it is held.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.connector.buffers import MappedBuffer
from shadowserve_dataplane.connector.chunk_copies import ChunkCopies
from shadowserve_dataplane.connector.client import SidecarClient
from shadowserve_dataplane.connector.copier import Copier
from shadowserve_dataplane.connector.messages import (
    Cancel,
    ChunkFailed,
    Fetch,
    FromSidecar,
    Hello,
    Landed,
    Release,
    Store,
    Stored,
    Welcome,
)
from shadowserve_dataplane.connector.once import SayOnce
from shadowserve_dataplane.connector.paged_copy import BlockSpan, PagedCopy
from shadowserve_dataplane.connector.plan import ChunkStore, LoadPlan, StepPlan, StepReport
from shadowserve_dataplane.connector.session import LandedChunk, Session
from shadowserve_dataplane.connector.settings import ConnectorSettings
from shadowserve_dataplane.connector.transfers import EndedLoad, Loads, Stores
from shadowserve_dataplane.errors import ChunkOutcome

_log = logging.getLogger(f"vllm.{__name__}")  # a child of the logger that vLLM has set up
_DEADLINE_GRACE = 0.05
"""Seconds given to the sidecar's own "deadline" answers before the worker stops waiting by itself."""


class WorkerHalf:
    """One per tensor-parallel rank. `register` once, then every step: `begin_step`, `stores_ready`, `end_step`."""

    def __init__(self, settings: ConnectorSettings, hello: Hello, shape: KvShape) -> None:
        self._settings = settings
        self._rank = hello.rank
        self._shape = shape
        self._changed = threading.Condition()
        self._loads = Loads()
        self._stores = Stores()
        self._landed: deque[LandedChunk] = deque()
        self._at_sidecar: dict[int, int] = {}
        self._ended: list[EndedLoad] = []
        self._read: Counter[int] = Counter()
        self._settled: set[int] = set()
        self._dropped: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._say_once = SayOnce(_log)
        self._session: Session | None = None
        self._failed_loads: set[int] = set()
        self._failed_blocks: set[int] = set()
        self._copies: ChunkCopies | None = None
        self._copier = Copier(self, self._changed)
        self._client = SidecarClient(settings.socket, hello, self)

    @property
    def connected(self) -> bool:
        """Whether there is a sidecar to talk to."""
        return self._client.session is not None

    @property
    def can_copy(self) -> bool:
        """Whether chunks can be copied to and from the engine's cache."""
        return self._copies is not None

    # The engine's thread.

    def register(self, copies: PagedCopy) -> None:
        """Start, with the copies of the engine's cache."""
        self._copies = ChunkCopies(copies, self._shape)
        self._copier.start()
        self._client.start()

    def begin_step(self, plan: StepPlan) -> None:
        """Start the step's loads and stop what nobody waits for; returns at once."""
        with self._changed:
            if plan.preempted:
                self._drop(self._stores.drop(lambda store: store.request in plan.preempted), "preempted")
            for load in plan.cancels:
                self._loads.cancel(load)
            now = time.monotonic()
            for request in plan.held:
                self._stores.hold(request, now + self._settings.store_hold)
            for load_plan in plan.loads:
                self._begin_load(load_plan, now)

    def stores_ready(self, plan: StepPlan) -> None:
        """The blocks of the step's stores are computed: queue them."""
        if not plan.stores:
            return
        with self._changed:
            for store in plan.stores:
                self._stores.waiting[store.store] = store
            if self._session is None or self._session.staging is None:
                self._drop(self._stores.drop(lambda store: True), "no_sidecar")
            elif self._copies is None:
                self._drop(self._stores.drop(lambda store: True), "cannot_copy")
            self._changed.notify_all()

    def end_step(self, plan: StepPlan) -> tuple[set[str], set[str]]:
        """Return finished requests whose blocks are free now, and requests whose load has ended.

        In a step without a forward this waits for either, at most `idle_wait`: stepping on would only take the core
        from the fetch.
        """
        with self._changed:
            self._expire()
            if plan.idle and (len(self._loads) or self._stores.holding):
                self._changed.wait_for(self._anything_ended, self._settings.idle_wait)
            self._collect()
            ended, self._ended = self._ended, []
            self._failed_loads.update(load.load for load in ended if not load.whole)
            self._failed_blocks.update(block for load in ended for block in load.failed_blocks)
            return self._stores.take_freed(), {load.request for load in ended}

    def take_failed_blocks(self) -> set[int]:
        """Return the blocks of loads that `end_step` returned and that hold nothing."""
        blocks, self._failed_blocks = self._failed_blocks, set()
        return blocks

    def take_report(self) -> StepReport:
        """Return what happened since the last report."""
        with self._changed:
            report = StepReport(
                read=dict(self._read),
                settled=frozenset(self._settled),
                dropped=frozenset(self._dropped),
                failed_loads=frozenset(self._failed_loads),
            )
            for seen in (self._read, self._settled, self._dropped, self._failed_loads):
                seen.clear()
        return report

    def take_counts(self) -> dict[str, int]:
        """Return how often each kind of event happened since the last call."""
        with self._changed:
            counts, self._counts = self._counts, Counter()
        return dict(counts)

    def close(self) -> None:
        """Stop both threads."""
        self._copier.close()
        self._client.close()

    def _begin_load(self, plan: LoadPlan, now: float) -> None:
        session = self._session
        if session is None or session.landing is None or self._copies is None:
            self._loads.begin(plan, now)
            self._counts["load_no_sidecar" if self._copies is not None else "load_cannot_copy"] += 1
            return
        allowed_ms = session.welcome.fetch_deadline_ms
        self._loads.begin(plan, now + allowed_ms / 1e3 + _DEADLINE_GRACE)
        keys = [chunk.keys[self._rank] for chunk in plan.chunks]
        self._client.send(Fetch(session.welcome.session, plan.load, keys, allowed_ms))

    def _expire(self) -> None:
        now = time.monotonic()
        if late := self._loads.fail_pending(lambda deadline: deadline <= now):
            self._counts[f"chunk_{ChunkOutcome.DEADLINE.value}"] += late
        if overdue := self._stores.overdue(now):
            self._drop(self._stores.drop(lambda store: store.request in overdue), "hold_deadline")

    def _anything_ended(self) -> bool:
        self._collect()
        return bool(self._ended) or self._stores.any_freed

    def _collect(self) -> None:
        for load in self._loads.take_ended():
            self._ended.append(load)
            if not load.all_answered and self._session is not None:
                self._client.send(Cancel(self._session.welcome.session, load.load))

    def _drop(self, stores: list[int], reason: str) -> None:
        for store in stores:
            self._read[store] = 1
            self._settled.add(store)
            self._dropped.add(store)
            self._counts[f"store_dropped_{reason}"] += 1

    # The client's thread.

    def session_began(self, welcome: Welcome) -> None:
        """Map the sidecar's buffers."""
        needed = self._shape.values_bytes
        landing = None if welcome.landing is None else MappedBuffer.open(welcome.landing, 0)
        staging = None if welcome.staging is None else MappedBuffer.open(welcome.staging, needed)
        with self._changed:
            self._session = Session(welcome, landing, staging, deque(staging.slots if staging else ()))
            self._changed.notify_all()

    def session_lost(self) -> None:
        """Nothing outstanding will come: fail it, and drop what waits to be stored."""
        with self._changed:
            self._session = None
            self._landed.clear()
            lost = self._loads.fail_pending(lambda deadline: True)
            self._counts["chunk_sidecar_lost"] += lost
            self._settled.update(self._at_sidecar.values())
            self._dropped.update(self._at_sidecar.values())
            self._at_sidecar.clear()
            self._drop(self._stores.drop(lambda store: True), "sidecar_lost")
            self._changed.notify_all()

    def received(self, message: FromSidecar) -> None:
        """Note what the sidecar says."""
        with self._changed:
            session = self._session
            if session is None:
                return
            match message:
                case Landed(job=load, index=index, slot=slot):
                    self._landed.append(LandedChunk(session, load, index, slot))
                case ChunkFailed(job=load, index=index, outcome=outcome, reason=reason):
                    self._chunk_failed(load, index, outcome, reason)
                case Stored(slot=slot, outcome=outcome):
                    self._stored(session, slot, outcome)
            self._changed.notify_all()

    def _chunk_failed(self, load: int, index: int, outcome: str, reason: str) -> None:
        if self._loads.fail(load, index):
            self._say_once(f"chunk_{outcome}", "a KV chunk is %s (%s); the engine computes it", outcome, reason)
            self._counts[f"chunk_{outcome}"] += 1

    def _stored(self, session: Session, slot: int, outcome: str) -> None:
        store = self._at_sidecar.pop(slot, None)
        if store is None:
            return
        session.free.append(slot)
        self._settled.add(store)
        if outcome.startswith("dropped"):
            self._dropped.add(store)
        self._counts[f"store_{outcome.replace(':', '_')}"] += 1

    # The copier's thread.

    def prepare(self) -> None:
        """Make the copies ready to run; if that fails nothing is loaded or stored, and the engine computes."""
        if self._copies is None or self._copies.prepare():
            return
        with self._changed:
            self._copies = None
            self._drop(self._stores.drop(lambda store: True), "cannot_copy")

    def take(self) -> Callable[[], None] | None:
        """Return the next copy: a landed chunk, else a store for which there is a free staging slot."""
        session = self._session
        if session is not None and session.landing is not None and not session.adopted:
            session.adopted = True
            if self._copies is not None:
                return partial(self._copies.adopt, session.landing)
        if self._landed:
            return partial(self._scatter, self._landed.popleft())
        if session is not None and session.staging is not None and session.free and (store := self._stores.claim()):
            return partial(self._gather, session, session.free.popleft(), store)
        return None

    def _scatter(self, landed: LandedChunk) -> None:
        with self._changed:
            chunk = self._loads.claim(landed.load, landed.index) if landed.session is self._session else None
        outcome = ChunkOutcome.CANCELLED
        if chunk is not None:
            outcome = self._copied_in(landed, BlockSpan(chunk.blocks, chunk.first_block))
        with self._changed:
            current = landed.session is self._session
            if chunk is not None:
                self._loads.settle(landed.load, landed.index, outcome is ChunkOutcome.LANDED and current)
                self._counts[f"chunk_{outcome.value}"] += 1
            self._changed.notify_all()
        if current:
            self._client.send(Release(landed.session.welcome.session, landed.load, [landed.slot]))

    def _copied_in(self, landed: LandedChunk, span: BlockSpan) -> ChunkOutcome:
        landing, copies = landed.session.landing, self._copies
        if landing is None or copies is None:
            return ChunkOutcome.PLACE_ERROR
        return copies.copy_in(landing, landed.slot, span)

    def _gather(self, session: Session, slot: int, store: ChunkStore) -> None:
        staging, copies = session.staging, self._copies
        copied = staging is not None and copies is not None and copies.copy_out(staging, slot, BlockSpan(store.blocks))
        with self._changed:
            sound = self._stores.settle(store.store)
            if sound:
                self._read[store.store] = 1
            handed_over = sound and copied and session is self._session
            if not copied:
                self._counts["store_dropped_copy_failed"] += 1
            if handed_over:
                self._at_sidecar[slot] = store.store
            else:
                session.free.append(slot)
            if sound and not handed_over:
                self._settled.add(store.store)
                self._dropped.add(store.store)
            self._changed.notify_all()
        if handed_over:
            key = ChunkKey(store.keys[self._rank])
            self._client.send(Store(session.welcome.session, slot, key, store.first))

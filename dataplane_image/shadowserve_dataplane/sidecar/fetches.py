"""Runs the engine's fetch jobs: leases landing slots, hands batches to where they run, tells the worker what became of
every chunk, and enforces the deadlines even if nobody answers.

What is to be done is kept in `FetchTable`; where, is decided by `places`. Everything here runs on the event loop and
returns at once.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shadowserve_dataplane.chunks import KEY_BYTES, ChunkKey
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.connector.messages import Cancel, ChunkFailed, Fetch, FromSidecar, Landed, Release
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.plan import FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.sidecar.fetch_table import FetchTable, Settled
from shadowserve_dataplane.sidecar.landing_slots import owner_of
from shadowserve_dataplane.sidecar.metrics import SidecarMetrics
from shadowserve_dataplane.sidecar.sessions import Session
from shadowserve_dataplane.sidecar.spoiled import SpoiledKeys
from shadowserve_dataplane.sidecar.switch import Choice, Place

MAX_JOBS = 4096
"""Most unfinished jobs; further ones are refused."""
MAX_KEYS = 65_536

_log = logging.getLogger(__name__)

Tell = Callable[[Session, FromSidecar], None]


class FetchPlaces(Protocol):
    """Where batches run. Every chunk submitted is reported at most once, on the event loop, never from `submit`."""

    def choice(self) -> Choice:
        """Return where the next batch runs."""
        ...

    def submit(self, batch: FetchJob, place: Place) -> None:
        """Start a batch there."""
        ...

    def give_up(self, batch: int, overdue: bool) -> None:
        """Stop a batch: nobody wants it any more, or (`overdue`) its deadline passed without a word."""
        ...

    def finished(self, batch: int) -> None:
        """Forget a batch: each of its chunks is settled."""
        ...


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """The longest a job may take (seconds), how many chunks may be on their way at once, and as what they land."""

    deadline: float
    in_flight: int
    mode: LandingMode


class Fetches:
    """The fetch jobs of all sessions; `spoiled` are the keys that turned out to hold nothing of use."""

    def __init__(
        self, landing: LandingBuffer, places: FetchPlaces, limits: FetchLimits, tell: Tell, metrics: SidecarMetrics
    ) -> None:
        self.spoiled = SpoiledKeys()
        self._landing = landing
        self._places = places
        self._limits = limits
        self._tell = tell
        self._metrics = metrics
        self._table = FetchTable(limits.mode)
        self._timers: dict[tuple[int, int], asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def unfinished(self) -> int:
        """Jobs under way."""
        return self._table.jobs

    def fetch(self, session: Session, message: Fetch) -> str:
        """Start a job; returns what is wrong with it, nothing if it was taken."""
        if self._table.knows(session, message.job):
            return f"job {message.job} is under way already"
        if obstacle := self._obstacle(message):
            for index in range(min(len(message.keys), MAX_KEYS)):
                self._tell(session, ChunkFailed(message.job, index, ChunkOutcome.REFUSED, obstacle))
            return obstacle
        if message.keys:
            allowed = min(max(message.deadline_ms, 0) / 1e3, self._limits.deadline)
            deadline = Deadline.after(allowed)
            keys = [ChunkKey(key) for key in message.keys]
            self._table.open(session, message.job, keys, time.monotonic(), deadline)
            timer = self._loop.call_later(allowed, self._expire, session, message.job)
            self._timers[session.number, message.job] = timer
            self._pump()
        return ""

    def cancel(self, session: Session, message: Cancel) -> None:
        """End a job that nobody waits for; slots of chunks on their way come back when it is safe."""
        self._end(session, message.job, ChunkOutcome.CANCELLED, "the engine cancelled the job")
        self._pump()

    def release(self, session: Session, message: Release) -> bool:
        """Take back landed slots; returns whether the worker held all of them."""
        refs = [self._table.release(session.number, slot) for slot in message.slots]
        for ref in refs:
            if ref is not None:
                self._landing.release(ref.lease)
        self._pump()
        return None not in refs

    def drop(self, session: Session) -> None:
        """Take back everything a session has: it was replaced."""
        for job in self._table.jobs_of(session.number):
            self._end(session, job, ChunkOutcome.CANCELLED, "the engine said hello again")
        for ref in self._table.release_all(session.number):
            self._landing.release(ref.lease)

    def report(self, result: ChunkResult) -> None:
        """Take in what became of a chunk; late news of a chunk that was given up only frees its slot."""
        settled = self._table.settle(result.job, result.index, result.outcome)
        if settled is not None:
            self.spoiled.fetched(settled.key, result.outcome)
            if result.outcome is ChunkOutcome.LANDED:  # counted before it is told, as in `_answer`
                self._metrics.landed(result.encoded_bytes, result.values_bytes)
            self._answer(settled, result.outcome, result.detail)
            if not self._table.outstanding(result.job):
                self._places.finished(result.job)
        self._pump()

    def close(self) -> None:
        """Fail every job: the sidecar stops."""
        for session, job in self._table.all_jobs():
            self._end(session, job, ChunkOutcome.CANCELLED, "the sidecar stops")

    def _obstacle(self, message: Fetch) -> str:
        if self._table.jobs >= MAX_JOBS:
            return f"{MAX_JOBS} jobs are under way"
        if len(message.keys) > MAX_KEYS:
            return f"{len(message.keys)} keys, at most {MAX_KEYS} are allowed"
        if any(len(key) != KEY_BYTES for key in message.keys):
            return f"a key that is not {KEY_BYTES} bytes long"
        return ""

    def _pump(self) -> None:
        """Give free slots to waiting chunks."""
        if not self._table.waiting:
            return
        choice = self._places.choice()
        if choice.place is Place.NONE:
            self._fail_all_waiting(choice.reason)
            return
        room = self._limits.in_flight - self._table.running
        for batch in self._table.next_batches(room, self._lease):
            self._places.submit(batch, choice.place)

    def _lease(self, session: Session) -> SlotRef | None:
        return self._landing.lease(owner_of(session))

    def _fail_all_waiting(self, reason: str) -> None:
        for session, job in self._table.all_jobs():
            for settled in self._table.fail_waiting(session.number, job, ChunkOutcome.PLACE_ERROR):
                self._answer(settled, ChunkOutcome.PLACE_ERROR, reason)

    def _expire(self, session: Session, job: int) -> None:
        self._end(session, job, ChunkOutcome.DEADLINE, "the deadline passed")
        self._pump()

    def _end(self, session: Session, job: int, outcome: ChunkOutcome, reason: str) -> None:
        for number in self._table.batches_of(session.number, job):
            for index in self._table.outstanding(number):
                if settled := self._table.settle(number, index, outcome):
                    self._answer(settled, outcome, reason)
            self._places.give_up(number, outcome is ChunkOutcome.DEADLINE)
        for settled in self._table.fail_waiting(session.number, job, outcome):
            self._answer(settled, outcome, f"{reason}; no landing slot was free")

    def _answer(self, settled: Settled, outcome: ChunkOutcome, reason: str) -> None:
        session, ref = settled.session, settled.ref
        if settled.finished is not None:  # counted before it is told: who was told finds it in the metrics
            self._metrics.fetched(settled.finished.outcome, time.monotonic() - settled.finished.began)
            self._timers.pop((session.number, settled.job)).cancel()
        if ref is not None and outcome is ChunkOutcome.LANDED:
            self._landing.hand_over(ref.lease)
            self._tell(session, Landed(settled.job, settled.index, ref.slot))
        else:
            if ref is not None:
                self._landing.revoke(ref.lease)
            self._tell(session, ChunkFailed(settled.job, settled.index, outcome, reason))

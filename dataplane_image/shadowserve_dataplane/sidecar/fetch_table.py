"""All fetch jobs of the engine, and which landing slots they have: state only. Nothing here waits, sends or copies.

A chunk waits for a landing slot, runs in a batch, and is settled once: landed, then its slot is held by the worker
until it says `Release`, or failed. A batch is what one data plane gets at one time of the engine's job: a `FetchJob`
with a number of ours. Jobs get slots in the order they came; chunks of one job go out in order and come back in any.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.landing import SlotRef
from shadowserve_dataplane.sidecar.sessions import Session

JobName = tuple[int, int]
"""Session number and the connector's own number of the job."""
LeaseSlot = Callable[[Session], SlotRef | None]
"""Gives a free landing slot, None when there is none."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A job of which every chunk is settled; `outcome` is the worst of theirs."""

    outcome: ChunkOutcome
    began: float


@dataclass(frozen=True, slots=True)
class Settled:
    """One chunk that is settled now; `ref` is its slot if it had one, `finished` is there with a job's last chunk."""

    session: Session
    job: int
    index: int
    key: ChunkKey
    ref: SlotRef | None
    finished: Finished | None


@dataclass(slots=True)
class _Job:
    session: Session
    number: int
    keys: tuple[ChunkKey, ...]
    began: float
    deadline: Deadline
    waiting: deque[int]
    running: int = 0
    outcomes: Counter[ChunkOutcome] = field(default_factory=Counter)

    @property
    def name(self) -> JobName:
        return self.session.number, self.number

    def settle(self, outcome: ChunkOutcome) -> Finished | None:
        self.outcomes[outcome] += 1
        if self.waiting or self.running:
            return None
        return Finished(worst(self.outcomes), self.began)


_BY_GRAVITY = (
    ChunkOutcome.DAMAGED,
    ChunkOutcome.REFUSED,
    ChunkOutcome.STORE_ERROR,
    ChunkOutcome.PLACE_ERROR,
    ChunkOutcome.DEADLINE,
    ChunkOutcome.MISSING,
    ChunkOutcome.CANCELLED,
    ChunkOutcome.LANDED,
)


def worst(outcomes: Iterable[ChunkOutcome]) -> ChunkOutcome:
    """Return what tells most about a job with these outcomes; `LANDED` only when every chunk did."""
    return min(outcomes, key=_BY_GRAVITY.index, default=ChunkOutcome.LANDED)


class FetchTable:
    """The jobs, their batches, and the slots that workers hold."""

    def __init__(self, mode: LandingMode) -> None:
        self._mode = mode
        self._jobs: dict[JobName, _Job] = {}
        self._batches: dict[int, tuple[_Job, dict[int, SlotRef]]] = {}
        self._held: dict[int, tuple[int, SlotRef]] = {}
        self._last_batch = 0

    @property
    def running(self) -> int:
        """Chunks that are in a batch and not settled."""
        return sum(len(refs) for _, refs in self._batches.values())

    @property
    def jobs(self) -> int:
        """Jobs that are not finished."""
        return len(self._jobs)

    @property
    def waiting(self) -> bool:
        """Whether any chunk waits for a slot."""
        return any(job.waiting for job in self._jobs.values())

    def all_jobs(self) -> list[tuple[Session, int]]:
        """Return the unfinished jobs, oldest first."""
        return [(job.session, job.number) for job in self._jobs.values()]

    def knows(self, session: Session, job: int) -> bool:
        """Return whether the session has an unfinished job of this number."""
        return (session.number, job) in self._jobs

    def open(self, session: Session, job: int, keys: Iterable[ChunkKey], began: float, deadline: Deadline) -> None:
        """Take in a job with at least one key; its chunks wait for slots."""
        chunks = tuple(keys)
        entry = _Job(session, job, chunks, began, deadline, deque(range(len(chunks))))
        self._jobs[entry.name] = entry

    def next_batches(self, room: int, lease: LeaseSlot) -> Iterator[FetchJob]:
        """Give slots to waiting chunks, at most `room`, until `lease` has none left; yield what can be started."""
        for job in [job for job in self._jobs.values() if job.waiting]:
            chunks = self._lease_for(job, room, lease)
            room -= len(chunks)
            if chunks:
                self._last_batch += 1
                self._batches[self._last_batch] = (job, {chunk.index: chunk.ref for chunk in chunks})
                yield FetchJob(self._last_batch, job.session.shape, self._mode, chunks, job.deadline)
            if job.waiting:
                return

    def settle(self, batch: int, index: int, outcome: ChunkOutcome) -> Settled | None:
        """Settle a running chunk; a landed one's slot is held from now on. None: it was settled before."""
        job, refs = self._batches.get(batch, (None, {}))
        if job is None or index not in refs:
            return None
        ref = refs.pop(index)
        if not refs:
            del self._batches[batch]
        job.running -= 1
        if outcome is ChunkOutcome.LANDED:
            self._held[ref.slot] = (job.session.number, ref)
        return self._settled(job, index, ref, outcome)

    def outstanding(self, batch: int) -> list[int]:
        """Return the chunks of a batch that are not settled."""
        _, refs = self._batches.get(batch, (None, {}))
        return list(refs)

    def batches_of(self, session: int, job: int) -> list[int]:
        """Return the job's batches that are not settled."""
        return [number for number, (entry, _) in self._batches.items() if entry.name == (session, job)]

    def fail_waiting(self, session: int, job: int, outcome: ChunkOutcome) -> Iterator[Settled]:
        """Settle every chunk of the job that has no slot yet."""
        entry = self._jobs.get((session, job))
        while entry is not None and entry.waiting:
            yield self._settled(entry, entry.waiting.popleft(), None, outcome)

    def release(self, session: int, slot: int) -> SlotRef | None:
        """Take back a slot that the session's worker held; None when it did not."""
        holder, ref = self._held.get(slot, (None, None))
        if holder != session:
            return None
        del self._held[slot]
        return ref

    def release_all(self, session: int) -> list[SlotRef]:
        """Take back every slot that the session's worker held."""
        slots = [slot for slot, (holder, _) in self._held.items() if holder == session]
        return [self._held.pop(slot)[1] for slot in slots]

    def jobs_of(self, session: int) -> list[int]:
        """Return the unfinished jobs of a session."""
        return [job for holder, job in self._jobs if holder == session]

    def _lease_for(self, job: _Job, room: int, lease: LeaseSlot) -> tuple[ChunkRequest, ...]:
        chunks: list[ChunkRequest] = []
        while job.waiting and len(chunks) < room and (ref := lease(job.session)) is not None:
            index = job.waiting.popleft()
            chunks.append(ChunkRequest(index, job.keys[index], ref))
        job.running += len(chunks)
        return tuple(chunks)

    def _settled(self, job: _Job, index: int, ref: SlotRef | None, outcome: ChunkOutcome) -> Settled:
        finished = job.settle(outcome)
        if finished is not None:
            del self._jobs[job.name]
        return Settled(job.session, job.number, index, job.keys[index], ref, finished)

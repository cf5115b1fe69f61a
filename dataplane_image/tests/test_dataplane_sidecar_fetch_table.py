"""The state of fetch jobs: slots go out in order, every chunk is settled once, slots come back once."""

from itertools import count

import pytest

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.plan import FetchJob
from shadowserve_dataplane.landing import SlotRef
from shadowserve_dataplane.sidecar.fetch_table import FetchTable, Settled, worst
from shadowserve_dataplane.sidecar.sessions import Session

WORKER = Session(1, b"peer", "worker", "engine", 0, 1, KvShape(2, 1, 8))
LANDED, MISSING = ChunkOutcome.LANDED, ChunkOutcome.MISSING


class Slots:
    """A landing buffer's slots, as far as the table sees them."""

    def __init__(self, number: int) -> None:
        self.free = list(range(number))
        self._leases = count(100)

    def lease(self, session: Session) -> SlotRef | None:
        return SlotRef(self.free.pop(0), next(self._leases)) if self.free else None


@pytest.fixture
def table() -> FetchTable:
    return FetchTable(LandingMode.CODES)


def open_job(table: FetchTable, job: int, chunks: int, session: Session = WORKER) -> None:
    table.open(session, job, [key(job, index) for index in range(chunks)], 10.0, Deadline(20.0))


def key(job: int, index: int) -> ChunkKey:
    return ChunkKey(job.to_bytes(16, "big") + index.to_bytes(16, "big"))


def start(table: FetchTable, slots: Slots, room: int = 64) -> list[FetchJob]:
    return list(table.next_batches(room, slots.lease))


def indices(batches: list[FetchJob]) -> list[list[int]]:
    return [[chunk.index for chunk in batch.chunks] for batch in batches]


def test_a_job_that_fits_goes_out_as_one_batch(table: FetchTable):
    open_job(table, 7, 3)
    [batch] = start(table, Slots(8))
    assert [chunk.index for chunk in batch.chunks] == [0, 1, 2]
    assert [chunk.key for chunk in batch.chunks] == [key(7, 0), key(7, 1), key(7, 2)]
    assert len({chunk.ref.lease for chunk in batch.chunks}) == 3
    assert (table.running, table.jobs, table.waiting) == (3, 1, False)


def test_slots_go_to_the_oldest_job_first_and_the_rest_waits(table: FetchTable):
    open_job(table, 1, 3)
    open_job(table, 2, 3)
    slots = Slots(4)
    assert indices(start(table, slots)) == [[0, 1, 2], [0]]
    assert table.waiting
    slots.free += [4]
    assert indices(start(table, slots)) == [[1]]


def test_no_more_chunks_are_on_their_way_than_there_is_room_for(table: FetchTable):
    open_job(table, 1, 5)
    assert indices(start(table, Slots(8), room=2)) == [[0, 1]]
    assert start(table, Slots(8), room=0) == []


def test_landed_slots_are_held_until_their_worker_releases_them(table: FetchTable):
    open_job(table, 1, 1)
    [batch] = start(table, Slots(1))
    settled = table.settle(batch.job, 0, LANDED)
    assert settled is not None
    assert settled.finished is not None
    assert settled.finished.outcome is LANDED
    assert table.release(session=99, slot=0) is None
    assert table.release(WORKER.number, 0) == batch.chunks[0].ref
    assert table.release(WORKER.number, 0) is None


def test_every_chunk_is_settled_once_and_the_last_one_finishes_the_job(table: FetchTable):
    open_job(table, 1, 3)
    [first] = start(table, Slots(2))
    assert unfinished(table.settle(first.job, 1, MISSING))
    assert table.settle(first.job, 1, LANDED) is None
    assert unfinished(table.settle(first.job, 0, LANDED))
    assert table.outstanding(first.job) == []
    [second] = start(table, Slots(2))
    last = table.settle(second.job, 2, LANDED)
    assert last is not None
    assert last.finished is not None
    assert (last.finished.outcome, last.finished.began) == (MISSING, 10.0)
    assert table.jobs == 0


def unfinished(settled: Settled | None) -> bool:
    return settled is not None and settled.finished is None


def test_a_job_that_is_given_up_settles_what_waits_and_what_runs(table: FetchTable):
    open_job(table, 1, 4)
    [batch] = start(table, Slots(2))
    assert table.batches_of(WORKER.number, 1) == [batch.job]
    running = [table.settle(batch.job, index, ChunkOutcome.DEADLINE) for index in table.outstanding(batch.job)]
    waiting = list(table.fail_waiting(WORKER.number, 1, ChunkOutcome.DEADLINE))
    assert [settled.index for settled in running if settled] == [0, 1]
    assert [(settled.index, settled.ref) for settled in waiting] == [(2, None), (3, None)]
    assert waiting[-1].finished is not None
    assert (table.jobs, table.running, table.batches_of(WORKER.number, 1)) == (0, 0, [])


def test_a_session_that_ends_gives_back_its_slots_only(table: FetchTable):
    other = Session(2, b"other", "worker", "engine", 1, 2, WORKER.shape)
    open_job(table, 1, 2)
    open_job(table, 1, 1, other)
    mine, others = start(table, Slots(3))
    for index in range(2):
        table.settle(mine.job, index, LANDED)
    table.settle(others.job, 0, LANDED)
    assert {ref.slot for ref in table.release_all(WORKER.number)} == {0, 1}
    assert table.release(other.number, 2) is not None


def test_thousands_of_jobs_leave_nothing_behind(table: FetchTable):
    slots = Slots(4)
    for job in range(3000):
        open_job(table, job, 2)
        [batch] = start(table, slots)
        for chunk in batch.chunks:
            table.settle(batch.job, chunk.index, LANDED)
            ref = table.release(WORKER.number, chunk.ref.slot)
            assert ref is not None
            slots.free.append(ref.slot)
    assert (table.jobs, table.running, table.waiting) == (0, 0, False)
    assert table.release_all(WORKER.number) == []


def test_the_worst_outcome_tells_most():
    assert worst([LANDED, LANDED]) is LANDED
    assert worst([LANDED, MISSING, ChunkOutcome.DEADLINE]) is ChunkOutcome.DEADLINE
    assert worst([ChunkOutcome.CANCELLED, ChunkOutcome.DAMAGED]) is ChunkOutcome.DAMAGED
    assert {worst([outcome]) for outcome in ChunkOutcome} == set(ChunkOutcome)

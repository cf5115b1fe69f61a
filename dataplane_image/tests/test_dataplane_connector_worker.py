"""The worker half with a sidecar: chunks reach the right blocks, and no block the engine has given away."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from connector_fakes import SHAPE, FakeCache, chunk_values, hello
from real_store import wait_until
from stub_sidecar import Behaviour, StubSidecar

from shadowserve_dataplane.connector.messages import Cancel, Fetch, Release, Store
from shadowserve_dataplane.connector.plan import ChunkLoad, ChunkStore, LoadPlan, StepPlan, StepReport
from shadowserve_dataplane.connector.settings import ConnectorSettings
from shadowserve_dataplane.connector.worker import WorkerHalf

VALUES = [chunk_values(seed) for seed in range(4)]
KEYS = [bytes([seed]) * 32 for seed in range(4)]
LOAD = LoadPlan(1, "r", tuple(ChunkLoad((KEYS[i],), tuple(range(10 + 4 * i, 14 + 4 * i))) for i in range(3)))
STORE = ChunkStore(5, "s", (KEYS[3],), (40, 41, 42, 43), first=True)


class Engine:
    """The worker half as the engine drives it."""

    def __init__(self, socket: str, cache: FakeCache | None = None, **settings: float) -> None:
        self.cache = cache or FakeCache()
        self.worker = WorkerHalf(ConnectorSettings(socket, **settings), hello(), SHAPE)  # type: ignore[arg-type]
        self.worker.register(self.cache)
        self.freed: set[str] = set()
        self.loaded: set[str] = set()
        self.failed: set[int] = set()
        self.report = StepReport()

    def step(self, plan: StepPlan = StepPlan(idle=True)) -> None:
        """One step of the engine."""
        self.worker.begin_step(plan)
        self.worker.stores_ready(plan)
        freed, loaded = self.worker.end_step(plan)
        self.freed |= freed
        self.loaded |= loaded
        self.failed |= self.worker.take_failed_blocks()
        self.report = self.report.merged(self.worker.take_report())

    def step_until(self, what: str, done: "object") -> None:
        def stepped() -> bool:
            self.step()
            return bool(done())  # type: ignore[operator]

        wait_until(stepped, what)

    def chunk(self, *blocks: int) -> bytes:
        return np.concatenate([self.cache.blocks[block] for block in blocks], axis=1).tobytes()


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def stub(socket: str) -> Iterator[StubSidecar]:
    stub = StubSidecar(socket, slots=2)
    stub.chunks.update(zip(KEYS[:3], VALUES, strict=False))
    yield stub
    stub.close()


@pytest.fixture
def engine(socket: str, stub: StubSidecar) -> Iterator[Engine]:
    engine = Engine(socket)
    wait_until(lambda: engine.worker.connected, "a session")
    yield engine
    engine.cache.gate.set()
    engine.worker.close()


def test_chunks_land_in_their_blocks_and_slots_go_back(engine: Engine, stub: StubSidecar) -> None:
    engine.step(StepPlan(loads=(LOAD,)))
    engine.step_until("the load", lambda: engine.loaded)
    assert engine.loaded == {"r"}
    assert [engine.chunk(*range(10 + 4 * i, 14 + 4 * i)) for i in range(3)] == VALUES[:3]
    assert engine.failed == set()
    assert engine.report.empty
    assert sum(len(release.slots) for release in stub.wait_for(Release, 3)) == 3
    assert not stub.of(Cancel)


def test_every_landing_buffer_is_adopted_once_and_before_anything_lands(engine: Engine, stub: StubSidecar) -> None:
    engine.step(StepPlan(loads=(LOAD,)))
    engine.step_until("the load", lambda: engine.loaded)
    (landing,) = engine.cache.adopted
    assert bytes(landing[:4]) == b"SSLD"


def test_a_landing_buffer_that_cannot_be_adopted_is_read_all_the_same(socket: str, stub: StubSidecar) -> None:
    class UnwillingDevice(FakeCache):
        def adopt(self, landing: memoryview) -> None:
            super().adopt(landing)
            raise RuntimeError("out of page-locked memory")

    engine = Engine(socket, UnwillingDevice())
    wait_until(lambda: engine.worker.connected, "a session")
    engine.step(StepPlan(loads=(LOAD,)))
    engine.step_until("the load", lambda: engine.loaded)
    assert engine.failed == set()
    engine.worker.close()


def test_blocks_of_a_local_hit_inside_a_chunk_stay_untouched(engine: Engine) -> None:
    part = LoadPlan(1, "r", (ChunkLoad((KEYS[0],), (12, 13), first_block=2),))
    engine.step(StepPlan(loads=(part,)))
    engine.step_until("the load", lambda: engine.loaded)
    chunk = np.frombuffer(VALUES[0], np.uint16).reshape(4, 16, 8)
    assert np.array_equal(engine.cache.blocks[12], chunk[:, 8:12])
    assert np.array_equal(engine.cache.blocks[13], chunk[:, 12:16])
    assert not engine.cache.blocks[[0, 1, 10, 11]].any()


@pytest.mark.parametrize("missing", range(3))
def test_a_missing_chunk_fails_its_blocks_and_those_behind_it(engine: Engine, stub: StubSidecar, missing: int) -> None:
    del stub.chunks[KEYS[missing]]
    engine.step(StepPlan(loads=(LOAD,)))
    engine.step_until("the load", lambda: engine.loaded)
    assert engine.failed == set(range(10 + 4 * missing, 22))
    assert engine.report.failed_loads == {1}
    assert engine.worker.take_counts()["chunk_missing"] == 1


def test_a_damaged_image_fails_its_chunk(engine: Engine, stub: StubSidecar) -> None:
    def damage(index: int, image: bytearray) -> None:
        if index == 1:
            image[8] ^= 0xFF

    stub.behaviour.damage = damage
    engine.step(StepPlan(loads=(LOAD,)))
    engine.step_until("the load", lambda: engine.loaded)
    assert engine.failed == set(range(14, 22))
    stub.wait_for(Release, 2)


def test_a_sidecar_that_never_answers_costs_its_deadline(socket: str, stub: StubSidecar) -> None:
    stub.behaviour = Behaviour(fetch_deadline_ms=1000, fetch=lambda job, index, key: "hold" if index == 1 else "land")
    engine = Engine(socket)
    wait_until(lambda: engine.worker.connected, "a session")
    engine.step(StepPlan(loads=(LOAD,)))
    engine.step_until("the load", lambda: engine.loaded)
    assert engine.failed == set(range(14, 22))
    assert engine.worker.take_counts()["chunk_deadline"] >= 1
    before = engine.cache.blocks.copy()
    stub.release_held()
    wait_until(lambda: sum(len(r.slots) for r in stub.of(Release)) == 3, "the late chunk's slot back")
    assert np.array_equal(engine.cache.blocks, before)
    engine.worker.close()


def test_a_sidecar_that_dies_fails_what_is_under_way_and_the_next_load_works(socket: str, stub: StubSidecar) -> None:
    stub.behaviour.fetch = lambda job, index, key: "hold"
    engine = Engine(socket)
    wait_until(lambda: engine.worker.connected, "a session")
    engine.step(StepPlan(loads=(LOAD,)))
    stub.wait_for(Fetch)
    stub.close()
    engine.step_until("the load", lambda: engine.loaded)
    assert engine.failed == set(range(10, 22))
    assert engine.worker.take_counts()["chunk_sidecar_lost"] == 3
    engine.loaded.clear()
    engine.step(StepPlan(loads=(LoadPlan(2, "q", LOAD.chunks),)))
    assert engine.loaded == {"q"}
    again = StubSidecar(socket, first_session=7)
    again.chunks.update(stub.chunks)
    wait_until(lambda: engine.worker.connected, "another session")
    engine.failed.clear()
    engine.step(StepPlan(loads=(LoadPlan(3, "p", LOAD.chunks),)))
    engine.step_until("the next load", lambda: "p" in engine.loaded)
    assert engine.failed == set()
    engine.worker.close()
    again.close()


def test_a_cancelled_load_ends_and_writes_nothing_more(engine: Engine, stub: StubSidecar) -> None:
    stub.behaviour.fetch = lambda job, index, key: "hold"
    engine.step(StepPlan(loads=(LOAD,)))
    stub.wait_for(Fetch)
    engine.step(StepPlan(cancels=(1,)))
    assert engine.loaded == {"r"}
    assert engine.failed == set()
    stub.wait_for(Cancel)
    stub.release_held()
    wait_until(lambda: sum(len(r.slots) for r in stub.of(Release)) == 3, "every slot back")
    assert not engine.cache.blocks.any()


def test_a_load_is_not_over_while_it_is_written_whatever_happens(engine: Engine, stub: StubSidecar) -> None:
    engine.cache.gate.clear()
    engine.step(StepPlan(loads=(LOAD,)))
    assert engine.cache.entered.wait(60)
    engine.step(StepPlan(cancels=(1,), idle=True))
    engine.step()
    assert engine.loaded == set()
    engine.cache.gate.set()
    engine.step_until("the end", lambda: engine.loaded)
    assert not engine.cache.blocks[14:22].any()


def test_a_slot_whose_session_ended_meanwhile_does_not_count(engine: Engine, stub: StubSidecar) -> None:
    engine.cache.gate.clear()
    engine.step(StepPlan(loads=(LOAD,)))
    assert engine.cache.entered.wait(60)
    stub.forget_sessions()
    engine.worker.begin_step(StepPlan(loads=(LoadPlan(2, "q", LOAD.chunks),)))
    engine.step_until("the second load's end", lambda: engine.report.failed_loads or engine.loaded)
    engine.cache.gate.set()
    engine.step_until("the first load's end", lambda: "r" in engine.loaded)
    assert engine.failed >= set(range(10, 22))


def test_a_filled_chunk_reaches_the_sidecar(engine: Engine, stub: StubSidecar) -> None:
    engine.cache.blocks[40:44] = np.frombuffer(VALUES[3], np.uint16).reshape(4, 4, 4, 8).transpose(1, 0, 2, 3)
    engine.step(StepPlan(stores=(STORE,)))
    engine.step_until("the end of the store", lambda: engine.report.settled)
    assert engine.report == StepReport(read={5: 1}, settled=frozenset({5}))
    assert stub.chunks[KEYS[3]] == VALUES[3]
    assert [(store.key, store.first) for store in stub.of(Store)] == [(KEYS[3], True)]
    assert engine.worker.take_counts() == {"store_stored": 1}


def test_more_stores_than_slots_wait_for_a_slot(engine: Engine, stub: StubSidecar) -> None:
    stores = tuple(ChunkStore(n, "s", (bytes([n]) * 32,), (40, 41, 42, 43), first=False) for n in range(9))
    engine.step(StepPlan(stores=stores))
    engine.step_until("the stores", lambda: len(engine.report.settled) == 9)
    assert engine.report.dropped == frozenset()


def test_a_refused_store_is_told(engine: Engine, stub: StubSidecar) -> None:
    stub.behaviour.store = lambda key: "dropped:queue_full"
    engine.step(StepPlan(stores=(STORE,)))
    engine.step_until("the end of the store", lambda: engine.report.settled)
    assert engine.report.dropped == {5}
    assert engine.worker.take_counts() == {"store_dropped_queue_full": 1}


def test_a_finished_request_is_freed_when_its_blocks_were_read(engine: Engine, stub: StubSidecar) -> None:
    engine.cache.gate.clear()
    engine.step(StepPlan(stores=(STORE,)))
    engine.step(StepPlan(held=("s",), idle=True))
    assert engine.freed == set()
    engine.cache.gate.set()
    engine.step_until("the blocks", lambda: engine.freed)
    assert engine.freed == {"s"}
    stub.wait_for(Store)


def test_a_finished_request_is_freed_at_the_hold_deadline(socket: str, stub: StubSidecar) -> None:
    engine = Engine(socket, store_hold=0.02)
    wait_until(lambda: engine.worker.connected, "a session")
    engine.cache.gate.clear()
    engine.step(StepPlan(stores=(STORE,)))
    assert engine.cache.entered.wait(60)
    engine.step(StepPlan(held=("s",), idle=True))
    engine.step_until("the blocks", lambda: engine.freed)
    assert engine.report.dropped == {5}
    engine.cache.gate.set()
    engine.worker.close()
    assert not stub.of(Store)


def test_what_was_preempted_while_it_was_read_is_not_stored(engine: Engine, stub: StubSidecar) -> None:
    engine.cache.gate.clear()
    engine.step(StepPlan(stores=(STORE,)))
    assert engine.cache.entered.wait(60)
    engine.step(StepPlan(preempted=frozenset({"s"})))
    assert engine.report == StepReport({5: 1}, frozenset({5}), frozenset({5}))
    engine.cache.gate.set()
    other = ChunkStore(6, "t", (KEYS[2],), (44, 45, 46, 47), first=False)
    engine.step(StepPlan(stores=(other,)))
    engine.step_until("the other store", lambda: 6 in engine.report.settled)
    assert [store.key for store in stub.of(Store)] == [KEYS[2]]


def test_without_a_sidecar_loads_fail_and_stores_are_dropped_at_once(socket: str) -> None:
    engine = Engine(socket)
    engine.step(StepPlan(loads=(LOAD,), stores=(STORE,)))
    assert engine.loaded == {"r"}
    assert engine.failed == set(range(10, 22))
    assert engine.report == StepReport({5: 1}, frozenset({5}), frozenset({5}), frozenset({1}))
    engine.worker.close()


def test_a_buffer_too_small_for_a_chunk_is_not_used(
    socket: str, stub: StubSidecar, caplog: pytest.LogCaptureFixture
) -> None:
    stub.behaviour.small_slots = True
    engine = Engine(socket)
    wait_until(lambda: "a chunk needs" in caplog.text, "the reason in the log")
    assert not engine.worker.connected
    engine.worker.close()


class BrokenCache(FakeCache):
    """A cache whose device fails."""

    def scatter(self, image: object, span: object) -> None:
        raise MemoryError("out of device memory")

    def gather(self, span: object, values: memoryview) -> None:
        raise MemoryError("out of device memory")


class UncompiledCache(FakeCache):
    """A cache whose kernels cannot be made."""

    def prepare(self) -> None:
        raise RuntimeError("no compiler")


def test_a_device_that_fails_costs_the_chunk_and_not_the_request(socket: str, stub: StubSidecar) -> None:
    engine = Engine(socket, cache=BrokenCache())
    wait_until(lambda: engine.worker.connected, "a session")
    for load in (1, 2):
        engine.loaded.clear()
        engine.step(StepPlan(loads=(LoadPlan(load, "r", LOAD.chunks),)))
        engine.step_until("the load", lambda: engine.loaded)
        assert engine.failed == set(range(10, 22))
    assert sum(len(release.slots) for release in stub.wait_for(Release, 6)) == 6
    engine.step(StepPlan(stores=(STORE,)))
    engine.step_until("the store dropped", lambda: engine.report.dropped)
    assert engine.report.dropped == {5}
    assert not stub.of(Store)
    engine.worker.close()


def test_kernels_that_cannot_be_made_mean_that_the_engine_computes(socket: str, stub: StubSidecar) -> None:
    engine = Engine(socket, cache=UncompiledCache())
    wait_until(lambda: engine.worker.connected, "a session")
    wait_until(lambda: not engine.worker.can_copy, "the failure")
    engine.step(StepPlan(loads=(LOAD,)))
    engine.step_until("the load", lambda: engine.loaded)
    assert engine.failed == set(range(10, 22))
    assert not stub.of(Fetch), "nothing is fetched that could not be used"
    engine.worker.close()

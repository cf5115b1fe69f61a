"""The scheduler half with a sidecar: what vLLM hears about a request from arrival to end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from connector_fakes import GEOMETRY, SHAPE, hello, request, scheduled
from real_store import wait_until
from stub_sidecar import Behaviour, StubSidecar

from shadowserve_dataplane.chunks import chunk_keys, namespace
from shadowserve_dataplane.connector.identity import CacheIdentity, ModelSource
from shadowserve_dataplane.connector.messages import Hello, Lookup
from shadowserve_dataplane.connector.plan import ChunkLoad, StepPlan, StepReport
from shadowserve_dataplane.connector.scheduler import NewRequest, ScheduledRequest, SchedulerHalf, Step
from shadowserve_dataplane.connector.settings import ConnectorSettings

TOKENS = list(range(100))
KEYS = chunk_keys(namespace(b"model", SHAPE, tenant_salt=b"salt"), TOKENS, 16)
BLOCKS = list(range(200, 264))


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def stub(socket: str) -> Iterator[StubSidecar]:
    stub = StubSidecar(socket)
    yield stub
    stub.close()


def make(socket: str, world: int = 1) -> SchedulerHalf:
    identity = CacheIdentity(ModelSource(list, given=b"model"), SHAPE, world)
    half = SchedulerHalf(ConnectorSettings(socket), hello("scheduler", world), GEOMETRY, identity)
    half.start()
    return half


@pytest.fixture
def half(socket: str, stub: StubSidecar) -> Iterator[SchedulerHalf]:
    half = make(socket)
    wait_until(lambda: half.connected, "a session")
    yield half
    half.close()


def step(*requests: ScheduledRequest, preempted: frozenset[str] = frozenset()) -> Step:
    return Step(requests, preempted, idle=not requests)


def matched(half: SchedulerHalf, name: str, computed: int = 0) -> int:
    """What the engine hears once it is no longer told to ask again."""
    wait_until(lambda: half.matched_tokens(name, computed) is not None, "an answer")
    tokens = half.matched_tokens(name, computed)
    assert tokens is not None
    return tokens


def have(stub: StubSidecar, chunks: int) -> None:
    stub.chunks.update((key, b"") for key in KEYS[:chunks])


def arrive(half: SchedulerHalf, stub: StubSidecar, chunks: int, new: NewRequest | None = None) -> int:
    have(stub, chunks)
    half.arrived(new or request("r", TOKENS))
    return matched(half, "r")


@pytest.mark.parametrize("chunks", range(7))
def test_any_number_of_leading_chunks_is_a_hit(half: SchedulerHalf, stub: StubSidecar, chunks: int) -> None:
    assert arrive(half, stub, chunks) == 16 * chunks


def test_a_short_prompt_costs_no_look_up(half: SchedulerHalf, stub: StubSidecar) -> None:
    half.arrived(request("r", TOKENS[:16]))
    assert half.matched_tokens("r", 0) == 0
    assert arrive(half, stub, 1) == 16
    assert len(stub.of(Lookup)) == 1


def test_asking_again_changes_nothing(half: SchedulerHalf, stub: StubSidecar) -> None:
    arrive(half, stub, 3)
    assert [half.matched_tokens("r", computed) for computed in (0, 4, 44, 48, 64, 0)] == [48, 44, 4, 0, 0, 48]
    assert half.plan_step(step()) == StepPlan(idle=True)


def test_no_answer_is_a_miss_at_the_deadline(socket: str) -> None:
    stub = StubSidecar(socket, Behaviour(answer_lookups=False, lookup_deadline_ms=50))
    half = make(socket)
    wait_until(lambda: half.connected, "a session")
    assert arrive(half, stub, 3) == 0
    half.close()
    stub.close()


def test_a_dying_sidecar_is_a_miss_at_once(socket: str) -> None:
    stub = StubSidecar(socket, Behaviour(answer_lookups=False, lookup_deadline_ms=600_000))
    half = make(socket)
    wait_until(lambda: half.connected, "a session")
    half.arrived(request("r", TOKENS))
    assert half.matched_tokens("r", 0) is None
    stub.close()
    assert matched(half, "r") == 0
    half.close()


def test_no_sidecar_means_no_hit_and_no_store(socket: str) -> None:
    half = make(socket)
    half.arrived(request("r", TOKENS))
    assert half.matched_tokens("r", 0) == 0
    assert half.plan_step(step(scheduled("r", 100))).stores == ()
    assert not half.finished("r")
    half.close()


def test_a_load_covers_what_was_allocated_beyond_the_local_hit(half: SchedulerHalf, stub: StubSidecar) -> None:
    arrive(half, stub, 3)
    half.allocated("r", 48 - 24, BLOCKS)
    half.allocated("r", 0, BLOCKS)
    (load,) = half.plan_step(step()).loads
    assert load.chunks == (
        ChunkLoad((KEYS[1],), tuple(BLOCKS[6:8]), first_block=2),
        ChunkLoad((KEYS[2],), tuple(BLOCKS[8:12])),
    )
    assert half.plan_step(step()).loads == ()


def test_a_prompt_that_is_a_whole_number_of_chunks_may_come_from_outside_entirely(
    half: SchedulerHalf, stub: StubSidecar
) -> None:
    assert arrive(half, stub, 6, request("r", TOKENS[:96])) == 96


def test_an_aborted_load_is_cancelled_and_its_blocks_are_left_to_the_engine(
    half: SchedulerHalf, stub: StubSidecar
) -> None:
    arrive(half, stub, 3)
    half.allocated("r", 48, BLOCKS)
    (load,) = half.plan_step(step()).loads
    assert half.finished("r") is False
    plan = half.plan_step(step())
    assert plan.cancels == (load.load,)
    assert plan.held == ()
    half.received_all(["r"])
    half.reported(StepReport(failed_loads=frozenset({load.load})))


def test_after_a_failed_load_nothing_is_loaded_again_and_what_is_computed_is_stored(
    half: SchedulerHalf, stub: StubSidecar
) -> None:
    arrive(half, stub, 3)
    half.allocated("r", 48, BLOCKS)
    (load,) = half.plan_step(step()).loads
    half.reported(StepReport(failed_loads=frozenset({load.load})))
    half.received_all(["r"])
    assert half.matched_tokens("r", 0) == 0
    stores = half.plan_step(step(scheduled("r", 100, BLOCKS))).stores
    assert [store.keys[0] for store in stores] == KEYS


def test_chunks_are_stored_as_they_fill_and_only_once(half: SchedulerHalf, stub: StubSidecar) -> None:
    new = request("r", TOKENS[:40])
    arrive(half, stub, 1, new)
    assert half.plan_step(step(scheduled("r", 30, BLOCKS))).stores == ()
    (second,) = half.plan_step(step(scheduled("r", 40, BLOCKS))).stores
    assert (second.keys, second.blocks, second.first) == ((KEYS[1],), tuple(BLOCKS[4:8]), False)
    new.live.all_token_ids.extend(TOKENS[40:48])  # type: ignore[attr-defined]
    assert half.plan_step(step(scheduled("r", 47, BLOCKS))).stores == ()
    (third,) = half.plan_step(step(scheduled("r", 48, BLOCKS))).stores
    assert (third.keys, third.blocks) == ((KEYS[2],), tuple(BLOCKS[8:12]))


def test_the_first_chunk_of_a_context_says_so(half: SchedulerHalf, stub: StubSidecar) -> None:
    arrive(half, stub, 0)
    stores = half.plan_step(step(scheduled("r", 40, BLOCKS))).stores
    assert [store.first for store in stores] == [True, False]


def test_computed_tokens_that_the_engine_does_not_know_yet_are_not_stored(
    half: SchedulerHalf, stub: StubSidecar
) -> None:
    arrive(half, stub, 0, request("r", TOKENS[:31]))
    assert len(half.plan_step(step(scheduled("r", 32, BLOCKS))).stores) == 1


def test_two_requests_with_one_prefix_store_it_once(half: SchedulerHalf, stub: StubSidecar) -> None:
    arrive(half, stub, 0)
    assert len(half.plan_step(step(scheduled("r", 100, BLOCKS))).stores) == 6
    half.arrived(request("q", TOKENS))
    assert matched(half, "q") == 0
    assert half.plan_step(step(scheduled("q", 100, BLOCKS))).stores == ()


def test_what_the_store_lost_is_stored_again(half: SchedulerHalf, stub: StubSidecar) -> None:
    arrive(half, stub, 0)
    stores = half.plan_step(step(scheduled("r", 100, BLOCKS))).stores
    numbers = [store.store for store in stores]
    half.reported(StepReport(dict.fromkeys(numbers, 1), frozenset(numbers)))
    assert not half.finished("r")
    half.arrived(request("q", TOKENS))
    assert matched(half, "q") == 0
    assert len(half.plan_step(step(scheduled("q", 100, BLOCKS))).stores) == 6


def test_what_was_dropped_is_stored_again(half: SchedulerHalf, stub: StubSidecar) -> None:
    arrive(half, stub, 0)
    dropped = half.plan_step(step(scheduled("r", 16, BLOCKS))).stores[0].store
    half.reported(StepReport({dropped: 1}, frozenset({dropped}), frozenset({dropped})))
    have(stub, 0)
    half.arrived(request("q", TOKENS, may_read=False))
    assert len(half.plan_step(step(scheduled("q", 16, BLOCKS))).stores) == 1


def test_blocks_are_kept_until_every_rank_has_read_them(socket: str) -> None:
    stub = StubSidecar(socket)
    half = make(socket, world=2)
    wait_until(lambda: half.connected, "a session")
    half.arrived(request("r", TOKENS))
    assert matched(half, "r") == 0
    first, second = half.plan_step(step(scheduled("r", 32, BLOCKS))).stores
    assert len(first.keys) == 2
    assert len(set(first.keys)) == 2
    half.reported(StepReport({first.store: 2, second.store: 1}))
    assert half.finished("r")
    assert half.plan_step(step()).held == ("r",)
    half.reported(StepReport({second.store: 1}))
    half.close()
    stub.close()


def test_blocks_that_were_read_are_not_kept(half: SchedulerHalf, stub: StubSidecar) -> None:
    arrive(half, stub, 0)
    (store,) = half.plan_step(step(scheduled("r", 16, BLOCKS))).stores
    half.reported(StepReport({store.store: 1}))
    assert not half.finished("r")


def test_a_preempted_request_loads_and_stores_again(half: SchedulerHalf, stub: StubSidecar) -> None:
    arrive(half, stub, 1)
    half.allocated("r", 16, BLOCKS)
    (load,) = half.plan_step(step()).loads
    half.received_all(["r"])
    (store,) = half.plan_step(step(scheduled("r", 32, BLOCKS))).stores
    plan = half.plan_step(step(preempted=frozenset({"r"})))
    assert plan.preempted == {"r"}
    half.reported(StepReport({store.store: 1}, frozenset({store.store}), frozenset({store.store})))
    assert half.matched_tokens("r", 0) == 16
    half.allocated("r", 16, BLOCKS)
    (again,) = half.plan_step(step()).loads
    assert again.load != load.load
    half.received_all(["r"])
    assert [s.keys[0] for s in half.plan_step(step(scheduled("r", 32, BLOCKS))).stores] == [KEYS[1]]
    assert half.finished("r")


@pytest.mark.parametrize("traits", [{"only_token_ids": False}, {"growing": True}])
def test_a_request_whose_tokens_do_not_say_everything_is_left_alone(
    half: SchedulerHalf, stub: StubSidecar, traits: dict[str, bool]
) -> None:
    assert arrive(half, stub, 3, request("r", TOKENS, **traits)) == 0
    assert half.plan_step(step(scheduled("r", 100, BLOCKS))).stores == ()
    assert not stub.of(Lookup)


def test_the_scheduler_introduces_itself(half: SchedulerHalf, stub: StubSidecar) -> None:
    assert stub.of(Hello) == [hello("scheduler")]

"""What the connector decides to look up, load and store."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowserve_dataplane.connector.plan import (
    ChunkLoad,
    Geometry,
    KnownChunks,
    LoadPlan,
    RequestTraits,
    StepPlan,
    StepReport,
    chunks_filled,
    chunks_to_look_up,
    plan_chunks,
    storable,
    tokens_beyond,
)

GEOMETRY = Geometry(chunk=256, block=64)


@pytest.mark.parametrize(
    ("prompt_tokens", "chunks"),
    [(1, 0), (255, 0), (256, 0), (257, 1), (511, 1), (512, 2), (513, 2), (1792, 7), (1807, 7)],
)
def test_only_prompts_of_more_than_a_chunk_are_looked_up(prompt_tokens: int, chunks: int) -> None:
    assert chunks_to_look_up(RequestTraits(prompt_tokens), 256) == chunks


@pytest.mark.parametrize(
    ("traits", "looked_up", "stored"),
    [
        (RequestTraits(1000), True, True),
        (RequestTraits(1000, only_token_ids=False), False, False),
        (RequestTraits(1000, growing=True), False, False),
        (RequestTraits(1000, may_read=False), False, True),
        (RequestTraits(1000, may_store=False), True, False),
    ],
)
def test_a_request_takes_part_only_where_its_tokens_say_everything(
    traits: RequestTraits, looked_up: bool, stored: bool
) -> None:
    assert bool(chunks_to_look_up(traits, 256)) is looked_up
    assert storable(traits) is stored


@pytest.mark.parametrize(
    ("found", "computed", "tokens"),
    [(0, 0, 0), (7, 0, 1792), (7, 1664, 128), (7, 1792, 0), (3, 1024, 0), (1, 192, 64)],
)
def test_the_engine_gets_what_lies_beyond_its_own_hit(found: int, computed: int, tokens: int) -> None:
    assert tokens_beyond(found, computed, 256) == tokens


def test_a_local_hit_that_ends_inside_a_chunk_loads_that_chunk_into_the_blocks_behind_it_only() -> None:
    keys = [(b"k0",), (b"k1",), (b"k2",)]
    blocks = list(range(100, 112))
    assert plan_chunks(keys, blocks, 256 + 128, GEOMETRY) == (
        ChunkLoad((b"k1",), (106, 107), first_block=2),
        ChunkLoad((b"k2",), (108, 109, 110, 111), first_block=0),
    )


@given(found=st.integers(1, 9), local_blocks=st.integers(0, 36))
def test_every_block_behind_the_local_hit_is_loaded_once_and_none_before_it(found: int, local_blocks: int) -> None:
    blocks = list(range(1000, 1000 + 4 * 9))
    loads = plan_chunks([(bytes([i]),) for i in range(found)], blocks, local_blocks * 64, GEOMETRY)
    filled = [block for load in loads for block in load.blocks]
    assert filled == blocks[local_blocks : 4 * found]
    for load in loads:
        assert blocks.index(load.blocks[0]) == 4 * load.keys[0][0] + load.first_block


@pytest.mark.parametrize(
    ("computed", "known", "chunks"), [(255, 300, 0), (256, 256, 1), (600, 2000, 2), (2000, 600, 2), (512, 511, 1)]
)
def test_a_chunk_is_filled_when_all_its_tokens_are_computed_and_known(computed: int, known: int, chunks: int) -> None:
    assert chunks_filled(computed, known, 256) == chunks


def test_reports_of_two_ranks_add_up() -> None:
    one = StepReport(read={1: 1, 2: 1}, settled=frozenset({1}))
    other = StepReport(read={2: 1, 3: 1}, settled=frozenset({3}), dropped=frozenset({3}), failed_loads=frozenset({9}))
    assert one.merged(other) == StepReport(
        read={1: 1, 2: 2, 3: 1}, settled=frozenset({1, 3}), dropped=frozenset({3}), failed_loads=frozenset({9})
    )
    assert StepReport().empty
    assert not one.empty


def test_known_chunks_forget_the_least_recently_named() -> None:
    known = KnownChunks(limit=3)
    known.add([b"a", b"b", b"c"])
    known.add([b"a", b"d"])
    assert [key in known for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    known.forget([b"a", b"never named"])
    assert b"a" not in known
    assert len(known) == 2


def test_a_plan_survives_the_way_to_the_worker() -> None:
    plan = StepPlan(loads=(LoadPlan(1, "r", (ChunkLoad((b"k",), (3, 4)),)),), preempted=frozenset({"q"}), idle=True)
    assert pickle.loads(pickle.dumps(plan)) == plan

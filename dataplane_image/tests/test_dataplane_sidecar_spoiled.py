"""Chunks that no engine can use are replaced by the next one that is computed, and only those."""

from pathlib import Path

import numpy as np
from real_store import RedisServer

from shadowserve_dataplane.chunks import ChunkKey, KvDtype, KvShape, store_key
from shadowserve_dataplane.codec.tiers import Tier
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.sidecar.spoiled import SpoiledKeys
from shadowserve_dataplane.sidecar.store_steps import StagedChunk, StoreSteps
from shadowserve_dataplane.store.client import PutOutcome, StoreClient

SHAPE = KvShape(2, 1, 32, KvDtype.FLOAT16, 256)
KEY, OTHER = ChunkKey(bytes(32)), ChunkKey(bytes([1]) * 32)


def test_damaged_and_refused_chunks_are_spoiled_until_one_lands_or_is_replaced() -> None:
    keys = SpoiledKeys()
    for outcome in (ChunkOutcome.DEADLINE, ChunkOutcome.STORE_ERROR, ChunkOutcome.MISSING, ChunkOutcome.PLACE_ERROR):
        keys.fetched(KEY, outcome)
    assert KEY not in keys
    keys.fetched(KEY, ChunkOutcome.DAMAGED)
    keys.fetched(OTHER, ChunkOutcome.REFUSED)
    assert KEY in keys
    keys.fetched(KEY, ChunkOutcome.LANDED)
    keys.replaced(OTHER)
    assert KEY not in keys
    assert OTHER not in keys


def test_only_the_latest_are_remembered() -> None:
    keys = SpoiledKeys(limit=2)
    names = [ChunkKey(bytes([number]) * 32) for number in range(3)]
    for name in names:
        keys.fetched(name, ChunkOutcome.DAMAGED)
    assert [name in keys for name in names] == [False, True, True]


async def test_a_spoiled_chunk_is_replaced_and_a_sound_one_left(redis_standalone: RedisServer, tmp_path: Path) -> None:
    client = StoreClient(redis_standalone.settings())
    steps = StoreSteps(Tier.BALANCED, 60.0)
    values = np.random.default_rng(1).normal(size=SHAPE.elements).astype(np.float16)
    try:
        await client.put(KEY, b"damaged", Deadline.after(60))
        chunk = StagedChunk(KEY, SHAPE, True, memoryview(values.tobytes()))
        assert (await steps.store(chunk, client, lambda: True)).outcome == PutOutcome.PRESENT
        replacing = StagedChunk(KEY, SHAPE, True, chunk.values, replace=True)
        assert (await steps.store(replacing, client, lambda: True)).outcome == PutOutcome.STORED
    finally:
        await client.close()
    assert len(redis_standalone.admin("GET", store_key(KEY))) > 1000

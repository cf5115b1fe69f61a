"""Chunks for the sidecar's tests: values, keys, and their encoded bytes in a store."""

from dataclasses import dataclass

import numpy as np
from real_store import RedisServer

from shadowserve_dataplane.chunks import ChunkKey, KvDtype, KvShape, store_key
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.tiers import Tier

SHAPE = KvShape(layers=2, kv_heads=2, head_dim=16, dtype=KvDtype.FLOAT16, tokens=64)
"""16 KiB a chunk: tests are about the sidecar, not about bytes."""


@dataclass(frozen=True)
class Chunk:
    """One chunk: its key and its values in canonical layout."""

    key: ChunkKey
    values: bytes

    def encoded(self, shape: KvShape = SHAPE, tier: Tier = Tier.LOSSLESS) -> bytes:
        """Return the bytes that belong into the store."""
        return bytes(Encoder(shape, tier).encode(memoryview(self.values), self.key, False))


def make_chunks(number: int, shape: KvShape = SHAPE, seed: int = 0) -> list[Chunk]:
    """Return different chunks, the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    keys = [ChunkKey(rng.bytes(32)) for _ in range(number)]
    return [Chunk(key, rng.standard_normal(shape.elements).astype(np.float16).tobytes()) for key in keys]


def put_chunks(store: RedisServer, chunks: list[Chunk], shape: KvShape = SHAPE, tier: Tier = Tier.LOSSLESS) -> None:
    """Put the chunks into the store, past the sidecar."""
    for chunk in chunks:
        store.admin("SET", store_key(chunk.key), chunk.encoded(shape, tier))


def values_of(chunks: list[Chunk]) -> dict[int, bytes]:
    """Return what a worker that fetched all of them has, by index."""
    return {index: chunk.values for index, chunk in enumerate(chunks)}

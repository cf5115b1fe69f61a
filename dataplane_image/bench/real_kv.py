"""Real KV to restore: the model's cache of two real texts, encoded, in a store."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from real_store import RedisServer

from shadowserve_dataplane.chunks import ChunkKey, KvDtype, KvShape, store_key
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.tiers import Tier

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class EncodedChunk:
    """One chunk as it lies in the store."""

    key: ChunkKey
    encoded: bytes


def kv_shape() -> KvShape:
    """Return the shape of the chunks."""
    found = json.loads((_folder() / "shape.json").read_text())
    return KvShape(found["layers"], found["kv_heads"], found["head_dim"], KvDtype(found["dtype"]))


def canonical_chunks(limit: int | None = None) -> list[tuple[memoryview, bool]]:
    """Return values of whole chunks, canonical, with whether they begin their text; at most `limit` of them."""
    size = kv_shape().values_bytes
    chunks = []
    for file in sorted(_folder().glob("*.kv")):
        data = np.fromfile(file, np.uint8)
        chunks += [(memoryview(data[at : at + size]), at == 0) for at in range(0, len(data), size)]
    return chunks[:limit]


def encoded_chunks(tier: Tier, limit: int | None = None) -> list[EncodedChunk]:
    """Return chunks as a sidecar would store them."""
    encoder = Encoder(kv_shape(), tier)
    keys = (ChunkKey(number.to_bytes(32, "big")) for number in range(1 << 16))
    return [
        EncodedChunk(key, bytes(encoder.encode(values, key, begins)))
        for key, (values, begins) in zip(keys, canonical_chunks(limit), strict=False)
    ]


@contextmanager
def filled(server: RedisServer, chunks: Sequence[EncodedChunk]) -> Iterator[RedisServer]:
    """Start a store that has the chunks."""
    with server:
        for chunk in chunks:
            server.admin("SET", store_key(chunk.key), chunk.encoded)
        yield server


def interleaved(
    repeats: int, variants: dict[str, Callable[[], Sample]], say: Callable[[str], None] = lambda _: None
) -> dict[str, list[Sample]]:
    """Return `repeats` samples of every variant, taken turn by turn, after one round that does not count."""
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        say(f"round {repeat} of {repeats}" if repeat else "warming up")
        for name, measure in variants.items():
            value = measure()
            if repeat:
                samples[name].append(value)
    return samples


def _folder() -> Path:
    return Path(os.environ["SHADOWSERVE_LAB_KV"])

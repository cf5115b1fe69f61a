"""What a chunk is: its shape, and the key it is stored under.

A chunk is 256 tokens of one pool's KV cache, all layers and KV heads of one tensor-parallel rank, in the canonical
layout `[layer][K|V][token][kv head * head dim]`, whatever the engine's own layout is.

Its key is a BLAKE2b chain (RFC 7693, 32-byte digests): `h[-1] = namespace` says whose cache it is,
`h[i] = H(h[i-1], tokens of chunk i)`. Only bytes enter a hash, in a fixed order and byte order, so a key is the same on
every machine, process and Python version.

Standard library only: this module is copied into engine images together with the connector.
"""

import hashlib
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

CHUNK_TOKENS = 256
KEY_BYTES = 32
LAYOUT_VERSION = 1
"""Version of the canonical layout; a change is a new namespace."""
CODEC_ID = 1
CODEC_VERSION = 1
"""Codec family and version that enter the namespace. Tiers do not: a reader takes every tier."""

ChunkKey = NewType("ChunkKey", bytes)
"""32 bytes; see `chunk_keys`."""
Namespace = NewType("Namespace", bytes)
"""32 bytes: the root of a key chain; two caches that must not mix have different namespaces."""


class KvDtype(StrEnum):
    """Element type of the engine's KV cache."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 4 if self is KvDtype.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class KvShape:
    """Shape of one chunk: `[layers][2][tokens][kv_heads * head_dim]` elements of `dtype`."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: KvDtype = KvDtype.BFLOAT16
    tokens: int = CHUNK_TOKENS

    @property
    def channels(self) -> int:
        """Elements of one token in one plane: KV heads times head dim."""
        return self.kv_heads * self.head_dim

    @property
    def planes(self) -> int:
        """Planes of a chunk; plane `2 * layer` is that layer's K, plane `2 * layer + 1` its V."""
        return 2 * self.layers

    @property
    def plane_elements(self) -> int:
        """Elements of one plane, `tokens * channels`."""
        return self.tokens * self.channels

    @property
    def elements(self) -> int:
        """Elements of the chunk."""
        return self.planes * self.plane_elements

    @property
    def values_bytes(self) -> int:
        """Bytes of the chunk as the engine's own values."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class RankInWorld:
    """One tensor-parallel rank: each rank keeps its own KV heads, so each has its own chunks."""

    rank: int = 0
    world: int = 1


def namespace(
    model_identity: bytes, shape: KvShape, where: RankInWorld = RankInWorld(), tenant_salt: bytes = b""
) -> Namespace:
    """Return the root of the key chain: everything that makes two caches different, but the tokens.

    `model_identity` is a digest of weights, tokenizer and adapters (`model_digest` in the connector);
    `tenant_salt` is empty when the cache is shared.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"shadowserve-ns")
    for part in (model_identity, tenant_salt, shape.dtype.value.encode("ascii")):
        digest.update(struct.pack("<I", len(part)))
        digest.update(part)
    digest.update(
        struct.pack(
            "<9I",
            LAYOUT_VERSION,
            CODEC_ID,
            CODEC_VERSION,
            shape.layers,
            shape.kv_heads,
            shape.head_dim,
            shape.tokens,
            where.rank,
            where.world,
        )
    )
    return Namespace(digest.digest())


def chunk_keys(root: Namespace, token_ids: Sequence[int], chunk_tokens: int = CHUNK_TOKENS) -> list[ChunkKey]:
    """Return the key of every whole chunk of `token_ids`; a last, partial chunk has no key."""
    return list(extend_keys(ChunkKey(bytes(root)), token_ids, chunk_tokens))


def extend_keys(previous: ChunkKey, token_ids: Sequence[int], chunk_tokens: int = CHUNK_TOKENS) -> Iterator[ChunkKey]:
    """Yield the keys that follow `previous` (a key or a namespace) for every whole chunk of `token_ids`."""
    for start in range(0, len(token_ids) // chunk_tokens * chunk_tokens, chunk_tokens):
        tokens = array("I", token_ids[start : start + chunk_tokens])
        if sys.byteorder == "big":
            tokens.byteswap()
        digest = hashlib.blake2b(previous, digest_size=KEY_BYTES, person=b"shadowserve-key")
        digest.update(tokens.tobytes())
        previous = ChunkKey(digest.digest())
        yield previous


def store_key(key: ChunkKey) -> bytes:
    """Return the name of a chunk in the key-value store; readable, so that an operator can look one up."""
    return b"shadowserve:" + key.hex().encode("ascii")

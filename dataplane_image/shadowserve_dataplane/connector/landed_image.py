"""What lies in a landing slot: a 64-byte header, then codes with their parameters, or finished values.

The connector's own small reader of the image that the data plane writes (FORMAT.md, "Landed image"), so that an
engine image needs nothing but this folder. A landing slot is written by another process, so nothing it says is
trusted before it was checked against the shape and the slot's size.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.errors import ChunkDamaged, ChunkRefused

MAGIC = b"SSLD"
VERSION = 1
HEADER_BYTES = 64
NO_TRANSFORM = 0
_HEADER = struct.Struct("<4sHBBHHIHHIIIQ24x")
_DTYPE_CODES = {1: KvDtype.BFLOAT16, 2: KvDtype.FLOAT16, 3: KvDtype.FLOAT32}


class ImageKind(IntEnum):
    """What the payload of a landed image is."""

    CODES = 1
    VALUES = 2


@dataclass(frozen=True, slots=True)
class CodesImage:
    """8-bit codes: `value = f32(mean) + step * code`, rounded once to the engine's dtype; exact rows replace tokens.

    `codes` int8 `[planes][tokens][channels]`; `steps` float32 `[planes]`; `means` bfloat16 bits (uint16)
    `[planes][channels]`; `exact_tokens` uint16 `[n]`; `exact_rows` raw bits of the dtype `[n][planes][channels]`.
    All are views of the slot.
    """

    codes: NDArray[np.int8]
    steps: NDArray[np.float32]
    means: NDArray[np.uint16]
    exact_tokens: NDArray[np.uint16]
    exact_rows: NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class ValuesImage:
    """Finished values: raw bits of the engine's dtype, `[planes][tokens][channels]`; a view of the slot."""

    values: NDArray[np.unsignedinteger]


def bits_dtype(dtype: KvDtype) -> np.dtype[np.unsignedinteger]:
    """Return the unsigned integer type as wide as `dtype`: copies move bits, they do not convert."""
    return np.dtype(np.uint32 if dtype is KvDtype.FLOAT32 else np.uint16)


def parse_image(slot: memoryview, shape: KvShape) -> CodesImage | ValuesImage:
    """Return the image in `slot` as views of it.

    Raises `ChunkRefused` for an image this reader does not know, `ChunkDamaged` for one that contradicts itself.
    """
    if len(slot) < HEADER_BYTES:
        raise ChunkDamaged("landed image", f"{HEADER_BYTES} header bytes", f"{len(slot)} bytes")
    magic, version, kind, dtype, planes, tokens, channels, exact, transform, *places = _HEADER.unpack_from(slot)
    if magic != MAGIC:
        raise ChunkDamaged("landed image: magic", MAGIC.hex(), magic.hex())
    if version != VERSION:
        raise ChunkRefused(f"landed image: version {version}; this connector reads version {VERSION}")
    if transform != NO_TRANSFORM:
        raise ChunkRefused(f"landed image: transform {transform}; this connector knows none")
    found = (_DTYPE_CODES.get(dtype), planes, tokens, channels)
    expected = (shape.dtype, shape.planes, shape.tokens, shape.channels)
    if found != expected:
        raise ChunkRefused(f"landed image: dtype, planes, tokens, channels are {found}, this engine needs {expected}")
    parameters_at, exact_at, payload_at, total = places
    if not HEADER_BYTES <= total <= len(slot):
        raise ChunkDamaged("landed image: total bytes", f"at most {len(slot)}", f"{total}")
    reader = _Reader(slot[:total])
    if kind == ImageKind.VALUES:
        return ValuesImage(reader.array(payload_at, bits_dtype(shape.dtype), (planes, tokens, channels), "payload"))
    if kind == ImageKind.CODES:
        return _codes_image(reader, shape, exact, (parameters_at, exact_at, payload_at))
    raise ChunkRefused(f"landed image: kind {kind}; this connector knows 1 (codes) and 2 (values)")


def _codes_image(reader: "_Reader", shape: KvShape, exact: int, places: tuple[int, int, int]) -> CodesImage:
    parameters_at, exact_at, payload_at = places
    planes, channels = shape.planes, shape.channels
    exact_tokens = reader.array(exact_at, np.uint16, (exact,), "exact tokens")
    if exact and int(exact_tokens.max()) >= shape.tokens:
        raise ChunkDamaged("landed image: exact tokens", f"below {shape.tokens}", f"{int(exact_tokens.max())}")
    rows_at = exact_at + -(-2 * exact // 8) * 8
    return CodesImage(
        codes=reader.array(payload_at, np.int8, (planes, shape.tokens, channels), "codes"),
        steps=reader.array(parameters_at, np.float32, (planes,), "steps"),
        means=reader.array(parameters_at + 4 * planes, np.uint16, (planes, channels), "means"),
        exact_tokens=exact_tokens,
        exact_rows=reader.array(rows_at, bits_dtype(shape.dtype), (exact, planes, channels), "exact rows"),
    )


class _Reader:
    """Gives arrays that lie inside one image."""

    def __init__(self, image: memoryview) -> None:
        self._image = image

    def array(self, at: int, dtype: DTypeLike, shape: tuple[int, ...], what: str) -> NDArray[Any]:
        """Return a view of `shape`; raises `ChunkDamaged` when it does not lie inside the image."""
        count = 1
        for extent in shape:
            count *= extent
        size = count * np.dtype(dtype).itemsize
        if size == 0:
            return np.empty(shape, dtype)
        if at < HEADER_BYTES or at + size > len(self._image):
            raise ChunkDamaged(f"landed image: {what}", f"inside {len(self._image)} bytes", f"{at}..{at + size}")
        return np.frombuffer(self._image, dtype, count, at).reshape(shape)

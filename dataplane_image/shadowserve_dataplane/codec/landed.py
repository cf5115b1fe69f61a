"""The landed image: what a landing slot holds once a chunk was restored. FORMAT.md, "Landed image".

CODES: header, steps and means, exact rows, int8 codes. VALUES: header, canonical values. The engine's side reads it
with its own small parser (`connector.landed_image`).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec.format import (
    MAX_EXACT_ROWS,
    ChunkHeader,
    FrameEntry,
    FrameKind,
    exact_bytes,
    parameters_bytes,
)
from shadowserve_dataplane.codec.tiers import LandingMode

MAGIC = b"SSLD"
VERSION = 1
HEADER_BYTES = 64
_ALIGNMENT = 64
_HEADER = struct.Struct("<4sHBBHHIHHIIIQ24x")
_DTYPE_CODES = {KvDtype.BFLOAT16: 1, KvDtype.FLOAT16: 2, KvDtype.FLOAT32: 3}


class ImageKind(IntEnum):
    """What the payload of a landed image is."""

    CODES = 1
    VALUES = 2


@dataclass(frozen=True, slots=True)
class LandedLayout:
    """Where the parts of one landed image lie; offsets and sizes in bytes from the start of the slot."""

    shape: KvShape
    kind: ImageKind
    exact_rows: int
    parameters_offset: int
    exact_offset: int
    payload_offset: int
    total_bytes: int

    @classmethod
    def of(cls, header: ChunkHeader, mode: LandingMode) -> "LandedLayout":
        """Return the layout in which that chunk lands; a lossless chunk has no codes and lands as values."""
        shape = header.shape
        if header.lossless or mode is LandingMode.VALUES:
            return cls(shape, ImageKind.VALUES, 0, 0, 0, HEADER_BYTES, HEADER_BYTES + shape.values_bytes)
        return cls._of_codes(shape, header.exact_rows)

    @classmethod
    @lru_cache(maxsize=256)
    def _of_codes(cls, shape: KvShape, exact_rows: int) -> "LandedLayout":
        exact_at = _aligned(HEADER_BYTES + parameters_bytes(shape))
        payload_at = _aligned(exact_at + exact_bytes(shape, exact_rows))
        return cls(shape, ImageKind.CODES, exact_rows, HEADER_BYTES, exact_at, payload_at, payload_at + shape.elements)

    @staticmethod
    def max_bytes(shape: KvShape) -> int:
        """Return the size a landing slot must have to hold any chunk of this shape."""
        codes = LandedLayout._of_codes(shape, MAX_EXACT_ROWS).total_bytes
        return _aligned(max(codes, HEADER_BYTES + shape.values_bytes))

    def header(self) -> bytes:
        """Return the 64 header bytes of the image."""
        shape = self.shape
        return _HEADER.pack(
            MAGIC, VERSION, self.kind, _DTYPE_CODES[shape.dtype], shape.planes, shape.tokens, shape.channels,
            self.exact_rows, 0, self.parameters_offset, self.exact_offset, self.payload_offset, self.total_bytes,
        )  # fmt: skip

    def span(self, frames: Sequence[FrameEntry]) -> tuple[int, int] | None:
        """Return (offset, length) of what frames that follow one another become; None as in `destination`."""
        first, last = self.destination(frames[0]), self.destination(frames[-1])
        return None if first is None or last is None else (first[0], sum(last) - first[0])

    def destination(self, frame: FrameEntry) -> tuple[int, int] | None:
        """Return (offset, length) of what `frame` becomes in the image; None when it only helps to dequantize."""
        if frame.kind in (FrameKind.CODES, FrameKind.VALUES):
            item = 1 if self.kind is ImageKind.CODES else self.shape.dtype.itemsize
            plane = self.shape.plane_elements * item
            return self.payload_offset + frame.first_plane * plane, frame.planes * plane
        if self.kind is ImageKind.VALUES:
            return None
        at = self.parameters_offset if frame.kind is FrameKind.PARAMETERS else self.exact_offset
        return at, frame.raw_bytes


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT

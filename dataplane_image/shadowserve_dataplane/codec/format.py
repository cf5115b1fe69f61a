"""The encoded chunk: header, frame table, frames. FORMAT.md is the specification; this module reads and writes it.

Little-endian throughout. Nothing a chunk says about itself is used before it was checked: first the fixed prefix, then
the header's checksum, then that the frame table tiles exactly the bytes that are there and says what the shape implies.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache, partial
from typing import NamedTuple

import xxhash

from shadowserve_dataplane.chunks import CODEC_ID, ChunkKey, KvDtype, KvShape
from shadowserve_dataplane.codec.tiers import Tier
from shadowserve_dataplane.errors import ChunkDamaged, ChunkRefused

MAGIC = b"SSKV"
FORMAT_VERSION = 1
PREFIX_BYTES = 128
CHECKSUM_BYTES = 8
SINK_TOKENS = 4
"""Tokens at the start of a context that are always kept exact (attention sinks)."""
MAX_EXACT_ROWS = 16
NO_TRANSFORM = 0
NO_PROFILE = bytes(16)
_PREFIX = struct.Struct("<4sHHBBBBH16sHHHHHHIQ32s42s")
_FRAME = struct.Struct("<BBHHHIIQ")
_RESERVED = bytes(42)
_DTYPE_CODES = {KvDtype.BFLOAT16: 1, KvDtype.FLOAT16: 2, KvDtype.FLOAT32: 3}
_DTYPES = {code: dtype for dtype, code in _DTYPE_CODES.items()}
_BEGINS_CONTEXT = 1
_FRAME_RAW_BYTES = 192 * 1024


class FrameKind(IntEnum):
    """What a frame holds."""

    PARAMETERS = 1
    EXACT = 2
    CODES = 3
    VALUES = 4


class Entropy(IntEnum):
    """How a frame's bytes are coded."""

    RAW = 0
    ZSTD = 1


_TIERS = {tier.value: tier for tier in Tier}
_ENTROPIES = {entropy.value: entropy for entropy in Entropy}


class _Prefix(NamedTuple):
    """The first 128 bytes, field by field, unchecked."""

    magic: bytes
    version: int
    codec: int
    tier: int
    dtype: int
    flags: int
    reserved: int
    transform: int
    profile: bytes
    layers: int
    kv_heads: int
    head_dim: int
    tokens: int
    exact_rows: int
    frames: int
    header_bytes: int
    total_bytes: int
    key: bytes
    more_reserved: bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader accepts at most."""

    max_header_bytes: int = 1 << 20
    max_total_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Expected:
    """What the reader asked for; a chunk that says otherwise is refused."""

    key: ChunkKey
    shape: KvShape


class FrameEntry(NamedTuple):
    """One frame: `planes` planes from `first_plane`; `offset` counts from the start of the chunk."""

    kind: FrameKind
    entropy: Entropy
    first_plane: int
    planes: int
    raw_bytes: int
    encoded_bytes: int
    checksum: int
    offset: int


_entry = partial(tuple.__new__, FrameEntry)
"""Makes an entry of all its fields in a fifth of the time that the constructor takes."""


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """All that a chunk says about itself, checked."""

    shape: KvShape
    key: ChunkKey
    tier: Tier
    begins_context: bool
    exact_rows: int
    frames: tuple[FrameEntry, ...]
    header_bytes: int
    total_bytes: int

    @property
    def lossless(self) -> bool:
        """Whether the frames hold values, not codes."""
        return self.tier is Tier.LOSSLESS


def planes_per_frame(shape: KvShape) -> int:
    """Return how many planes share a frame: about 192 KiB of codes, at least one plane."""
    return max(1, _FRAME_RAW_BYTES // max(1, shape.plane_elements))


def parameters_bytes(shape: KvShape) -> int:
    """Return the size of a PARAMETERS frame: float32 steps, then bfloat16 means."""
    return 4 * shape.planes + 2 * shape.planes * shape.channels


def exact_positions_bytes(rows: int) -> int:
    """Return the size of the token positions before the exact rows: uint16 each, padded to 8 bytes."""
    return -(-2 * rows // 8) * 8


def exact_bytes(shape: KvShape, rows: int) -> int:
    """Return the size of an EXACT frame with that many rows."""
    return exact_positions_bytes(rows) + rows * shape.planes * shape.channels * shape.dtype.itemsize


def frame_count(shape: KvShape, tier: Tier, exact_rows: int) -> int:
    """Return how many frames such a chunk has."""
    return (tier is not Tier.LOSSLESS) + (exact_rows > 0) + -(-shape.planes // planes_per_frame(shape))


@lru_cache(maxsize=32)
def frames_of(shape: KvShape, tier: Tier, exact_rows: int) -> tuple[tuple[FrameKind, int, int, int], ...]:
    """Return (kind, first plane, planes, raw bytes) of every frame that such a chunk has, in order."""
    item = shape.dtype.itemsize if tier is Tier.LOSSLESS else 1
    kind = FrameKind.VALUES if tier is Tier.LOSSLESS else FrameKind.CODES
    frames = []
    if tier is not Tier.LOSSLESS:
        frames.append((FrameKind.PARAMETERS, 0, shape.planes, parameters_bytes(shape)))
    if exact_rows:
        frames.append((FrameKind.EXACT, 0, shape.planes, exact_bytes(shape, exact_rows)))
    step = planes_per_frame(shape)
    for first in range(0, shape.planes, step):
        planes = min(step, shape.planes - first)
        frames.append((kind, first, planes, planes * shape.plane_elements * item))
    return tuple(frames)


def header_bytes_of(frames: int) -> int:
    """Return the length of the whole header of a chunk with that many frames."""
    return PREFIX_BYTES + frames * _FRAME.size + CHECKSUM_BYTES


def max_encoded_bytes(shape: KvShape) -> int:
    """Return a bound on the size of any chunk of this shape, whatever its tier: the size of a reader's buffer."""
    frames = -(-shape.planes // planes_per_frame(shape)) + 2
    raw = shape.values_bytes + parameters_bytes(shape) + exact_bytes(shape, MAX_EXACT_ROWS)
    return header_bytes_of(frames) + raw + raw // 256 + frames * 64


def pack_header(header: ChunkHeader, out: memoryview) -> None:
    """Write the header, checksum included, to the start of `out`."""
    shape = header.shape
    _PREFIX.pack_into(
        out, 0, MAGIC, FORMAT_VERSION, CODEC_ID, header.tier, _DTYPE_CODES[shape.dtype],
        _BEGINS_CONTEXT if header.begins_context else 0, 0, NO_TRANSFORM, NO_PROFILE, shape.layers, shape.kv_heads,
        shape.head_dim, shape.tokens, header.exact_rows, len(header.frames), header.header_bytes, header.total_bytes,
        header.key, _RESERVED,
    )  # fmt: skip
    for number, frame in enumerate(header.frames):
        at = PREFIX_BYTES + number * _FRAME.size
        fields = (frame.kind, frame.entropy, frame.first_plane, frame.planes)
        _FRAME.pack_into(out, at, *fields, 0, frame.raw_bytes, frame.encoded_bytes, frame.checksum)
    end = header.header_bytes - CHECKSUM_BYTES
    struct.pack_into("<Q", out, end, xxhash.xxh3_64_intdigest(out[:end]))


def header_length(prefix: memoryview, limits: Limits) -> int:
    """Return how many bytes the header has, from its first `PREFIX_BYTES` bytes.

    Raises `ChunkRefused` for what this reader does not know, `ChunkDamaged` for what cannot be.
    """
    if len(prefix) < PREFIX_BYTES:
        raise ChunkDamaged("header: length", f"at least {PREFIX_BYTES} bytes", f"{len(prefix)} bytes")
    found = _Prefix._make(_PREFIX.unpack_from(prefix))
    if found.magic != MAGIC:
        raise ChunkDamaged("header: magic", MAGIC.hex(), found.magic.hex())
    if found.version != FORMAT_VERSION:
        raise ChunkRefused(f"format version {found.version}; this reader knows version {FORMAT_VERSION}")
    if found.codec != CODEC_ID:
        raise ChunkRefused(f"codec {found.codec}; this reader knows codec {CODEC_ID}")
    length, implied = found.header_bytes, header_bytes_of(found.frames)
    if length != implied:
        raise ChunkDamaged("header: length", f"{implied} bytes", f"{length} bytes")
    if length > limits.max_header_bytes or found.total_bytes > limits.max_total_bytes:
        raise ChunkRefused(f"header of {length} and chunk of {found.total_bytes} bytes; the limits are {limits}")
    return length


def parse_header(chunk: memoryview, expected: Expected, limits: Limits, chunk_bytes: int) -> ChunkHeader:
    """Return the header at the start of `chunk`, a chunk of `chunk_bytes` bytes of which at least the header is there.

    Raises `ChunkRefused` when it is whole but not what was asked for or not known, `ChunkDamaged` otherwise.
    """
    found, shape = _sealed_prefix(chunk, limits, chunk_bytes)
    if found.key != expected.key:
        raise ChunkRefused(f"key {found.key.hex()}; asked for {expected.key.hex()}")
    if shape != expected.shape:
        raise ChunkRefused(f"shape {shape}; asked for {expected.shape}")
    return _with_frames(chunk, found, shape)


def parse_any_header(chunk: memoryview, limits: Limits, chunk_bytes: int) -> ChunkHeader:
    """Return the header, whatever its key and shape; raises as `parse_header`. For tools."""
    return _with_frames(chunk, *_sealed_prefix(chunk, limits, chunk_bytes))


def _sealed_prefix(chunk: memoryview, limits: Limits, chunk_bytes: int) -> tuple[_Prefix, KvShape]:
    length = header_length(chunk, limits)
    if len(chunk) < length:
        raise ChunkDamaged("header: length", f"{length} bytes", f"{len(chunk)} bytes")
    end = length - CHECKSUM_BYTES
    (checksum,) = struct.unpack_from("<Q", chunk, end)
    found = xxhash.xxh3_64_intdigest(chunk[:end])
    if found != checksum:
        raise ChunkDamaged("header: checksum", checksum, found)
    prefix = _Prefix._make(_PREFIX.unpack_from(chunk))
    _refuse_unknown(prefix)
    if prefix.total_bytes != chunk_bytes:
        raise ChunkDamaged("chunk: length", f"{prefix.total_bytes} bytes", f"{chunk_bytes} bytes")
    dtype = _DTYPES[prefix.dtype]
    return prefix, KvShape(prefix.layers, prefix.kv_heads, prefix.head_dim, dtype, prefix.tokens)


def _with_frames(chunk: memoryview, found: _Prefix, shape: KvShape) -> ChunkHeader:
    if not shape.elements:
        raise ChunkDamaged("header: shape", "at least one element", f"{shape}")
    if found.exact_rows > min(MAX_EXACT_ROWS, shape.tokens):
        raise ChunkDamaged("header: exact rows", f"at most {min(MAX_EXACT_ROWS, shape.tokens)}", f"{found.exact_rows}")
    tier = _TIERS[found.tier]
    implied = frame_count(shape, tier, found.exact_rows)
    if found.frames != implied:
        raise ChunkDamaged("frame table: frames", f"{implied}", f"{found.frames}")
    table = _frame_table(chunk, frames_of(shape, tier, found.exact_rows), found.header_bytes)
    end = table[-1].offset + table[-1].encoded_bytes
    if end != found.total_bytes:
        raise ChunkDamaged("frame table: end", f"{found.total_bytes} bytes", f"{end} bytes")
    begins, key = bool(found.flags & _BEGINS_CONTEXT), ChunkKey(found.key)
    return ChunkHeader(shape, key, tier, begins, found.exact_rows, table, found.header_bytes, found.total_bytes)


def _refuse_unknown(found: _Prefix) -> None:
    if found.tier not in _TIERS:
        raise ChunkRefused(f"tier {found.tier}; this reader knows {_listed({t: t.label for t in Tier})}")
    if found.dtype not in _DTYPES:
        raise ChunkRefused(f"dtype {found.dtype}; this reader knows {_listed(_DTYPES)}")
    if found.transform != NO_TRANSFORM or found.profile != NO_PROFILE:
        raise ChunkRefused(f"transform {found.transform}, profile {found.profile.hex()}; this reader knows none")
    if found.flags & ~_BEGINS_CONTEXT:
        raise ChunkRefused(f"flags {found.flags:#04x}; this reader knows {_BEGINS_CONTEXT:#04x} (begins a context)")
    if found.reserved or found.more_reserved != _RESERVED:
        raise ChunkRefused("reserved header bytes that are not zero; this reader knows no use of them")


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{code:d} ({name})" for code, name in names.items())


def _frame_table(
    chunk: memoryview, implied: tuple[tuple[FrameKind, int, int, int], ...], offset: int
) -> tuple[FrameEntry, ...]:
    table: list[FrameEntry] = []
    rows = _FRAME.iter_unpack(chunk[PREFIX_BYTES : PREFIX_BYTES + len(implied) * _FRAME.size])
    for wanted, row in zip(implied, rows, strict=True):
        number, coding, first, planes, reserved, raw, encoded, checksum = row
        fits = (number, first, planes, raw) == wanted and not reserved
        if not fits or coding not in _ENTROPIES or (encoded != raw and not coding):
            raise _wrong_frame(len(table), wanted, row)
        table.append(_entry((wanted[0], _ENTROPIES[coding], first, planes, raw, encoded, checksum, offset)))
        offset += encoded
    return tuple(table)


def _wrong_frame(number: int, wanted: tuple[FrameKind, int, int, int], row: tuple[int, ...]) -> ChunkDamaged:
    kind, coding, first, planes, reserved, raw, encoded, _ = row
    if (kind, first, planes, raw, reserved) == (*wanted, 0) and coding == Entropy.RAW:
        return ChunkDamaged(f"frame table: frame {number}: encoded bytes", f"{raw}", f"{encoded}")
    known = f"kind, first plane, planes, raw bytes, reserved {[*map(int, wanted), 0]}"
    seen = f"{[kind, first, planes, raw, reserved]}, entropy {coding}"
    return ChunkDamaged(f"frame table: frame {number}", f"{known}, entropy 0 or 1", seen)

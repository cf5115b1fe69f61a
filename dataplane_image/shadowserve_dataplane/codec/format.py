"""The encoded chunk: header, frame table, frames. FORMAT.md is the specification; this module reads and writes it.

Little-endian throughout. Nothing a chunk says about itself is used before it was checked: first the fixed prefix, then
the header's checksum, then that the frame table tiles exactly the bytes that are there and says what the shape implies.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

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
_PREFIX = struct.Struct("<4sHHBBBxH16sHHHHHHIQ32s")
_FRAME = struct.Struct("<BBHHxxIIQ")
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


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """One frame: `planes` planes from `first_plane`; `offset` counts from the start of the chunk."""

    kind: FrameKind
    entropy: Entropy
    first_plane: int
    planes: int
    raw_bytes: int
    encoded_bytes: int
    checksum: int
    offset: int


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


def frames_of(shape: KvShape, tier: Tier, exact_rows: int) -> list[tuple[FrameKind, int, int, int]]:
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
    return frames


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
        _BEGINS_CONTEXT if header.begins_context else 0, NO_TRANSFORM, NO_PROFILE, shape.layers, shape.kv_heads,
        shape.head_dim, shape.tokens, header.exact_rows, len(header.frames), header.header_bytes, header.total_bytes,
        header.key,
    )  # fmt: skip
    out[_PREFIX.size : PREFIX_BYTES] = bytes(PREFIX_BYTES - _PREFIX.size)
    for number, frame in enumerate(header.frames):
        at = PREFIX_BYTES + number * _FRAME.size
        fields = (frame.kind, frame.entropy, frame.first_plane, frame.planes)
        _FRAME.pack_into(out, at, *fields, frame.raw_bytes, frame.encoded_bytes, frame.checksum)
    end = header.header_bytes - CHECKSUM_BYTES
    struct.pack_into("<Q", out, end, xxhash.xxh3_64_intdigest(out[:end]))


def header_length(prefix: memoryview, limits: Limits) -> int:
    """Return how many bytes the header has, from its first `PREFIX_BYTES` bytes.

    Raises `ChunkRefused` for what this reader does not know, `ChunkDamaged` for what cannot be.
    """
    if len(prefix) < PREFIX_BYTES:
        raise ChunkDamaged("header: length", f"at least {PREFIX_BYTES} bytes", f"{len(prefix)} bytes")
    magic, version, codec, *_ = fields = _PREFIX.unpack_from(prefix)
    if magic != MAGIC:
        raise ChunkDamaged("header: magic", MAGIC.hex(), magic.hex())
    if version != FORMAT_VERSION:
        raise ChunkRefused(f"format version {version}; this reader knows version {FORMAT_VERSION}")
    if codec != CODEC_ID:
        raise ChunkRefused(f"codec {codec}; this reader knows codec {CODEC_ID}")
    frames, length, total = fields[13], fields[14], fields[15]
    if length != header_bytes_of(frames):
        raise ChunkDamaged("header: length", f"{header_bytes_of(frames)} bytes", f"{length} bytes")
    if length > limits.max_header_bytes or total > limits.max_total_bytes:
        raise ChunkRefused(f"header of {length} and chunk of {total} bytes; the limits are {limits}")
    return int(length)


def parse_header(chunk: memoryview, expected: Expected, limits: Limits, chunk_bytes: int) -> ChunkHeader:
    """Return the header at the start of `chunk`, a chunk of `chunk_bytes` bytes of which at least the header is there.

    Raises `ChunkRefused` when it is whole but not what was asked for or not known, `ChunkDamaged` otherwise.
    """
    header = parse_any_header(chunk, limits, chunk_bytes)
    if header.key != expected.key:
        raise ChunkRefused(f"key {header.key.hex()}; asked for {expected.key.hex()}")
    if header.shape != expected.shape:
        raise ChunkRefused(f"shape {header.shape}; asked for {expected.shape}")
    return header


def parse_any_header(chunk: memoryview, limits: Limits, chunk_bytes: int) -> ChunkHeader:
    """Return the header, whatever its key and shape; raises as `parse_header`. For tools."""
    length = header_length(chunk, limits)
    if len(chunk) < length:
        raise ChunkDamaged("header: length", f"{length} bytes", f"{len(chunk)} bytes")
    end = length - CHECKSUM_BYTES
    (checksum,) = struct.unpack_from("<Q", chunk, end)
    found = xxhash.xxh3_64_intdigest(chunk[:end])
    if found != checksum:
        raise ChunkDamaged("header: checksum", checksum, found)
    header = _checked(_PREFIX.unpack_from(chunk), chunk)
    if header.total_bytes != chunk_bytes:
        raise ChunkDamaged("chunk: length", f"{header.total_bytes} bytes", f"{chunk_bytes} bytes")
    return header


def _checked(fields: tuple[Any, ...], chunk: memoryview) -> ChunkHeader:
    tier, dtype, flags, transform, profile = fields[3:8]
    layers, heads, head_dim, tokens, exact_rows, frames, length, total, key = fields[8:]
    if tier not in set(Tier):
        raise ChunkRefused(f"tier {tier}; this reader knows {', '.join(f'{t.value} ({t.label})' for t in Tier)}")
    if dtype not in _DTYPES:
        raise ChunkRefused(f"dtype {dtype}; this reader knows {', '.join(f'{c} ({d})' for c, d in _DTYPES.items())}")
    if transform != NO_TRANSFORM or profile != NO_PROFILE:
        raise ChunkRefused(f"transform {transform}, profile {profile.hex()}; this reader knows none")
    shape = KvShape(layers, heads, head_dim, _DTYPES[dtype], tokens)
    table = _frame_table(chunk, shape, Tier(tier), exact_rows, length, frames)
    end = table[-1].offset + table[-1].encoded_bytes if table else length
    if end != total:
        raise ChunkDamaged("frame table: end", f"{total} bytes", f"{end} bytes")
    begins_context = bool(flags & _BEGINS_CONTEXT)
    return ChunkHeader(shape, ChunkKey(key), Tier(tier), begins_context, exact_rows, table, length, total)


def _frame_table(
    chunk: memoryview, shape: KvShape, tier: Tier, exact_rows: int, start: int, frames: int
) -> tuple[FrameEntry, ...]:
    if exact_rows > min(MAX_EXACT_ROWS, shape.tokens):
        raise ChunkDamaged("header: exact rows", f"at most {min(MAX_EXACT_ROWS, shape.tokens)}", f"{exact_rows}")
    wanted = frames_of(shape, tier, exact_rows)
    if frames != len(wanted):
        raise ChunkDamaged("frame table: frames", f"{len(wanted)}", f"{frames}")
    table, offset = [], start
    for number, (kind, first, planes, raw) in enumerate(wanted):
        found = _FRAME.unpack_from(chunk, PREFIX_BYTES + number * _FRAME.size)
        if (found[0], found[2], found[3], found[4]) != (kind, first, planes, raw) or found[1] not in set(Entropy):
            raise ChunkDamaged(f"frame table: frame {number}", f"{(kind.name, first, planes, raw)}", f"{found[:5]}")
        entropy, encoded, checksum = Entropy(found[1]), found[5], found[6]
        if entropy is Entropy.RAW and encoded != raw:
            raise ChunkDamaged(f"frame table: frame {number}: raw bytes", f"{raw}", f"{encoded}")
        table.append(FrameEntry(kind, entropy, first, planes, raw, encoded, checksum, offset))
        offset += encoded
    return tuple(table)

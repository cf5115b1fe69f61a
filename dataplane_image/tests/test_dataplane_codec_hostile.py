"""Chunks that someone forged, checksums and all: an error that says so or values, and no memory taken on their word."""

import functools
import struct
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import xxhash
import zstandard
from codec_samples import encode, parse, restored, sample_shape, sample_values
from hypothesis import given
from hypothesis import strategies as st

from shadowserve_dataplane.chunks import KvDtype
from shadowserve_dataplane.codec import reference
from shadowserve_dataplane.codec.entropy import FrameInflater, frame_compressor
from shadowserve_dataplane.codec.format import Entropy, FrameKind, Limits, parse_any_header
from shadowserve_dataplane.codec.inspect import describe
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.errors import ChunkDamaged, ChunkRefused

SHAPE = sample_shape()
CHUNKS = {tier: encode(sample_values(SHAPE), SHAPE, tier, True) for tier in Tier}
MEBIBYTE = 1 << 20


def sealed(chunk: bytearray, frames: int) -> bytes:
    """Return the chunk with the checksums of its frames and of its header made right."""
    at = 128 + 24 * frames + 8
    for number in range(frames):
        entry = 128 + 24 * number
        (size,) = struct.unpack_from("<I", chunk, entry + 12)
        struct.pack_into("<Q", chunk, entry + 16, xxhash.xxh3_64_intdigest(bytes(chunk[at : at + size])))
        at += size
    end = 128 + 24 * frames
    struct.pack_into("<Q", chunk, end, xxhash.xxh3_64_intdigest(bytes(chunk[:end])))
    return bytes(chunk)


def with_frame(chunk: bytes, kind: FrameKind, forge: Callable[[bytes], bytes]) -> bytes:
    """Return the chunk with the bytes of its first frame of that kind replaced, sizes and checksums made right.

    PARAMETERS and EXACT are forged as they are before compression, and stored raw.
    """
    header = parse(chunk, SHAPE)
    number, frame = next((n, f) for n, f in enumerate(header.frames) if f.kind is kind)
    end, entry = frame.offset + frame.encoded_bytes, 128 + 24 * number
    aside = kind in (FrameKind.PARAMETERS, FrameKind.EXACT)
    body = forge(reference.unpacked(chunk, frame) if aside else chunk[frame.offset : end])
    copy = bytearray(chunk[: frame.offset] + body + chunk[end:])
    copy[entry + 1] = Entropy.RAW if aside else Entropy.ZSTD
    struct.pack_into("<I", copy, entry + 12, len(body))
    struct.pack_into("<Q", copy, 46, len(copy))
    return sealed(copy, len(header.frames))


def with_field(chunk: bytes, offset: int, field: bytes) -> bytes:
    copy = bytearray(chunk)
    copy[offset : offset + len(field)] = field
    return sealed(copy, len(parse(chunk, SHAPE).frames))


def poked(position: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda body: body[:position] + value + body[position + len(value) :]


@pytest.mark.parametrize(
    ("kind", "forge", "words"),
    [
        (FrameKind.PARAMETERS, poked(0, struct.pack("<f", float("nan"))), "steps"),
        (FrameKind.PARAMETERS, poked(4, struct.pack("<f", float("inf"))), "steps"),
        (FrameKind.PARAMETERS, poked(4, struct.pack("<f", -1.0)), "steps"),
        (FrameKind.PARAMETERS, poked(4, struct.pack("<f", 0.0)), "steps"),
        (FrameKind.PARAMETERS, poked(4, struct.pack("<f", 0.1)), "16 significant bits"),
        (FrameKind.PARAMETERS, poked(16, b"\x80\x7f"), "means"),
        (FrameKind.PARAMETERS, poked(16, b"\x80\xff"), "means"),
        (FrameKind.PARAMETERS, poked(16, b"\xc0\x7f"), "means"),
        (FrameKind.EXACT, poked(0, struct.pack("<4H", 0, 1, 1, 2)), "ascending"),
        (FrameKind.EXACT, poked(0, struct.pack("<4H", 3, 2, 1, 0)), "ascending"),
        (FrameKind.EXACT, poked(6, struct.pack("<H", 65535)), "below 32"),
        (FrameKind.CODES, lambda body: b"", "no bytes"),
        (FrameKind.CODES, lambda body: body[:-1], "bytes|zstd"),
        (FrameKind.CODES, lambda body: body + body, "more bytes"),
        (FrameKind.CODES, lambda body: body + b"x", "zstd"),
        (FrameKind.CODES, lambda body: zstandard.compress(bytes(1 << 24)), "more bytes|zstd"),
        (FrameKind.CODES, lambda body: zstandard.compress(bytes(100)), "100 bytes"),
    ],
)
def test_a_forged_frame_is_named(kind: FrameKind, forge: Callable[[bytes], bytes], words: str) -> None:
    forged = with_frame(CHUNKS[Tier.BALANCED], kind, forge)
    for mode in LandingMode:
        with pytest.raises(ChunkDamaged, match=rf"frame \d \({kind.name}\).*({words})"):
            restored(forged, SHAPE, mode)


@pytest.mark.parametrize(
    ("offset", "field", "words"),
    [
        (10, b"\x03", "flags 0x03"),
        (11, b"\x01", "reserved"),
        (86, b"\x01", "reserved"),
        (127, b"\x01", "reserved"),
    ],
)
def test_what_a_later_version_may_mean_is_refused_by_name(offset: int, field: bytes, words: str) -> None:
    with pytest.raises(ChunkRefused, match=words):
        restored(with_field(CHUNKS[Tier.HIGH], offset, field), SHAPE, LandingMode.CODES)


@given(st.sampled_from(list(Tier)), st.sampled_from(list(LandingMode)), st.data())
def test_forged_bytes_anywhere_end_in_values_or_a_named_error(
    tier: Tier, mode: LandingMode, data: st.DataObject
) -> None:
    copy = bytearray(CHUNKS[tier])
    for _ in range(data.draw(st.integers(1, 4))):
        patch = data.draw(st.binary(min_size=1, max_size=8))
        at = data.draw(st.integers(0, len(copy) - len(patch)))
        copy[at : at + len(patch)] = patch
    try:
        values = restored(sealed(copy, len(parse(CHUNKS[tier], SHAPE).frames)), SHAPE, mode)
    except (ChunkDamaged, ChunkRefused):
        return
    assert values.shape == (SHAPE.planes, SHAPE.tokens, SHAPE.channels)


@given(st.sampled_from(list(Tier)), st.data())
def test_no_length_or_count_is_believed(tier: Tier, data: st.DataObject) -> None:
    """Every number of the header forged, to the largest too: what the reader takes stays about what the chunk has."""
    sizes = {30: 2, 32: 2, 34: 2, 36: 2, 38: 2, 40: 2, 42: 4, 46: 8, 132: 2, 136: 4, 140: 4}
    copy = bytearray(CHUNKS[tier])
    for offset in data.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=4, unique=True)):
        top = (1 << 8 * sizes[offset]) - 1
        number = data.draw(st.one_of(st.just(top), st.integers(0, top), st.integers(0, 64)))
        copy[offset : offset + sizes[offset]] = number.to_bytes(sizes[offset], "little")
    forged = sealed(copy, len(parse(CHUNKS[tier], SHAPE).frames))
    assert memory_to_read(forged) < honest_memory(tier) + MEBIBYTE


@functools.cache
def honest_memory(tier: Tier) -> int:
    """Return what reading the chunk takes before anyone forges it: a number forged to what it was is no forgery."""
    memory_to_read(CHUNKS[tier])  # what is made once per process (tables, modules) is not the chunk's
    return memory_to_read(CHUNKS[tier])


def memory_to_read(chunk: bytes) -> int:
    """Return the most memory that reading the header and checking the frames held at a time."""
    tracemalloc.start()
    try:
        parse_any_header(memoryview(chunk), Limits(), len(chunk))
        describe(chunk)
    except (ChunkDamaged, ChunkRefused):
        assert "not a chunk" in describe(chunk)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("dtype", list(KvDtype))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("token", [0, 3, 4, 31])
def test_nan_and_infinity_are_refused_at_every_token(dtype: KvDtype, bad: float, token: int) -> None:
    shape = sample_shape(dtype)
    values = sample_values(shape)
    pattern = np.array([bad], np.float32)
    as_bits = {
        KvDtype.BFLOAT16: (pattern.view(np.uint32) >> np.uint32(16)).astype(np.uint16),
        KvDtype.FLOAT16: pattern.astype(np.float16).view(np.uint16),
        KvDtype.FLOAT32: pattern.view(np.uint32),
    }
    values[3, token, 7] = as_bits[dtype][0]
    for tier in (Tier.HIGH, Tier.BALANCED, Tier.COMPACT):
        with pytest.raises(ValueError, match="plane 3: NaN or infinity"):
            encode(values, shape, tier, begins_context=True)
    assert np.array_equal(restored(encode(values, shape, Tier.LOSSLESS, True), shape, LandingMode.CODES), values)


def test_values_that_would_come_back_as_infinity_are_refused() -> None:
    shape = sample_shape(KvDtype.FLOAT16)
    values = sample_values(shape)
    values.view(np.float16)[2] = np.where(np.arange(shape.tokens)[:, None] % 2, 65000.0, -65000.0)
    with pytest.raises(ValueError, match=r"plane 2: .*too large for codes of float16"):
        encode(values, shape, Tier.COMPACT)


def test_values_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="bytes of values"):
        encode(sample_values(sample_shape(KvDtype.FLOAT32)), SHAPE, Tier.HIGH)


def test_a_chunk_that_claims_gigabytes_is_described_without_taking_them() -> None:
    """A chunk of a few bytes whose header is in itself consistent: two planes of 2 GiB."""
    source = CHUNKS[Tier.LOSSLESS]
    copy = bytearray(source[:128] + source[128:152] * 2 + bytes(8) + b"12345678")
    struct.pack_into("<6H", copy, 30, 1, 1, 32768, 32768, 0, 2)
    struct.pack_into("<IQ", copy, 42, 128 + 48 + 8, len(copy))
    for number, size in enumerate((8, 0)):
        struct.pack_into("<BBHHHII", copy, 128 + 24 * number, 4, 1, number, 1, 0, 1 << 31, size)
    forged = sealed(copy, 2)
    assert "frames not checked: they would need 42949673" in describe(forged)
    assert memory_to_read(forged) < MEBIBYTE


def test_other_threads_run_while_a_frame_is_decompressed() -> None:
    """The interpreter is told never to switch threads by itself, so this thread wakes up before the other one is done
    only if decompression lets go of the lock."""
    raw = np.random.default_rng(0).integers(0, 8, 1 << 23, np.uint8)
    encoded, destination = memoryview(frame_compressor().compress(raw)), memoryview(bytearray(raw.size))
    inflater, interval, deadline = FrameInflater(), sys.getswitchinterval(), time.monotonic() + 30
    overlapped = False
    sys.setswitchinterval(60)
    try:
        while not overlapped and time.monotonic() < deadline:
            overlapped = wakes_up_during(lambda: inflater.inflate(encoded, destination, "frame 0"))
    finally:
        sys.setswitchinterval(interval)
    assert overlapped


def wakes_up_during(work: Callable[[], None]) -> bool:
    """Return whether this thread ran again before `work`, in another one, had ended."""
    begun, finished = threading.Event(), []

    def run() -> None:
        begun.set()
        work()
        finished.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    woke_up_early = not finished
    thread.join()
    return woke_up_early

"""What a reader refuses, by name, and what it finds damaged, by place. Nothing else may come out of a broken chunk."""

import struct

import numpy as np
import pytest
import xxhash
from codec_samples import KEY, encode, parse, restored, sample_shape, sample_values
from hypothesis import given
from hypothesis import strategies as st

from shadowserve_dataplane.chunks import ChunkKey, KvDtype
from shadowserve_dataplane.codec.format import Expected, Limits, parse_header
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.errors import ChunkDamaged, ChunkRefused

SHAPE = sample_shape()
CHUNKS = {tier: encode(sample_values(SHAPE), SHAPE, tier, True) for tier in Tier}
VALUES = {tier: restored(chunk, SHAPE, LandingMode.VALUES) for tier, chunk in CHUNKS.items()}


def changed(chunk: bytes, offset: int, field: bytes) -> bytes:
    """Return the chunk with a header field changed and the header's checksum made right again."""
    copy = bytearray(chunk)
    copy[offset : offset + len(field)] = field
    end = parse(chunk, SHAPE).header_bytes - 8
    struct.pack_into("<Q", copy, end, xxhash.xxh3_64_intdigest(bytes(copy[:end])))
    return bytes(copy)


def decode(chunk: bytes) -> np.ndarray:
    return restored(chunk, SHAPE, LandingMode.VALUES)


@pytest.mark.parametrize(
    ("offset", "field", "words"),
    [
        (4, b"\x02\x00", "format version 2; this reader knows version 1"),
        (6, b"\x07\x00", "codec 7; this reader knows codec 1"),
        (8, b"\x09", r"tier 9; this reader knows 0 \(Lossless\), 1 \(High\)"),
        (9, b"\x0b", "dtype 11; this reader knows"),
        (12, b"\x05\x00", "transform 5"),
        (14, b"\x01" * 16, "profile 01010101"),
    ],
)
def test_what_is_unknown_is_refused_by_name(offset: int, field: bytes, words: str) -> None:
    with pytest.raises(ChunkRefused, match=words):
        decode(changed(CHUNKS[Tier.BALANCED], offset, field))


def test_another_key_or_shape_is_refused_by_name() -> None:
    chunk = memoryview(CHUNKS[Tier.BALANCED])
    with pytest.raises(ChunkRefused, match="asked for 0000"):
        parse_header(chunk, Expected(ChunkKey(bytes(32)), SHAPE), Limits(), len(chunk))
    with pytest.raises(ChunkRefused, match=r"shape .*layers=2.*asked for .*float16"):
        parse_header(chunk, Expected(KEY, sample_shape(KvDtype.FLOAT16)), Limits(), len(chunk))


def test_a_chunk_beyond_the_limits_is_refused_before_it_is_read() -> None:
    chunk = memoryview(CHUNKS[Tier.BALANCED])
    with pytest.raises(ChunkRefused, match="limits"):
        parse_header(chunk, Expected(KEY, SHAPE), Limits(max_total_bytes=100), len(chunk))


@pytest.mark.parametrize("tier", list(Tier))
def test_a_damaged_frame_is_named_with_both_checksums(tier: Tier) -> None:
    header = parse(CHUNKS[tier], SHAPE)
    for number, frame in enumerate(header.frames):
        broken = bytearray(CHUNKS[tier])
        broken[frame.offset + frame.encoded_bytes // 2] ^= 0x10
        with pytest.raises(ChunkDamaged) as caught:
            decode(bytes(broken))
        assert f"frame {number} ({frame.kind.name}): checksum" in str(caught.value)
        assert caught.value.expected == frame.checksum
        assert f"{caught.value.found:#018x}" in str(caught.value)


def test_a_damaged_header_is_named() -> None:
    broken = bytearray(CHUNKS[Tier.HIGH])
    broken[100] ^= 1
    with pytest.raises(ChunkDamaged, match="header: checksum"):
        decode(bytes(broken))


@given(st.sampled_from(list(Tier)), st.data())
def test_a_chunk_cut_anywhere_is_damaged(tier: Tier, data: st.DataObject) -> None:
    chunk = CHUNKS[tier]
    cut = data.draw(st.integers(0, len(chunk) - 1))
    with pytest.raises((ChunkDamaged, ChunkRefused)):
        decode(chunk[:cut])


@given(st.sampled_from(list(Tier)), st.data())
def test_a_flipped_bit_anywhere_is_found(tier: Tier, data: st.DataObject) -> None:
    broken = bytearray(CHUNKS[tier])
    at = data.draw(st.integers(0, len(broken) - 1))
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((ChunkDamaged, ChunkRefused)):
        decode(bytes(broken))


@given(st.sampled_from(list(Tier)), st.data())
def test_a_forged_header_gives_an_error_or_the_right_values(tier: Tier, data: st.DataObject) -> None:
    """Whatever a header says, checksum right: refused, damaged, or harmless; no other error, no wrong value."""
    chunk = CHUNKS[tier]
    header = parse(chunk, SHAPE)
    at = data.draw(st.integers(0, header.header_bytes - 9))
    forged = changed(chunk, at, data.draw(st.binary(min_size=1, max_size=min(4, header.header_bytes - 8 - at))))
    try:
        values = decode(forged)
    except (ChunkDamaged, ChunkRefused):
        return
    assert np.array_equal(values, VALUES[tier])


@given(st.binary(max_size=400))
def test_noise_is_no_chunk(noise: bytes) -> None:
    with pytest.raises((ChunkDamaged, ChunkRefused)):
        decode(noise)

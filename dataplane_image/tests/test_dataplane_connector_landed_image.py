"""The connector's reader of landed images, against the data plane's own writer."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowserve_dataplane.chunks import ChunkKey, KvDtype, KvShape
from shadowserve_dataplane.codec.decode import FrameDecoder
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.format import Expected, Limits, parse_header
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage, bits_dtype, parse_image
from shadowserve_dataplane.errors import ChunkDamaged, ChunkRefused

SHAPE = KvShape(layers=2, kv_heads=2, head_dim=16, dtype=KvDtype.FLOAT32, tokens=32)
KEY = ChunkKey(b"k" * 32)
CODES_HEADER = 64


def land(tier: Tier, mode: LandingMode, shape: KvShape = SHAPE) -> bytearray:
    """The image that the data plane writes for a chunk of random values."""
    values = np.random.default_rng(3).standard_normal(shape.elements).astype(np.float32)
    bits = values if shape.dtype is KvDtype.FLOAT32 else (values.view(np.uint32) >> 16).astype(np.uint16)
    encoded = Encoder(shape, tier).encode(memoryview(bits.tobytes()), KEY, True)
    header = parse_header(encoded, Expected(KEY, shape), Limits(), len(encoded))
    layout = LandedLayout.of(header, mode)
    image = bytearray(layout.total_bytes)
    image[:64] = layout.header()
    decode = FrameDecoder(shape).begin(header, layout)
    for number, frame in enumerate(header.frames):
        place = layout.destination(frame)
        target = memoryview(image)[place[0] : sum(place)] if place else None
        decode.decode(number, encoded[frame.offset : frame.offset + frame.encoded_bytes], target)
    return image


def dequantized(image: CodesImage) -> np.ndarray:
    means = (image.means.astype(np.uint32) << 16).view(np.float32)
    values = image.codes.astype(np.float32) * image.steps[:, None, None] + means[:, None, :]
    for token, rows in zip(image.exact_tokens.tolist(), image.exact_rows, strict=True):
        values[:, token] = rows.view(np.float32)
    return values


@pytest.mark.parametrize("tier", [Tier.HIGH, Tier.BALANCED, Tier.COMPACT])
def test_codes_mean_the_values_that_the_data_plane_would_have_landed(tier: Tier) -> None:
    codes = parse_image(memoryview(land(tier, LandingMode.CODES)), SHAPE)
    values = parse_image(memoryview(land(tier, LandingMode.VALUES)), SHAPE)
    assert isinstance(codes, CodesImage)
    assert isinstance(values, ValuesImage)
    assert codes.exact_tokens[:4].tolist() == [0, 1, 2, 3]
    assert np.array_equal(dequantized(codes), values.values.view(np.float32))


@pytest.mark.parametrize("dtype", list(KvDtype))
def test_lossless_chunks_land_as_values_bit_by_bit(dtype: KvDtype) -> None:
    shape = KvShape(2, 2, 16, dtype, 32)
    image = parse_image(memoryview(land(Tier.LOSSLESS, LandingMode.CODES, shape)), shape)
    assert isinstance(image, ValuesImage)
    values = np.random.default_rng(3).standard_normal(shape.elements).astype(np.float32)
    bits = values.view(np.uint32) if dtype is KvDtype.FLOAT32 else (values.view(np.uint32) >> 16).astype(np.uint16)
    assert np.array_equal(image.values.ravel(), bits)
    assert image.values.dtype == bits_dtype(dtype)


def test_a_slot_may_be_larger_than_its_image() -> None:
    slot = land(Tier.BALANCED, LandingMode.CODES) + b"\xff" * 1000
    assert isinstance(parse_image(memoryview(slot), SHAPE), CodesImage)


@pytest.mark.parametrize(
    ("offset", "change", "error", "named"),
    [
        (0, b"XXXX", ChunkDamaged, "magic"),
        (4, struct.pack("<H", 2), ChunkRefused, "version 2"),
        (6, b"\x07", ChunkRefused, "kind 7"),
        (7, b"\x01", ChunkRefused, "dtype"),
        (8, struct.pack("<H", 5), ChunkRefused, "planes"),
        (10, struct.pack("<H", 64), ChunkRefused, "tokens"),
        (12, struct.pack("<I", 31), ChunkRefused, "channels"),
        (18, struct.pack("<H", 1), ChunkRefused, "transform 1"),
        (20, struct.pack("<I", 2**31), ChunkDamaged, "steps"),
        (24, struct.pack("<I", 8), ChunkDamaged, "exact tokens"),
        (28, struct.pack("<I", 2**32 - 1), ChunkDamaged, "codes"),
        (32, struct.pack("<Q", 2**60), ChunkDamaged, "total bytes"),
        (32, struct.pack("<Q", 10), ChunkDamaged, "total bytes"),
    ],
)
def test_a_header_that_contradicts_the_slot_or_the_engine_is_named(
    offset: int, change: bytes, error: type[Exception], named: str
) -> None:
    image = land(Tier.BALANCED, LandingMode.CODES)
    image[offset : offset + len(change)] = change
    with pytest.raises(error, match=named):
        parse_image(memoryview(image), SHAPE)


def test_an_exact_token_behind_the_chunk_is_refused() -> None:
    image = land(Tier.BALANCED, LandingMode.CODES)
    (exact_at,) = struct.unpack_from("<I", image, 24)
    struct.pack_into("<H", image, exact_at, SHAPE.tokens)
    with pytest.raises(ChunkDamaged, match="exact tokens"):
        parse_image(memoryview(image), SHAPE)


def test_an_empty_slot_holds_no_image() -> None:
    with pytest.raises(ChunkDamaged):
        parse_image(memoryview(b""), SHAPE)
    with pytest.raises(ChunkDamaged, match="magic"):
        parse_image(memoryview(bytes(CODES_HEADER)), SHAPE)


@given(st.integers(0, 39), st.binary(min_size=1, max_size=8))
def test_no_header_makes_the_reader_look_outside_its_slot(offset: int, junk: bytes) -> None:
    image = _BALANCED.copy()
    image[offset : offset + len(junk)] = junk
    try:
        parsed = parse_image(memoryview(image), SHAPE)
    except (ChunkDamaged, ChunkRefused):
        return
    arrays = [parsed.values] if isinstance(parsed, ValuesImage) else [parsed.codes, parsed.exact_rows, parsed.means]
    assert all(int(array.astype(np.int64).sum()) is not None for array in arrays)


_BALANCED = land(Tier.BALANCED, LandingMode.CODES)

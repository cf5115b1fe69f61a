"""What comes back from a chunk: bit for bit, or within half a step."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from codec_samples import KEY, as_floats, encode, land, parse, restored, sample_shape, sample_values

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec.decode import FrameDecoder
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.format import MAX_EXACT_ROWS, SINK_TOKENS, max_encoded_bytes
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.codec.quantize import as_bfloat16_bits, narrow, step_up
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.connector.landed_image import CodesImage, parse_image
from shadowserve_dataplane.errors import SettingsError

LOSSY = [Tier.HIGH, Tier.BALANCED, Tier.COMPACT]


@pytest.mark.parametrize(("dtype", "mode"), list(product(KvDtype, LandingMode)))
def test_lossless_keeps_every_bit_pattern(dtype: KvDtype, mode: LandingMode) -> None:
    shape = sample_shape(dtype)
    rng = np.random.default_rng(1)
    values = sample_values(shape)
    values[:] = rng.integers(0, np.iinfo(values.dtype).max, values.shape, values.dtype, endpoint=True)
    assert np.array_equal(restored(encode(values, shape, Tier.LOSSLESS, True), shape, mode), values)


@pytest.mark.parametrize(("dtype", "tier", "begins"), list(product(KvDtype, LOSSY, [True, False])))
def test_codes_and_values_landing_give_the_same_bits(dtype: KvDtype, tier: Tier, begins: bool) -> None:
    shape = sample_shape(dtype)
    chunk = encode(sample_values(shape), shape, tier, begins)
    codes, values = (restored(chunk, shape, mode) for mode in LandingMode)
    assert np.array_equal(codes, values)


@pytest.mark.parametrize(("dtype", "tier"), list(product(KvDtype, LOSSY)))
def test_error_is_at_most_half_a_step(dtype: KvDtype, tier: Tier) -> None:
    shape = sample_shape(dtype)
    values = sample_values(shape)
    chunk = encode(values, shape, tier)
    image = parse_image(land(chunk, shape, LandingMode.CODES), shape)
    assert isinstance(image, CodesImage)
    before, after = as_floats(values, dtype), as_floats(restored(chunk, shape, LandingMode.CODES), dtype)
    rounding = np.abs(after) * 2.0**-8 + 1e-6  # of what is restored, which may be the larger one
    assert (np.abs(after - before) <= image.steps[:, None, None] * 0.5001 + rounding).all()


def test_a_finer_tier_is_larger_and_closer() -> None:
    shape = sample_shape(tokens=256)
    values = sample_values(shape)
    chunks = [encode(values, shape, tier) for tier in Tier]
    errors = [
        np.abs(as_floats(restored(c, shape, LandingMode.CODES), shape.dtype) - as_floats(values, shape.dtype)).mean()
        for c in chunks
    ]
    assert [len(chunk) for chunk in chunks] == sorted((len(chunk) for chunk in chunks), reverse=True)
    assert errors == sorted(errors)


def test_first_tokens_of_a_context_are_exact() -> None:
    shape = sample_shape()
    values = sample_values(shape)
    after = restored(encode(values, shape, Tier.COMPACT, begins_context=True), shape, LandingMode.CODES)
    assert np.array_equal(after[:, :SINK_TOKENS], values[:, :SINK_TOKENS])
    assert not np.array_equal(after[:, SINK_TOKENS:], values[:, SINK_TOKENS:])


@pytest.mark.parametrize(("dtype", "far", "others"), list(product(KvDtype, [4000.0, -4000.0], [-90.0, 0.0, 90.0])))
def test_tokens_that_would_be_clipped_are_exact(dtype: KvDtype, far: float, others: float) -> None:
    """Whichever way a token is off, and also where all the others have one sign."""
    shape = sample_shape(dtype, tokens=256)
    values = as_floats(sample_values(shape), dtype) + others
    values[1, 77, 3] = far
    bits = narrow(values.astype(np.float32), dtype)
    chunk = encode(bits, shape, Tier.HIGH)
    assert parse(chunk, shape).exact_rows == 1
    assert np.array_equal(restored(chunk, shape, LandingMode.VALUES)[:, 77], bits[:, 77])


def test_many_far_tokens_widen_the_step_instead() -> None:
    shape = sample_shape(KvDtype.FLOAT32, tokens=256)
    values = sample_values(shape)
    far = list(range(0, 2 * MAX_EXACT_ROWS))
    values.view(np.float32)[1, far, 3] += 3000.0 * (1 + np.arange(len(far)))
    chunk = encode(values, shape, Tier.HIGH)
    image = parse_image(land(chunk, shape, LandingMode.CODES), shape)
    assert isinstance(image, CodesImage)
    before, after = as_floats(values, shape.dtype), as_floats(restored(chunk, shape, LandingMode.CODES), shape.dtype)
    assert (np.abs(after - before) <= image.steps[:, None, None] * 0.5001 + 1e-3).all()


def test_constant_planes() -> None:
    shape = sample_shape(KvDtype.FLOAT32)
    values = np.full((shape.planes, shape.tokens, shape.channels), np.float32(2.5)).view(np.uint32)
    assert np.array_equal(restored(encode(values, shape, Tier.COMPACT), shape, LandingMode.CODES), values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_cannot_be_quantised_are_refused_by_plane(bad: float) -> None:
    shape = sample_shape(KvDtype.FLOAT32)
    values = sample_values(shape)
    values.view(np.float32)[2, 9, 1] = bad
    with pytest.raises(ValueError, match="plane 2: NaN or infinity"):
        encode(values, shape, Tier.BALANCED)


def test_every_chunk_fits_the_promised_bound() -> None:
    shape = sample_shape(tokens=256)
    noise = np.random.default_rng(2).integers(0, 1 << 16, (shape.planes, 256, shape.channels), np.uint16)
    assert len(encode(noise, shape, Tier.LOSSLESS, True)) <= max_encoded_bytes(shape)


def test_payload_is_close_to_the_entropy_of_its_codes() -> None:
    shape = KvShape(4, 3, 64)
    values = sample_values(shape)
    chunk = encode(values, shape, Tier.BALANCED)
    image = parse_image(land(chunk, shape, LandingMode.CODES), shape)
    assert isinstance(image, CodesImage)
    bits = 0.0
    for plane in image.codes:
        counts = np.unique(plane, return_counts=True)[1] / plane.size
        bits -= plane.size * (counts * np.log2(counts)).sum()
    payload = sum(frame.encoded_bytes for frame in parse(chunk, shape).frames[1:])
    assert payload <= 1.03 * bits / 8


@pytest.mark.parametrize(("tier", "dtype", "mode"), list(product([Tier.LOSSLESS, Tier.BALANCED], KvDtype, LandingMode)))
def test_decoding_allocates_nothing_per_chunk(tier: Tier, dtype: KvDtype, mode: LandingMode) -> None:
    shape = KvShape(8, 3, 64, dtype)
    chunk = memoryview(encode(sample_values(shape), shape, tier, True))
    header = parse(bytes(chunk), shape)
    layout = LandedLayout.of(header, mode)
    image = memoryview(bytearray(layout.total_bytes))
    decoder = FrameDecoder(shape)

    def decode() -> None:
        run = decoder.begin(header, layout)
        for number, frame in enumerate(header.frames):
            place = layout.destination(frame)
            encoded = chunk[frame.offset : frame.offset + frame.encoded_bytes]
            run.decode(number, encoded, None if place is None else image[place[0] : sum(place)])

    decode()
    tracemalloc.start()
    try:
        decode()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024, "more than views and numbers was allocated anew"


def test_an_encoder_can_be_used_again() -> None:
    shape = sample_shape()
    encoder = Encoder(shape, Tier.BALANCED)
    first = bytes(encoder.encode(memoryview(sample_values(shape, 1)).cast("B"), KEY, True))
    encoder.encode(memoryview(sample_values(shape, 2)).cast("B"), KEY, False)
    assert bytes(encoder.encode(memoryview(sample_values(shape, 1)).cast("B"), KEY, True)) == first


def test_steps_have_sixteen_significant_bits_and_never_shrink() -> None:
    steps = np.array([0.0, 1e-3, 0.1, 0.7352941, 1.0, 3.3e7])
    rounded = step_up(steps)
    assert (rounded >= steps.astype(np.float32)).all()
    assert (rounded > 0).all()
    assert not (rounded.view(np.uint32) & np.uint32(0xFF)).any()


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.array([1.00390625, 1.01171875, -2.0, 0.0], np.float32)
    assert as_bfloat16_bits(values).tolist() == [0x3F80, 0x3F82, 0xC000, 0]
    assert narrow(values, KvDtype.FLOAT16).dtype == np.uint16


def test_tiers_are_named_as_users_write_them() -> None:
    assert [Tier.parse(tier.label) for tier in Tier] == list(Tier)
    with pytest.raises(SettingsError, match="'Best' is none of Lossless, High, Balanced, Compact"):
        Tier.parse("Best")

"""The fast paths against the plainest numpy: the same codes, the same values, parameters as the specification says."""

from itertools import product

import numpy as np
import pytest
from codec_samples import encode, parse, restored, sample_shape, sample_values

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec import reference
from shadowserve_dataplane.codec.bytewise import BytePlanes
from shadowserve_dataplane.codec.format import MAX_EXACT_ROWS, FrameKind
from shadowserve_dataplane.codec.quantize import Bits, bits_dtype, narrow, widen
from shadowserve_dataplane.codec.tiers import LandingMode, Tier

LOSSY = [Tier.HIGH, Tier.BALANCED, Tier.COMPACT]
SEVERAL_FRAMES = {dtype: KvShape(4, 3, 64, dtype) for dtype in KvDtype}
EVERY_FLOAT16 = np.arange(1 << 16, dtype=np.uint16)


def with_outliers(shape: KvShape) -> Bits:
    """Return values of which some tokens are far from the others, as sinks in the middle of a context are."""
    values = reference.floats_of(sample_values(shape), shape.dtype).astype(np.float32)
    values[1, 200, 5] = 9000.0
    values[3, 77, :2] = -8000.0
    return narrow(values, shape.dtype)


@pytest.mark.parametrize(("tier", "dtype", "mode"), list(product(Tier, KvDtype, LandingMode)))
def test_chunks_decode_as_in_the_reference(tier: Tier, dtype: KvDtype, mode: LandingMode) -> None:
    shape = SEVERAL_FRAMES[dtype]
    chunk = encode(with_outliers(shape), shape, tier, begins_context=True)
    assert np.array_equal(restored(chunk, shape, mode), reference.decoded(chunk, parse(chunk, shape)))


@pytest.mark.parametrize(("tier", "dtype", "begins"), list(product(LOSSY, KvDtype, [True, False])))
def test_codes_are_those_of_the_reference(tier: Tier, dtype: KvDtype, begins: bool) -> None:
    shape = SEVERAL_FRAMES[dtype]
    values = with_outliers(shape)
    chunk = encode(values, shape, tier, begins)
    header = parse(chunk, shape)
    floats, exact = reference.floats_of(values, dtype), reference.exact_rows(chunk, header)[0]
    of_planes = zip(floats, *reference.parameters(chunk, header), strict=True)
    expected = np.stack([reference.quantized(*of_plane) for of_plane in of_planes])
    expected[:, exact] = 0
    assert np.array_equal(reference.codes(chunk, header), expected)


@pytest.mark.parametrize(("tier", "dtype"), list(product(LOSSY, KvDtype)))
def test_steps_and_means_are_those_of_the_specification(tier: Tier, dtype: KvDtype) -> None:
    shape = SEVERAL_FRAMES[dtype]
    values = sample_values(shape)
    chunk = encode(values, shape, tier, begins_context=True)
    steps, means = reference.parameters(chunk, parse(chunk, shape))
    body = reference.floats_of(values, dtype)[:, 4:]
    stored = reference.floats_of(means, KvDtype.BFLOAT16)
    sigmas = np.sqrt(((body - stored[:, None]) ** 2).mean(axis=(1, 2)))
    off = np.abs(stored - body.mean(axis=1)) - np.abs(stored) * 2.0**-8
    assert (off <= sigmas[:, None] * 0.125 / 2 * 1.2).all(), "sigma that means are rounded by is that of some tokens"
    asked = tier.step_in_sigmas * sigmas
    assert (steps >= asked * (1 - 1e-6)).all()
    assert (steps <= asked * (1 + 2.0**-7)).all(), "rounded up to eight significant bits"
    assert not (steps.view(np.uint32) & np.uint32(0xFFFF)).any()


@pytest.mark.parametrize("tier", LOSSY)
def test_steps_do_not_depend_on_the_order_in_which_a_processor_sums(tier: Tier) -> None:
    """Channels in another order have the same means, and the same sigma but for the order of its sum."""
    shape = KvShape(8, 2, 32, KvDtype.FLOAT16)
    order = np.random.default_rng(0).permutation(shape.channels)
    for seed in range(20):
        values = sample_values(shape, seed)
        of_orders = [encode(np.ascontiguousarray(each), shape, tier) for each in (values, values[:, :, order])]
        steps, others = (reference.parameters(chunk, parse(chunk, shape))[0] for chunk in of_orders)
        assert np.array_equal(steps, others), f"seed {seed}"


def test_outliers_do_not_widen_the_step_of_their_plane() -> None:
    shape = KvShape(4, 3, 64, KvDtype.FLOAT32)
    header_of, steps = {}, {}
    for name, values in (("calm", sample_values(shape)), ("outliers", with_outliers(shape))):
        chunk = encode(values, shape, Tier.BALANCED)
        header_of[name] = parse(chunk, shape)
        steps[name] = reference.parameters(chunk, header_of[name])[0]
    assert (header_of["calm"].exact_rows, header_of["outliers"].exact_rows) == (0, 2)
    np.testing.assert_allclose(steps["outliers"], steps["calm"], rtol=0.02)


def test_at_most_sixteen_tokens_are_exact_even_when_every_plane_has_others() -> None:
    shape = KvShape(6, 1, 8, KvDtype.FLOAT32)
    values = sample_values(shape)
    for plane in range(shape.planes):
        values.view(np.float32)[plane, 20 * plane : 20 * plane + 3, 0] = 1e5 * (1 + plane)
    chunk = encode(values, shape, Tier.HIGH, begins_context=True)
    header = parse(chunk, shape)
    tokens = reference.exact_rows(chunk, header)[0]
    assert len(tokens) == header.exact_rows <= MAX_EXACT_ROWS
    after, steps = restored(chunk, shape, LandingMode.CODES), reference.parameters(chunk, header)[0]
    error = np.abs(after.view(np.float32).astype(np.float64) - values.view(np.float32))
    assert (error <= steps[:, None, None] * 0.5001 + np.abs(values.view(np.float32)) * 2.0**-22).all()


def test_every_finite_float16_becomes_the_float32_of_the_same_value() -> None:
    finite = EVERY_FLOAT16[(EVERY_FLOAT16 & 0x7C00) != 0x7C00]
    out = np.zeros(finite.shape, np.float32)
    widen(finite, KvDtype.FLOAT16, out)
    expected = finite.view(np.float16).astype(np.float32)
    assert np.array_equal(out.view(np.uint32), expected.view(np.uint32))


def test_float16_infinity_and_nan_stay_beyond_every_finite_value() -> None:
    others = EVERY_FLOAT16[(EVERY_FLOAT16 & 0x7C00) == 0x7C00]
    out = np.zeros(others.shape, np.float32)
    widen(others, KvDtype.FLOAT16, out)
    assert (np.abs(out) >= 65536).all()


@pytest.mark.parametrize("dtype", list(KvDtype))
@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_bytes_are_split_and_joined(dtype: KvDtype, size: int) -> None:
    values = np.random.default_rng(size).integers(0, 256, size * dtype.itemsize, np.uint8)
    planes = BytePlanes(size, dtype).split(values.view(bits_dtype(dtype)))
    assert np.array_equal(np.stack(planes), values.reshape(size, dtype.itemsize).T)
    back = np.zeros(size, bits_dtype(dtype))
    BytePlanes(size, dtype).join(np.stack(planes), back)
    assert np.array_equal(back.view(np.uint8), values)


def test_exponents_and_mantissas_are_compressed_apart() -> None:
    """A decoder skips over mantissas, which are noise, at the speed of a copy: Lossless is smaller and faster so."""
    shape = KvShape(4, 3, 64)
    chunk = encode(sample_values(shape), shape, Tier.LOSSLESS)
    header = parse(chunk, shape)
    assert all(frame.kind is FrameKind.VALUES for frame in header.frames)
    assert shape.values_bytes / header.total_bytes > 1.4


@pytest.mark.parametrize("tier", LOSSY)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, 1.0, 60000.0])
def test_planes_of_one_value(tier: Tier, value: float) -> None:
    for dtype in KvDtype:
        shape = sample_shape(dtype)
        values = narrow(np.full((shape.planes, shape.tokens, shape.channels), np.float32(value)), dtype)
        after = reference.floats_of(restored(encode(values, shape, tier), shape, LandingMode.VALUES), dtype)
        before = reference.floats_of(values, dtype)
        np.testing.assert_allclose(after, before, rtol=2.0**-7, atol=1e-30)

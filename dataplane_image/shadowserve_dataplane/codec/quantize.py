"""Quantisation of one plane: per-channel mean, one uniform step, int8 codes.

`value = f32(mean) + step * code`, rounded once to the dtype. Steps have at most 16 significant bits, so that
`step * code` is exact in float32 and a fused multiply-add gives the same bits as a multiply and an add.

Every processor makes the same codes of the same values, although no two sum floats in the same order: what is summed is
rounded so coarsely that the order does not show, and where it could, the sum is taken again in an order of its own.
"""

import math

import numpy as np
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec.format import MAX_EXACT_ROWS, SINK_TOKENS
from shadowserve_dataplane.codec.tiers import Tier

Bits = NDArray[np.unsignedinteger]
"""Values of a dtype as their bits: uint16, or uint32 for float32."""
MAX_CODE = 127
_STEP_BITS = 16
_COARSE_STEP_BITS = 8
"""Significant bits of a step that follows from sigma: so few that the order of a sum hardly ever changes it."""
_ORDER_ERROR = 2.0**-14
"""How far a sigma may be off by the order of its sum: no processor adds more than 2048 float32 squares one by one."""
_UPPER_HALF = np.uint32(0xFFFF0000)
_LOWEST_STEP = np.float32(2.0**-100)
_REACH = MAX_CODE + 0.49
"""Steps from the mean that a code reaches; less than a tie, so that nothing is rounded beyond `MAX_CODE`."""
_MEAN_GRAIN = 0.125
"""What means are multiples of, in sigmas at most: a mean is only an offset, so the error costs nothing but entropy."""
_SAMPLED_TOKENS = 16
_TO_INTEGER = np.float32(1.5 * 2**23)
"""Added to a small float32, leaves its nearest integer (ties to even) in the low bits: cheaper than rint and a cast."""
_FOLDED_TOKENS = 8
"""Tokens that are one row to numpy while it sums: its loops are the faster the longer a row is."""
_FOLDED_OFFSETS = 32
"""The same while means are subtracted."""
_GROUP_BYTES = 3200 * 1024
"""What is worked on at a time, as float32: more stays in no cache, less spends its time in calls of numpy. Measured."""
_LARGEST_FLOAT16 = 65504.0
_FLOAT16_FIELDS = np.uint32(0x8FFFE000).view(np.int32)
"""Sign, exponent and mantissa of a float16 that was sign-extended and shifted to where float32 has its mantissa."""
_NEGATIVE_ZERO = 0x8000
_EXPONENTS = {KvDtype.BFLOAT16: 0x7F80, KvDtype.FLOAT16: 0x7C00, KvDtype.FLOAT32: 0x7F800000}


def bits_dtype(dtype: KvDtype) -> type[np.uint16] | type[np.uint32]:
    """Return the unsigned integer as wide as `dtype`."""
    return np.uint32 if dtype is KvDtype.FLOAT32 else np.uint16


def widen(bits: Bits, dtype: KvDtype, out: NDArray[np.float32]) -> None:
    """Write finite values, given as bits of `dtype`, as float32 to `out`, same shape.

    Infinity and NaN of float16 become 65536 and more: the exponent is moved as it is, which is several times as fast
    as numpy's conversion.
    """
    words = out.view(np.int32)
    if dtype is KvDtype.FLOAT32:
        np.copyto(out.view(np.uint32), bits)
    elif dtype is KvDtype.BFLOAT16:
        np.copyto(words, bits.view(np.int16))
        np.left_shift(words, np.int32(16), out=words)
    else:
        np.copyto(words, bits.view(np.int16))
        np.left_shift(words, np.int32(13), out=words)
        np.bitwise_and(words, _FLOAT16_FIELDS, out=words)
        np.multiply(out, np.float32(2.0**112), out=out)


def narrow(values: NDArray[np.float32], dtype: KvDtype) -> Bits:
    """Return float32 values as bits of `dtype`, rounded to nearest, ties to even."""
    if dtype is KvDtype.FLOAT32:
        return values.view(np.uint32)
    if dtype is KvDtype.FLOAT16:
        return values.astype(np.float16).view(np.uint16)
    words = values.view(np.uint32)
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def step_up(steps: NDArray[np.float64], significant_bits: int = _STEP_BITS) -> NDArray[np.float32]:
    """Return the smallest float32 with so many significant bits that are not below `steps`; never 0."""
    rest = np.uint32((1 << (24 - significant_bits)) - 1)
    bits = np.maximum(steps.astype(np.float32), _LOWEST_STEP).view(np.uint32)
    return ((bits + rest) & ~rest).view(np.float32)


def sigma_in_any_order(x: NDArray[np.float32], values: int) -> float:
    """Return the sigma of centred `x` `[tokens][channels]`, of which `values` count; the same on every processor."""
    of_channels = np.add.reduce(np.square(x, dtype=np.float64), axis=0)
    return math.sqrt(math.fsum(of_channels) / values)


def as_bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return float32 values rounded to bfloat16 bits."""
    return narrow(np.ascontiguousarray(values, np.float32), KvDtype.BFLOAT16).astype(np.uint16)


def from_bfloat16_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def dequantized(codes: NDArray[np.int8], step: np.float32, means: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of a plane's codes `[tokens][channels]`; the reference."""
    return codes.astype(np.float32) * step + from_bfloat16_bits(means)


class ChunkQuantizer:
    """Quantises chunks of one shape and lossy tier, one after the other; not thread-safe.

    What it found lies in its public arrays until the next call: `steps` float32 `[planes]`, `means` bfloat16 bits
    `[planes][channels]`, `codes` int8 `[planes][tokens][channels]`, `exact`, the tokens that are kept as they are.

    Some planes are worked on at a time: numpy's calls cost as much as what they do to one small plane.
    """

    def __init__(self, shape: KvShape, tier: Tier) -> None:
        self._shape = shape
        self._sigmas = tier.step_in_sigmas
        self._group = max(1, min(shape.planes, _GROUP_BYTES // max(1, 4 * shape.plane_elements)))
        self._x = np.zeros((self._group, shape.tokens, shape.channels), np.float32)
        self._fold = math.gcd(_FOLDED_TOKENS, shape.tokens)
        self._offsets = np.zeros((self._group, math.gcd(_FOLDED_OFFSETS, shape.tokens), shape.channels), np.float32)
        self.steps = np.zeros(shape.planes, np.float32)
        self.means = np.zeros((shape.planes, shape.channels), np.uint16)
        self.codes = np.zeros((shape.planes, shape.tokens, shape.channels), np.int8)
        self.exact: list[int] = []

    def quantize(self, planes: Bits, begins_context: bool) -> None:
        """Quantise `planes` `[planes][tokens][channels]`.

        Raises `ValueError`, naming the plane, for NaN, infinity, or values that could be restored as infinity.
        """
        self.exact = list(range(min(SINK_TOKENS, self._shape.tokens))) if begins_context else []
        with np.errstate(all="ignore"):
            for first in range(0, len(planes), self._group):
                group = planes[first : first + self._group]
                if not self._quantized(first, group):
                    for number in range(first, first + len(group)):
                        self._quantize_far(number, planes[number : number + 1])
        if self.exact:
            self._check_exact(planes)
            self.codes[:, self.exact] = 0

    def _quantized(self, first: int, group: Bits) -> bool:
        """Quantise some planes; False: codes do not reach some token, so they have to be done one by one."""
        steps = self._centre(first, group)
        furthest = self._no_further_than(first, group)
        if (furthest > _REACH * steps).any():
            furthest = self._furthest(len(group))
        if (furthest > _REACH * steps).any():
            return False
        self._finish(first, steps, furthest)
        return True

    def _quantize_far(self, number: int, plane: Bits) -> None:
        """Quantise one plane of which codes may not reach every token.

        Those tokens become exact and no longer count in mean and sigma; if they are too many, the step is widened
        instead, so that codes reach all of them.
        """
        while not self._quantized(number, plane):
            steps = self._centre(number, plane)
            far = np.abs(self._x[0]).max(axis=1) > _REACH * float(steps[0])
            tokens = np.flatnonzero(far).tolist()
            if len(self.exact) + len(tokens) > MAX_EXACT_ROWS:
                furthest = self._furthest(1)
                self._finish(number, step_up(furthest / MAX_CODE), furthest)
                return
            self.exact = sorted([*self.exact, *tokens])

    def _no_further_than(self, first: int, group: Bits) -> NDArray[np.float64]:
        """Return what `_furthest` does not exceed; for bfloat16 from the values as they came, in half the bytes.

        As integers, floats of one sign are in order, and subtraction rounds monotonously.
        """
        if self._shape.dtype is not KvDtype.BFLOAT16:
            return self._furthest(len(group))
        bits = group.reshape(len(group), -1)
        largest = np.maximum(bits.view(np.int16).max(axis=1), np.int16(0)).view(np.uint16)
        smallest = np.maximum(bits.max(axis=1), np.uint16(_NEGATIVE_ZERO))
        means = from_bfloat16_bits(self.means[first : first + len(group)])
        above = from_bfloat16_bits(largest) - means.min(axis=1)
        below = means.max(axis=1) - from_bfloat16_bits(smallest)
        bound: NDArray[np.float64] = np.maximum(above, below).astype(np.float64)
        return bound

    def _furthest(self, planes: int) -> NDArray[np.float64]:
        flat = self._x[:planes].reshape(planes, -1)
        furthest: NDArray[np.float64] = np.maximum(flat.max(axis=1), -flat.min(axis=1)).astype(np.float64)
        return furthest

    def _finish(self, first: int, steps: NDArray[np.float32], furthest: NDArray[np.float64]) -> None:
        """Turn centred values into codes."""
        end = first + len(steps)
        x = self._x[: len(steps)]
        self._check_range(first, furthest + steps)
        self.steps[first:end] = steps
        np.multiply(x, (np.float32(1) / steps)[:, None, None], out=x)
        np.add(x, _TO_INTEGER, out=x)
        np.copyto(self.codes[first:end], x.view(np.int32), casting="unsafe")

    def _centre(self, first: int, group: Bits) -> NDArray[np.float32]:
        """Leave the planes' values less their means in scratch, exact tokens zero; return the step of every plane."""
        planes, exact, shape = len(group), self.exact, self._shape
        x, offsets = self._x[:planes], self._offsets[:planes]
        folded = x.reshape(planes, shape.tokens // self._fold, self._fold * shape.channels)
        widen(group, shape.dtype, x)
        if exact:
            x[:, exact] = 0
        rows = max(1, shape.tokens - len(exact))
        means = np.add.reduce(np.add.reduce(folded, axis=1).reshape(planes, self._fold, -1), axis=1)
        np.divide(means, np.float32(rows), out=means)
        self._coarsen(x, means)
        words = means.view(np.uint32)
        np.add(words, np.uint32(0x8000), out=words)
        np.bitwise_and(words, _UPPER_HALF, out=words)
        np.copyto(offsets, means[:, None])
        rowed = x.reshape(planes, -1, offsets[0].size)
        np.subtract(rowed, offsets.reshape(planes, 1, -1), out=rowed)
        if exact:
            x[:, exact] = 0
        squares = np.vecdot(folded, folded).sum(axis=1).astype(np.float64)
        if not np.isfinite(squares).all():
            raise self._unfit(first + int(np.flatnonzero(~np.isfinite(squares))[0]))
        self.means[first : first + planes] = words >> np.uint32(16)
        return self._steps(np.sqrt(squares / (rows * shape.channels)), rows * shape.channels)

    def _steps(self, sigmas: NDArray[np.float64], values: int) -> NDArray[np.float32]:
        """Return the steps of centred planes; `sigmas` are right but for the order in which squares were summed."""
        steps = step_up(self._sigmas * sigmas * (1 - _ORDER_ERROR), _COARSE_STEP_BITS)
        or_else = step_up(self._sigmas * sigmas * (1 + _ORDER_ERROR), _COARSE_STEP_BITS)
        for plane in np.flatnonzero(steps != or_else):
            sigma = sigma_in_any_order(self._x[plane], values)
            steps[plane] = step_up(np.array(self._sigmas * sigma), _COARSE_STEP_BITS)
        return steps

    def _coarsen(self, x: NDArray[np.float32], means: NDArray[np.float32]) -> None:
        """Round means to a power of two of at most `_MEAN_GRAIN` sigmas, sigma by some tokens: they compress better."""
        stride = max(1, self._shape.tokens // _SAMPLED_TOKENS)
        sampled = x[:, stride - 1 :: stride]
        if self.exact:
            tokens = range(stride - 1, self._shape.tokens, stride)
            sampled = sampled[:, [place for place, token in enumerate(tokens) if token not in self.exact]]
        sample = sampled - means[:, None]
        np.square(sample, out=sample)
        squares = np.add.reduce(sample, axis=1).astype(np.float64).sum(axis=1)  # a vecdot differs between processors
        known = (squares > 0) & np.isfinite(squares)
        _, exponents = np.frexp(_MEAN_GRAIN * np.sqrt(squares / sample[0].size))
        grains = np.ldexp(1.0, exponents - 1)[:, None]
        coarse = means / grains  # float64: powers of two of any float32 divide and multiply without an error
        np.rint(coarse, out=coarse)
        np.multiply(coarse, grains, out=coarse)
        np.copyto(means, coarse, where=known[:, None], casting="same_kind")

    def _check_range(self, first: int, furthest: NDArray[np.float64]) -> None:
        """Refuse what could be restored as infinity, which only float16 is narrow enough for; also its own infinity."""
        if self._shape.dtype is not KvDtype.FLOAT16:
            return
        means = np.abs(from_bfloat16_bits(self.means[first : first + len(furthest)])).max(axis=1)
        unfit = np.flatnonzero(furthest + means > _LARGEST_FLOAT16)
        if unfit.size:
            raise self._unfit(first + int(unfit[0]))

    def _check_exact(self, planes: Bits) -> None:
        rows, exponent = planes[:, self.exact], _EXPONENTS[self._shape.dtype]
        unfit = np.flatnonzero(((rows & exponent) == exponent).any(axis=(1, 2)))
        if unfit.size:
            raise self._unfit(int(unfit[0]))

    def _unfit(self, number: int) -> ValueError:
        return ValueError(
            f"plane {number}: NaN or infinity, or too large for codes of {self._shape.dtype}; tier Lossless keeps them"
        )

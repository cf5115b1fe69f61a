"""Quantisation of one plane: per-channel mean, one uniform step, int8 codes.

`value = f32(mean) + step * code`, rounded once to the dtype. Steps have at most 16 significant bits, so that
`step * code` is exact in float32 and a fused multiply-add gives the same bits as a multiply and an add.
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
_STEP_MASK = np.uint32(0xFFFFFF00)
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
_LARGEST_FLOAT16 = 65504.0
_FLOAT16_FIELDS = np.uint32(0x8FFFE000).view(np.int32)
"""Sign, exponent and mantissa of a float16 that was sign-extended and shifted to where float32 has its mantissa."""
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


def step_up(step: float) -> np.float32:
    """Return the smallest float32 with 16 significant bits that is not below `step`; never 0."""
    bits = np.maximum(np.float32(step), _LOWEST_STEP).view(np.uint32)
    up = bits if bits & ~_STEP_MASK == 0 else (bits & _STEP_MASK) + np.uint32(0x100)
    return np.uint32(up).view(np.float32)


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
    """

    def __init__(self, shape: KvShape, tier: Tier) -> None:
        self._shape = shape
        self._sigmas = tier.step_in_sigmas
        self._x = np.zeros((shape.tokens, shape.channels), np.float32)
        fold = math.gcd(_FOLDED_TOKENS, shape.tokens)  # numpy's loops are the faster the longer a row is
        self._folded = self._x.reshape(shape.tokens // fold, fold * shape.channels)
        self._offsets = np.zeros((fold, shape.channels), np.float32)
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
            for number, plane in enumerate(planes):
                step = self._centred(number, plane)
                self.steps[number] = step
                np.multiply(self._x, np.float32(1) / step, out=self._x)
                np.add(self._x, _TO_INTEGER, out=self._x)
                np.copyto(self.codes[number], self._x.view(np.int32), casting="unsafe")
        if self.exact:
            self._check_exact(planes)
            self.codes[:, self.exact] = 0

    def _centred(self, number: int, plane: Bits) -> np.float32:
        """Leave the plane's values less their means in scratch, exact tokens zero; return its step.

        A token that a code cannot reach becomes exact and no longer counts in mean and sigma; if those are too many,
        the step is widened instead, so that codes reach all of them.
        """
        x = self._x
        while True:
            step = step_up(self._sigmas * self._centre(number, plane))
            furthest = max(float(x.max()), -float(x.min()))
            far = furthest > _REACH * float(step)
            tokens = np.flatnonzero(np.abs(x).max(axis=1) > _REACH * float(step)).tolist() if far else []
            if len(self.exact) + len(tokens) > MAX_EXACT_ROWS:
                step, tokens = step_up(furthest / MAX_CODE), []
            if not tokens:
                self._check_range(number, furthest + float(step))
                return step
            self.exact = sorted([*self.exact, *tokens])

    def _centre(self, number: int, plane: Bits) -> float:
        """Subtract the means of the tokens that are not exact; return sigma about them."""
        x, exact = self._x, self.exact
        widen(plane, self._shape.dtype, x)
        if exact:
            x[exact] = 0
        rows = max(1, len(x) - len(exact))
        means = np.add.reduce(np.add.reduce(self._folded, axis=0).reshape(self._offsets.shape), axis=0)
        np.divide(means, np.float32(rows), out=means)
        self._coarsen(means)
        words = means.view(np.uint32)
        np.add(words, np.uint32(0x8000), out=words)
        np.bitwise_and(words, _UPPER_HALF, out=words)
        np.copyto(self._offsets, means)
        np.subtract(self._folded, self._offsets.reshape(-1), out=self._folded)
        if exact:
            x[exact] = 0
        squares = float(np.vecdot(self._folded, self._folded).sum())
        if not np.isfinite(squares):
            raise self._unfit(number)
        self.means[number] = words >> np.uint32(16)
        return float(np.sqrt(squares / (rows * x.shape[1])))

    def _coarsen(self, means: NDArray[np.float32]) -> None:
        """Round means to a power of two of at most `_MEAN_GRAIN` sigmas, sigma by some tokens: they compress better."""
        stride = max(1, len(self._x) // _SAMPLED_TOKENS)
        tokens = [token for token in range(stride - 1, len(self._x), stride) if token not in self.exact]
        sample = self._x[tokens] - means
        squares = float(np.vecdot(sample, sample).sum())
        if 0 < squares < math.inf:
            _, exponent = math.frexp(_MEAN_GRAIN * math.sqrt(squares / sample.size))
            np.ldexp(np.rint(np.ldexp(means, 1 - exponent)), exponent - 1, out=means)

    def _check_range(self, number: int, furthest: float) -> None:
        """Refuse what could be restored as infinity, which only float16 is narrow enough for; also its own infinity."""
        if self._shape.dtype is not KvDtype.FLOAT16:
            return
        if furthest + float(np.abs(from_bfloat16_bits(self.means[number])).max()) > _LARGEST_FLOAT16:
            raise self._unfit(number)

    def _check_exact(self, planes: Bits) -> None:
        rows, exponent = planes[:, self.exact], _EXPONENTS[self._shape.dtype]
        unfit = np.flatnonzero(((rows & exponent) == exponent).any(axis=(1, 2)))
        if unfit.size:
            raise self._unfit(int(unfit[0]))

    def _unfit(self, number: int) -> ValueError:
        return ValueError(
            f"plane {number}: NaN or infinity, or too large for codes of {self._shape.dtype}; tier Lossless keeps them"
        )

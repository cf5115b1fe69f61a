"""Quantisation of one plane: per-channel mean, one uniform step, int8 codes.

`value = f32(mean) + step * code`, rounded once to the dtype. Steps have at most 16 significant bits, so that
`step * code` is exact in float32 and a fused multiply-add gives the same bits as a multiply and an add.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvDtype

Bits = NDArray[np.unsignedinteger]
"""Values of a dtype as their bits: uint16, or uint32 for float32."""
MAX_CODE = 127
_STEP_MASK = np.uint32(0xFFFFFF00)
_LOWEST_STEP = np.float32(2.0**-100)


@dataclass(frozen=True, slots=True)
class PlaneScratch:
    """Float32 `[tokens][channels]` and the same memory as uint32: a plane on its way from values to codes."""

    floats: NDArray[np.float32]
    words: NDArray[np.uint32]

    @classmethod
    def of(cls, tokens: int, channels: int) -> "PlaneScratch":
        """Return fresh scratch."""
        words = np.zeros((tokens, channels), np.uint32)
        return cls(words.view(np.float32), words)


def bits_dtype(dtype: KvDtype) -> type[np.uint16] | type[np.uint32]:
    """Return the unsigned integer as wide as `dtype`."""
    return np.uint32 if dtype is KvDtype.FLOAT32 else np.uint16


def widen(bits: Bits, dtype: KvDtype, scratch: PlaneScratch) -> None:
    """Write a plane's values, given as bits of `dtype`, as float32 into the scratch."""
    if dtype is KvDtype.BFLOAT16:
        np.left_shift(bits, np.uint32(16), out=scratch.words, dtype=np.uint32)
    elif dtype is KvDtype.FLOAT16:
        np.copyto(scratch.floats, bits.view(np.float16))
    else:
        np.copyto(scratch.words, bits)


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

"""Codes to values in numpy: the fallback where there is no torch, on scratch that is made once."""

import numpy as np
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec.quantize import Bits, from_bfloat16_bits


class PlaneDequantizer:
    """Dequantises plane after plane into bits of the dtype; not thread-safe."""

    def __init__(self, shape: KvShape) -> None:
        self._dtype = shape.dtype
        self._floats = np.zeros((shape.tokens, shape.channels), np.float32)
        self._words = self._floats.view(np.uint32)
        self._odd = np.zeros_like(self._words)

    def plane(self, codes: NDArray[np.int8], step: np.float32, means: NDArray[np.uint16], out: Bits) -> None:
        """Write the values of `codes` `[tokens][channels]` as bits of the dtype to `out`, same shape."""
        np.multiply(codes, step, out=self._floats, casting="unsafe")
        np.add(self._floats, from_bfloat16_bits(means), out=self._floats)
        if self._dtype is KvDtype.FLOAT32:
            np.copyto(out, self._words)
        elif self._dtype is KvDtype.FLOAT16:
            np.copyto(out.view(np.float16), self._floats, casting="unsafe")
        else:
            np.right_shift(self._words, np.uint32(16), out=self._odd)
            np.bitwise_and(self._odd, np.uint32(1), out=self._odd)
            np.add(self._words, np.uint32(0x7FFF), out=self._words)
            np.add(self._words, self._odd, out=self._words)
            np.right_shift(self._words, np.uint32(16), out=self._words)
            np.copyto(out, self._words, casting="unsafe")

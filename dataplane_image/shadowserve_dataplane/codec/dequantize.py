"""Codes to values in numpy, on scratch that is made once: no allocation and no GIL while a plane is worked on."""

from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec.quantize import Bits, widen


class Dequantizer(Protocol):
    """Turns the codes of one chunk after the other into bits of the dtype; one a thread."""

    def begin(self, steps: NDArray[np.float32], means: NDArray[np.uint16]) -> None:
        """Take the parameters of all planes of a chunk: steps `[planes]`, means bfloat16 bits `[planes][channels]`."""
        ...

    def planes(self, codes: NDArray[np.int8], first: int, out: Bits) -> None:
        """Write the values of `codes` `[planes][tokens][channels]`, planes from `first` on, to `out`, same shape."""
        ...


def dequantizer(shape: KvShape, planes: int) -> Dequantizer:
    """Return the fastest there is for up to `planes` planes at a time: torch's where torch is installed."""
    if find_spec("torch") is None:
        return NumpyDequantizer(shape)
    from shadowserve_dataplane.codec.dequantize_torch import TorchDequantizer

    return TorchDequantizer(shape, planes)


class NumpyDequantizer:
    """Dequantises plane after plane; not thread-safe.

    Casts and broadcasts are left to `copyto`: an arithmetic operation that also casts or broadcasts allocates buffers.
    """

    def __init__(self, shape: KvShape) -> None:
        self._dtype = shape.dtype
        self._floats = np.zeros((shape.tokens, shape.channels), np.float32)
        self._words = self._floats.view(np.uint32)
        self._odd = np.zeros_like(self._words)
        self._offsets = self._odd.view(np.float32)
        self._steps = np.zeros(shape.planes, np.float32)
        self._means = np.zeros((shape.planes, shape.channels), np.float32)

    def begin(self, steps: NDArray[np.float32], means: NDArray[np.uint16]) -> None:
        """Take the parameters of all planes of a chunk."""
        np.copyto(self._steps, steps)
        widen(means, KvDtype.BFLOAT16, self._means)

    def planes(self, codes: NDArray[np.int8], first: int, out: Bits) -> None:
        """Write the values of `codes` `[planes][tokens][channels]` as bits of the dtype to `out`, same shape."""
        for number, plane in enumerate(codes):
            self._plane(plane, self._steps[first + number], self._means[first + number], out[number])

    def _plane(self, codes: NDArray[np.int8], step: np.float32, means: NDArray[np.float32], out: Bits) -> None:
        np.copyto(self._floats, codes)
        np.multiply(self._floats, step, out=self._floats)
        np.copyto(self._offsets, means)
        np.add(self._floats, self._offsets, out=self._floats)
        if self._dtype is KvDtype.FLOAT32:
            np.copyto(out, self._words)
        elif self._dtype is KvDtype.FLOAT16:
            np.copyto(out.view(np.float16), self._floats, casting="unsafe")
        else:
            self._round_to_bfloat16(out)

    def _round_to_bfloat16(self, out: Bits) -> None:
        """To nearest, ties to even: add half a unit less one, and one more where the last bit kept is odd."""
        np.right_shift(self._words, np.uint32(16), out=self._odd)
        np.bitwise_and(self._odd, np.uint32(1), out=self._odd)
        np.add(self._words, np.uint32(0x7FFF), out=self._words)
        np.add(self._words, self._odd, out=self._words)
        np.right_shift(self._words, np.uint32(16), out=self._words)
        np.copyto(out, self._words, casting="unsafe")

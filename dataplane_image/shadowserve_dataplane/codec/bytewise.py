"""Values by byte: byte 0 of all elements, then byte 1, and so on. Exponents compress, mantissas are noise.

Shifts of whole words are several times as fast in numpy as copies of every second byte.
"""

import numpy as np
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvDtype
from shadowserve_dataplane.codec.quantize import Bits, bits_dtype

_BLOCK = 1 << 15
"""Elements that are worked on at a time, so that every pass but the first finds them in the core's own cache."""


class BytePlanes:
    """Splits and joins at most `elements` elements at a time, on scratch of its own; not thread-safe."""

    def __init__(self, elements: int, dtype: KvDtype) -> None:
        self._words: Bits = np.zeros(min(elements, _BLOCK), bits_dtype(dtype))
        self._bytes = np.zeros((dtype.itemsize, elements), np.uint8)
        self._eight = self._words.dtype.type(8)

    def split(self, values: Bits) -> list[NDArray[np.uint8]]:
        """Return the byte planes of `values` `[n]`, least significant first, each `[n]`; valid until the next call."""
        planes = self._bytes[:, : len(values)]
        for start in range(0, len(values), _BLOCK):
            self._split(values[start : start + _BLOCK], planes[:, start : start + _BLOCK])
        return list(planes)

    def join(self, planes: NDArray[np.uint8], out: Bits) -> None:
        """Write to `out` `[n]` the values whose byte planes `[itemsize][n]` are given."""
        for start in range(0, len(out), _BLOCK):
            self._join(planes[:, start : start + _BLOCK], out[start : start + _BLOCK])

    def _split(self, values: Bits, planes: NDArray[np.uint8]) -> None:
        words = self._words[: len(values)]
        np.copyto(words, values)
        for byte, plane in enumerate(planes):
            if byte:
                np.right_shift(words, self._eight, out=words)
            np.copyto(plane, words, casting="unsafe")

    def _join(self, planes: NDArray[np.uint8], out: Bits) -> None:
        words = self._words[: len(out)]
        np.copyto(out, planes[-1])
        for plane in planes[-2::-1]:
            np.left_shift(out, self._eight, out=out)
            np.copyto(words, plane)
            np.bitwise_or(out, words, out=out)

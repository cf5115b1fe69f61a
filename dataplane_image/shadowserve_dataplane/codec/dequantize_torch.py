"""Codes to values in torch, where it is installed (the extra `torch`): a third of the time that numpy takes.

The same bits as `dequantize`: the product of code and step is exact in float32, so it does not matter that torch fuses
it with the addition, and its casts round to nearest even as well. Some frames at a time, on scratch that is made once.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec.quantize import Bits

_DTYPES = {KvDtype.BFLOAT16: torch.bfloat16, KvDtype.FLOAT16: torch.float16, KvDtype.FLOAT32: torch.float32}
torch.set_num_threads(1)  # a pipeline worker is the unit of parallel work; OpenMP threads would poll beside it


class TorchDequantizer:
    """Dequantises up to `planes` planes at a time into bits of the dtype; not thread-safe."""

    def __init__(self, shape: KvShape, planes: int) -> None:
        self._dtype = _DTYPES[shape.dtype]
        self._floats = torch.zeros(planes, shape.tokens, shape.channels)
        self._steps = torch.zeros(shape.planes, 1, 1)
        self._means = torch.zeros(shape.planes, 1, shape.channels)

    def begin(self, steps: NDArray[np.float32], means: NDArray[np.uint16]) -> None:
        """Take the parameters of all planes of a chunk."""
        self._steps[:, 0, 0].copy_(torch.from_numpy(steps))
        self._means[:, 0].copy_(torch.from_numpy(means).view(torch.bfloat16))

    def planes(self, codes: NDArray[np.int8], first: int, out: Bits) -> None:
        """Write the values of `codes` `[planes][tokens][channels]` as bits of the dtype to `out`, same shape."""
        end = first + len(codes)
        floats = self._floats[: len(codes)]
        floats.copy_(torch.from_numpy(codes))
        torch.addcmul(self._means[first:end], floats, self._steps[first:end], out=floats)
        torch.from_numpy(out).view(self._dtype).copy_(floats)

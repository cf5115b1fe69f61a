"""Codes to values in torch, where it is installed (the extra `torch`): a third of the time that numpy takes.

The same bits as `dequantize`: the product of code and step is exact in float32, so it does not matter that torch fuses
it with the addition, and its casts round to nearest even as well. Whole frames, on scratch that is made once.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec.quantize import Bits

_DTYPES = {KvDtype.BFLOAT16: torch.bfloat16, KvDtype.FLOAT16: torch.float16, KvDtype.FLOAT32: torch.float32}
torch.set_num_threads(1)  # a pipeline worker is the unit of parallel work; OpenMP threads would poll beside it


class TorchDequantizer:
    """Dequantises frames of up to `planes` planes into bits of the dtype; not thread-safe."""

    def __init__(self, shape: KvShape, planes: int) -> None:
        self._dtype = _DTYPES[shape.dtype]
        self._floats = torch.zeros(planes, shape.tokens, shape.channels)
        self._means = torch.zeros(planes, 1, shape.channels)

    def frame(self, codes: NDArray[np.int8], steps: NDArray[np.float32], means: NDArray[np.uint16], out: Bits) -> None:
        """Write the values of `codes` `[planes][tokens][channels]` as bits of the dtype to `out`, same shape."""
        planes = len(codes)
        floats, offsets = self._floats[:planes], self._means[:planes]
        offsets[:, 0].copy_(torch.from_numpy(means).view(torch.bfloat16))
        floats.copy_(torch.from_numpy(codes))
        torch.addcmul(offsets, floats, torch.from_numpy(steps)[:, None, None], out=floats)
        torch.from_numpy(out).view(self._dtype).copy_(floats)

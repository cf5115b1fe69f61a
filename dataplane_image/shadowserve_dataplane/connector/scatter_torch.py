"""Scatter and gather in plain torch: every layout and device that torch has, one plane and block at a time.

The reference that the fast copies are tested against, and what runs where none of them applies.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage, bits_dtype
from shadowserve_dataplane.connector.layouts import PagedKv, block_views
from shadowserve_dataplane.connector.paged_copy import BlockSpan


class TorchPagedCopy:
    """Any layout, any device, no speed."""

    def __init__(self, paged: PagedKv) -> None:
        self._paged = paged
        self._bits = torch.int32 if bits_dtype(paged.shape.dtype).itemsize == 4 else torch.int16

    def prepare(self) -> None:
        """Nothing to prepare."""

    def adopt(self, landing: memoryview) -> None:
        """The buffer is ordinary memory: nothing to do."""

    def scatter(self, image: CodesImage | ValuesImage, span: BlockSpan) -> None:
        """Write the span's part of a landed chunk into the cache."""
        for plane in range(self._paged.shape.planes):
            values = self._values(image, plane)
            for number, block in enumerate(span.blocks, span.first):
                tokens = slice(number * self._paged.block_tokens, (number + 1) * self._paged.block_tokens)
                self._view(plane, block).copy_(values[tokens].transpose(0, 1))

    def gather(self, span: BlockSpan, values: memoryview) -> None:
        """Write the span's tokens as canonical values into `values`."""
        shape = self._paged.shape
        tokens = len(span.blocks) * self._paged.block_tokens
        flat = np.frombuffer(values, bits_dtype(shape.dtype), shape.planes * tokens * shape.channels)
        planes = flat.reshape(shape.planes, len(span.blocks), self._paged.block_tokens, shape.kv_heads, shape.head_dim)
        for plane in range(shape.planes):
            for number, block in enumerate(span.blocks):
                bits = self._view(plane, block).transpose(0, 1).cpu().contiguous().view(self._bits)
                planes[plane, number] = bits.numpy().view(planes.dtype)

    def _view(self, plane: int, block: int) -> torch.Tensor:
        views = block_views(self._paged.layers[plane // 2][block], self._paged.layout, self._paged.shape.head_dim)
        return views[plane % 2]

    def _values(self, image: CodesImage | ValuesImage, plane: int) -> torch.Tensor:
        shape, dtype = self._paged.shape, self._paged.layers[0].dtype
        rows = (shape.tokens, shape.kv_heads, shape.head_dim)
        if isinstance(image, ValuesImage):
            return self._from_bits(image.values[plane]).view(dtype).view(rows)
        means = (image.means[plane].astype(np.uint32) << np.uint32(16)).view(np.float32)
        values = torch.from_numpy(image.codes[plane].astype(np.float32) * image.steps[plane] + means).to(dtype)
        for token, exact in zip(image.exact_tokens.tolist(), image.exact_rows, strict=True):
            values[token] = self._from_bits(exact[plane]).view(dtype)
        return values.view(rows)

    def _from_bits(self, bits: NDArray[np.unsignedinteger]) -> torch.Tensor:
        signed = np.int32 if bits.dtype == np.uint32 else np.int16
        return torch.from_numpy(bits.view(signed).copy())

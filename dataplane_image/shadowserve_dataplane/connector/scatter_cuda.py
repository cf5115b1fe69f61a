"""Scatter and gather on a GPU: codes cross the bus and are dequantized while they are scattered.

Everything runs on a stream of its own, of the lowest priority, so that decode steps go first; each copy returns when
the device has finished it. A landing slot is read once, by copies to device memory that the card's own engine makes
where the landing buffer could be made known to it (`adopt`).
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.cuda_kernels import (
    TILE,
    copy_bits_kernel,
    exact_rows_kernel,
    scatter_codes_kernel,
)
from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage, bits_dtype
from shadowserve_dataplane.connector.layouts import PagedKv
from shadowserve_dataplane.connector.paged_copy import BlockSpan

_log = logging.getLogger(f"vllm.{__name__}")
_PORTABLE = 1
"""`cudaHostRegisterPortable`: page-locked for every context of this process."""
_TRITON = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class CudaPagedCopy:
    """Copies for `EngineLayout.STRIDED` on one CUDA device; made on the engine's thread, used on the copier's."""

    def __init__(self, paged: PagedKv) -> None:
        self._paged = paged
        self._device = paged.layers[0].device
        lowest, _ = torch.cuda.Stream.priority_range()
        self._stream = torch.cuda.Stream(self._device, priority=lowest)
        self._engine_stream = torch.cuda.current_stream(self._device)
        addresses = [tensor.data_ptr() for tensor in paged.layers]
        self._layers = torch.tensor(addresses, dtype=torch.int64, device=self._device)
        shape = paged.shape
        self._values = self._zeros(shape.elements, paged.layers[0].dtype)
        self._codes = self._zeros(shape.elements, torch.int8)
        self._steps = self._zeros(shape.planes, torch.float32)
        self._means = self._zeros(shape.planes * shape.channels, torch.bfloat16)
        self._landing: NDArray[np.uint8] | None = None

    def prepare(self) -> None:
        """Compile every kernel as it will be used, on the engine's null block (0), and put back what was in that."""
        shape, span = self._paged.shape, BlockSpan((0,))
        kept = memoryview(bytearray(shape.values_bytes))
        self.gather(span, kept)
        with torch.cuda.stream(self._stream):
            for into_cache in (False, True):
                self._copy_bits(span, shape.tokens, into_cache)
            self._scatter_codes(_blank_image(shape), span)
            self._upload(self._values, np.frombuffer(kept, np.uint8))
            self._copy_bits(span, self._paged.block_tokens, into_cache=True)
        self._stream.synchronize()

    def adopt(self, landing: memoryview) -> None:
        """Page-lock the landing buffer, so that the device fetches slots by itself; lets go of the one before."""
        self._let_go()
        memory = np.frombuffer(landing, np.uint8)
        with torch.cuda.device(self._device):
            error = torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, _PORTABLE)
        if int(error):
            _log.warning("the landing buffer cannot be page-locked (%s): chunks take one more copy on the host", error)
            return
        self._landing = memory

    def _let_go(self) -> None:
        if self._landing is not None:
            torch.cuda.cudart().cudaHostUnregister(self._landing.ctypes.data)
            self._landing = None

    def scatter(self, image: CodesImage | ValuesImage, span: BlockSpan) -> None:
        """Write the span's part of a landed chunk into the cache, dequantizing codes on the way."""
        with torch.cuda.stream(self._stream):
            if isinstance(image, ValuesImage):
                self._upload(self._values, image.values)
                self._copy_bits(span, self._paged.shape.tokens, into_cache=True)
            else:
                self._scatter_codes(image, span)
        self._stream.synchronize()

    def gather(self, span: BlockSpan, values: memoryview) -> None:
        """Write the span's tokens as canonical values into `values`, after what the engine has submitted so far."""
        shape = self._paged.shape
        tokens = len(span.blocks) * self._paged.block_tokens
        count = shape.planes * tokens * shape.channels
        target = torch.from_numpy(np.frombuffer(values, np.uint8, count * shape.dtype.itemsize))
        self._stream.wait_stream(self._engine_stream)
        with torch.cuda.stream(self._stream):
            self._copy_bits(BlockSpan(span.blocks), tokens, into_cache=False)
            target.copy_(self._values[:count].view(torch.uint8), non_blocking=True)
        self._stream.synchronize()

    def scatter_codes(self, codes: torch.Tensor, steps: torch.Tensor, means: torch.Tensor, span: BlockSpan) -> None:
        """Submit the dequantizing scatter on the current stream; the device can read all three.

        `codes` int8 `[planes][tokens][channels]`, `steps` float32 `[planes]`, `means` bfloat16 `[planes][channels]`.
        """
        shape = self._paged.shape
        grid = (shape.layers, -(-len(span.blocks) * self._paged.block_tokens // TILE))
        self._launch(scatter_codes_kernel, grid, (codes, steps, means), span, chunk_tokens=shape.tokens, tile=TILE)

    def _scatter_codes(self, image: CodesImage, span: BlockSpan) -> None:
        self._upload(self._steps, image.steps)
        self._upload(self._means, image.means)
        self._upload(self._codes, image.codes)
        self.scatter_codes(self._codes, self._steps, self._means, span)
        if len(image.exact_tokens):
            rows = self._device_copy(image.exact_rows).view(self._paged.layers[0].dtype)
            tokens = torch.from_numpy(image.exact_tokens.astype(np.int32)).to(self._device)
            grid = (self._paged.shape.planes, len(image.exact_tokens))
            self._launch(exact_rows_kernel, grid, (rows, tokens), span, planes=self._paged.shape.planes)

    def _copy_bits(self, span: BlockSpan, chunk_tokens: int, into_cache: bool) -> None:
        span_tokens = len(span.blocks) * self._paged.block_tokens
        grid = (self._paged.shape.planes, -(-span_tokens // TILE))
        options = {"chunk_tokens": chunk_tokens, "tile": TILE, "into_cache": into_cache}
        self._launch(copy_bits_kernel, grid, (self._values,), span, **options)

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], sources: tuple[torch.Tensor, ...], span: BlockSpan, **options: int
    ) -> None:
        if not span.blocks:
            return
        shape, first = self._paged.shape, self._paged.layers[0]
        blocks = torch.tensor(span.blocks, dtype=torch.int64, device=self._device)
        run: Callable[..., None] = kernel[grid]
        run(
            *sources,
            self._layers,
            blocks,
            first_token=span.first * self._paged.block_tokens,
            span_tokens=len(span.blocks) * self._paged.block_tokens,
            stride_block=first.stride(0),
            stride_head=first.stride(1),
            stride_token=first.stride(2),
            stride_dim=first.stride(3),
            block_tokens=self._paged.block_tokens,
            head_dim=shape.head_dim,
            channels=shape.channels,
            columns_padded=1 << (shape.channels - 1).bit_length(),
            dtype=_TRITON[first.dtype],
            **options,
        )

    def _zeros(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(count, dtype=dtype, device=self._device)

    def _upload(self, target: torch.Tensor, source: NDArray[Any]) -> None:
        target.view(torch.uint8).copy_(_as_bytes(source), non_blocking=True)

    def _device_copy(self, source: NDArray[Any]) -> torch.Tensor:
        return _as_bytes(source).to(self._device, non_blocking=True)


def _blank_image(shape: KvShape) -> CodesImage:
    """Return zeros that land, with one exact token: no kernel is left out."""
    planes, channels = shape.planes, shape.channels
    codes = np.zeros((planes, shape.tokens, channels), np.int8)
    steps, means = np.zeros(planes, np.float32), np.zeros((planes, channels), np.uint16)
    rows = np.zeros((1, planes, channels), bits_dtype(shape.dtype))
    return CodesImage(codes, steps, means, np.zeros(1, np.uint16), rows)


def _as_bytes(source: NDArray[Any]) -> torch.Tensor:
    """Return the array's memory as a tensor of bytes, to be read only: landed images are read-only views."""
    flat = np.ascontiguousarray(source).reshape(-1).view(np.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(flat)

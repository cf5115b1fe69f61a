"""Ways in which restored KV gets into an engine's paged cache on a GPU: ours, the paper's, and decoding on the GPU.

Each lands one chunk at a time from pinned host memory, which stands for what a card writes by DMA, on streams of the
lowest priority, and returns when the chunk is in the cache.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage
from shadowserve_dataplane.connector.layouts import EngineLayout, PagedKv
from shadowserve_dataplane.connector.paged_copy import BlockSpan
from shadowserve_dataplane.connector.scatter_cuda import CudaPagedCopy

CHUNK = KvShape(layers=32, kv_heads=8, head_dim=128, dtype=KvDtype.BFLOAT16, tokens=256)
BLOCK_TOKENS = 16
CACHE_CHUNKS = 24
BALANCED_STEP = 0.35
NVCOMP = "nvidia-nvcomp-cu13==6.0.0.12"
_IMAGES = 6
"""So many different chunks lie in host memory, so that no cache holds what the bus should carry."""


class Landing(Protocol):
    """One way to land chunks."""

    name: str
    encoded_bytes: int
    """Bytes of one chunk that cross the bus."""

    def land(self, number: int) -> None:
        """Bring chunk `number` into the cache; returns when it is there."""


def paged_cache() -> PagedKv:
    """Return an empty paged cache of `CACHE_CHUNKS` chunks."""
    blocks = CACHE_CHUNKS * CHUNK.tokens // BLOCK_TOKENS
    size = (blocks, CHUNK.kv_heads, BLOCK_TOKENS, 2 * CHUNK.head_dim)
    layers = tuple(torch.zeros(size, dtype=torch.bfloat16, device="cuda") for _ in range(CHUNK.layers))
    return PagedKv(layers, CHUNK, BLOCK_TOKENS, EngineLayout.STRIDED)


def block_span(number: int) -> BlockSpan:
    """Return the blocks of the cache that chunk `number` takes."""
    blocks = CHUNK.tokens // BLOCK_TOKENS
    first = number % CACHE_CHUNKS * blocks
    return BlockSpan(tuple(range(first, first + blocks)))


def gaussian_codes(seed: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return codes as the default tier makes them of normal values: about 3.6 bits of entropy each."""
    size = (CHUNK.planes, CHUNK.tokens, CHUNK.channels)
    values = np.random.default_rng(seed).standard_normal(size, np.float32) / BALANCED_STEP
    return np.rint(values).clip(-127, 127).astype(np.int8)


def codes_image(memory: "torch.Tensor") -> CodesImage:
    """Return an image without exact rows whose codes lie in `memory` (pinned, uint8)."""
    size = (CHUNK.planes, CHUNK.tokens, CHUNK.channels)
    return CodesImage(
        codes=memory.numpy().view(np.int8).reshape(size),
        steps=np.full(CHUNK.planes, BALANCED_STEP, np.float32),
        means=np.zeros((CHUNK.planes, CHUNK.channels), np.uint16),
        exact_tokens=np.zeros(0, np.uint16),
        exact_rows=np.zeros((0, CHUNK.planes, CHUNK.channels), np.uint16),
    )


def _pinned(source: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(source.reshape(-1).view(np.uint8)).pin_memory()


class Ours:
    """Codes land, and are dequantized while they are scattered."""

    name = "ours"
    encoded_bytes = CHUNK.elements

    def __init__(self, paged: PagedKv) -> None:
        self._copies = CudaPagedCopy(paged)
        self._memory = torch.cat([torch.from_numpy(gaussian_codes(seed).reshape(-1)) for seed in range(_IMAGES)])
        self._copies.adopt(memoryview(self._memory.numpy()))
        self._images = [codes_image(part.view(torch.uint8)) for part in self._memory.chunk(_IMAGES)]
        self._copies.prepare()

    def land(self, number: int) -> None:
        """Scatter the chunk's codes."""
        self._copies.scatter(self._images[number % _IMAGES], block_span(number))


class PlainScatter:
    """The paper's design: finished bf16 values land in a contiguous device buffer, a kernel scatters them."""

    name = "plain bf16 scatter"
    encoded_bytes = CHUNK.values_bytes

    def __init__(self, paged: PagedKv) -> None:
        self._copies = CudaPagedCopy(paged)
        size = (CHUNK.planes, CHUNK.tokens, CHUNK.channels)
        rng = np.random.default_rng(1)
        pinned = [_pinned(rng.integers(0, 60000, size, np.uint16)) for _ in range(_IMAGES)]
        self._images = [ValuesImage(part.numpy().view(np.uint16).reshape(size)) for part in pinned]
        self._kept = pinned
        self._copies.prepare()

    def land(self, number: int) -> None:
        """Copy the chunk's values to the device and scatter them."""
        self._copies.scatter(self._images[number % _IMAGES], block_span(number))


def _nvcomp() -> Any:
    try:
        from nvidia import nvcomp
    except ImportError as error:
        raise SystemExit(f"GPU codecs need nvCOMP: pip install {NVCOMP}; or leave them out: --codecs ''") from error
    return nvcomp


@dataclass(slots=True)
class _Encoded:
    pinned: torch.Tensor
    device: torch.Tensor


class GpuCodec:
    """Compressed codes cross the bus and are decompressed on the GPU by nvCOMP, then dequantized in the scatter."""

    def __init__(self, paged: PagedKv, algorithm: str) -> None:
        nvcomp = _nvcomp()
        self.name = f"nvCOMP {algorithm}"
        self._nvcomp = nvcomp
        self._copies = CudaPagedCopy(paged)
        self._stream = torch.cuda.Stream(priority=torch.cuda.Stream.priority_range()[0])
        self._codec = nvcomp.Codec(
            algorithm=algorithm, uncomp_chunk_size=1 << 16, cuda_stream=self._stream.cuda_stream, device_id=0
        )
        self._codes = torch.empty(CHUNK.elements, dtype=torch.uint8, device="cuda")
        self._steps = torch.full((CHUNK.planes,), BALANCED_STEP, device="cuda")
        self._means = torch.zeros(CHUNK.planes * CHUNK.channels, dtype=torch.bfloat16, device="cuda")
        self._encoded = [self._encode(gaussian_codes(seed)) for seed in range(_IMAGES)]
        self.encoded_bytes = self._encoded[0].pinned.numel()
        self._check()
        self._copies.prepare()

    def land(self, number: int) -> None:
        """Copy the compressed codes to the device, decompress and scatter them."""
        codes = self._decode(number).view(torch.int8)
        with torch.cuda.stream(self._stream):
            self._copies.scatter_codes(codes, self._steps, self._means, block_span(number))
        self._stream.synchronize()

    def _encode(self, codes: np.ndarray[Any, np.dtype[np.int8]]) -> _Encoded:
        source = torch.from_numpy(codes.reshape(-1).view(np.uint8)).cuda()
        torch.cuda.synchronize()
        encoded = np.array(self._codec.encode(self._nvcomp.as_array(source)).cpu()).view(np.uint8).reshape(-1)
        pinned = torch.from_numpy(encoded).pin_memory()
        return _Encoded(pinned, pinned.cuda())

    def _decode(self, number: int) -> torch.Tensor:
        encoded = self._encoded[number % _IMAGES]
        with torch.cuda.stream(self._stream):
            encoded.device.copy_(encoded.pinned, non_blocking=True)
            self._codec.decode(self._nvcomp.as_array(encoded.device), out=self._codes)
        self._stream.synchronize()
        return self._codes

    def _check(self) -> None:
        found = self._decode(0).cpu().numpy().view(np.int8)
        if not np.array_equal(found.reshape(-1), gaussian_codes(0).reshape(-1)):
            raise RuntimeError(f"{self.name} does not give back what was encoded")

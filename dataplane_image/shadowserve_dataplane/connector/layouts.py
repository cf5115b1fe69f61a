"""How the engine keeps K and V in its paged cache, found by asking the engine's own kernel.

vLLM registers one tensor a layer, logically `[blocks, kv_heads, block_tokens, 2 * head_dim]`. Where a token's values
lie inside a block depends on the attention backend, so it is never assumed: the backend's own cache update writes
numbered tokens into a tiny cache with the same strides, and the result is compared with the layouts known here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.plan import Geometry

CacheUpdate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""The engine's own kernel: `update(key, value, cache, slot_mapping)`, key and value `[tokens, kv_heads, head_dim]`."""

Numbering = Callable[[int, int, int], int]
"""Number of a value, from its token, head and dim."""

_PROBE_LIMIT = 128
"""Values of a probe stay below this: exact in bfloat16."""


class EngineLayout(StrEnum):
    """The layouts that chunks can be scattered into and gathered from.

    STRIDED: `cache[block, head, token]` is K then V of that token, whatever the strides (GPU backends).
    K_TRANSPOSED: inside one (block, head), first K as `[head_dim][token]`, then V as `[token][head_dim]` (vLLM on CPU).
    """

    STRIDED = "strided"
    K_TRANSPOSED = "k-transposed"


@dataclass(frozen=True, slots=True)
class PagedKv:
    """The engine's paged cache: tensors in layer order, each `[blocks, kv_heads, block_tokens, 2 * head_dim]`."""

    layers: tuple[torch.Tensor, ...]
    shape: KvShape
    block_tokens: int
    layout: EngineLayout

    @property
    def blocks_per_chunk(self) -> int:
        """Blocks that one chunk fills."""
        return self.shape.tokens // self.block_tokens


def paged_kv(
    caches: Mapping[str, torch.Tensor], attention: Mapping[str, Any], shape: KvShape, geometry: Geometry
) -> PagedKv:
    """Return the registered caches with their layout, asked of the attention layers' own kernel.

    `attention` are the engine's attention layers by name. Raises `ValueError` for a layout that is not known.
    """
    layers = in_layer_order(caches)
    check_tensors(layers, shape, geometry.block)
    layer = attention[min(caches, key=_layer_index)]
    update = getattr(layer.impl, "do_kv_cache_update", None)
    if update is None:
        raise ValueError("unknown KV cache layout: the attention backend cannot be asked; set --attention-backend")
    layout = detect_layout(layers[0], shape, lambda key, value, cache, slots: update(layer, key, value, cache, slots))
    return PagedKv(layers, shape, geometry.block, layout)


def _layer_index(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"(?<=\.)\d+(?=\.|$)", name))


def in_layer_order(caches: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the distinct cache tensors in layer order; layers that share another layer's cache count once."""
    ordered = sorted(caches, key=_layer_index)
    distinct = {caches[name].data_ptr(): caches[name] for name in reversed(ordered)}
    tensors = tuple(reversed(distinct.values()))
    if len({_layer_index(name) for name in ordered}) != len(ordered):
        raise ValueError("two attention layers have the same layer index: this model's KV cache cannot be chunked")
    return tensors


def check_tensors(layers: tuple[torch.Tensor, ...], shape: KvShape, block_tokens: int) -> None:
    """Raise `ValueError` when the registered tensors are not those the scheduler half announced."""
    expected = (shape.kv_heads, block_tokens, 2 * shape.head_dim)
    if len(layers) != shape.layers:
        raise ValueError(f"unknown KV cache layout: {len(layers)} tensors registered, {shape.layers} announced")
    for tensor in layers:
        if tensor.dim() != 4 or tuple(tensor.shape[1:]) != expected or str(tensor.dtype) != f"torch.{shape.dtype}":
            raise ValueError(
                f"unknown KV cache layout: {tuple(tensor.shape)} {tensor.dtype}, need [blocks, *{expected}] "
                f"{shape.dtype}; use an attention backend with the standard layout (--attention-backend)"
            )


def detect_layout(like: torch.Tensor, shape: KvShape, update: CacheUpdate) -> EngineLayout:
    """Return the layout that `update` writes into a cache with the strides of `like`; `ValueError` when unknown."""
    for layout in EngineLayout:
        if all(_agrees(layout, like, shape, update, number) for number in _NUMBERINGS):
            return layout
    raise ValueError(
        "unknown KV cache layout: the attention backend stores K and V neither by token nor with K transposed; "
        "choose another one with --attention-backend"
    )


def _agrees(layout: EngineLayout, like: torch.Tensor, shape: KvShape, update: CacheUpdate, number: Numbering) -> bool:
    block_tokens = like.shape[2]
    cache = _tiny_cache(like)
    key = _numbered(block_tokens, shape, number).to(like)
    value = _numbered(block_tokens, shape, lambda t, h, d: (number(t, h, d) + 1) % _PROBE_LIMIT).to(like)
    slots = torch.arange(block_tokens, 2 * block_tokens, dtype=torch.int64, device=like.device)
    update(key, value, cache, slots)
    found_key, found_value = block_views(cache[1], layout, shape.head_dim)
    return bool(torch.equal(found_key, key.transpose(0, 1)) and torch.equal(found_value, value.transpose(0, 1)))


_NUMBERINGS: tuple[Numbering, ...] = (
    lambda token, head, dim: token % _PROBE_LIMIT,
    lambda token, head, dim: (token // _PROBE_LIMIT + head) % _PROBE_LIMIT,
    lambda token, head, dim: dim % _PROBE_LIMIT,
    lambda token, head, dim: (dim // _PROBE_LIMIT + 7 * head) % _PROBE_LIMIT,
)


def _numbered(tokens: int, shape: KvShape, number: Numbering) -> torch.Tensor:
    values = [
        [[number(token, head, dim) for dim in range(shape.head_dim)] for head in range(shape.kv_heads)]
        for token in range(tokens)
    ]
    return torch.tensor(values, dtype=torch.float32)


def _tiny_cache(like: torch.Tensor) -> torch.Tensor:
    """Return two zeroed blocks with the strides of `like`, or with the order of its strides when they are huge."""
    if like.stride(0) <= 16 * like[0].numel():
        size = like.stride(0) + sum((n - 1) * s for n, s in zip(like.shape[1:], like.stride()[1:], strict=True)) + 1
        return torch.zeros(size, dtype=like.dtype, device=like.device).as_strided((2, *like.shape[1:]), like.stride())
    order = sorted(range(1, 4), key=lambda axis: -like.stride(axis))
    shape = [2, *(like.shape[axis] for axis in order)]
    return torch.zeros(shape, dtype=like.dtype, device=like.device).permute(0, *(order.index(a) + 1 for a in (1, 2, 3)))


def block_views(block: torch.Tensor, layout: EngineLayout, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V of one block `[kv_heads, block_tokens, 2 * head_dim]` as views `[kv_heads, tokens, head_dim]`."""
    if layout is EngineLayout.STRIDED:
        return block[..., :head_dim], block[..., head_dim:]
    heads, tokens, _ = block.shape
    halves = block.view(heads, 2, tokens * head_dim)
    return halves[:, 0].view(heads, head_dim, tokens).transpose(1, 2), halves[:, 1].view(heads, tokens, head_dim)

"""Compiled copies between canonical chunks and vLLM's CPU cache (K transposed inside a block).

numba is a requirement of vLLM; the kernels release the GIL and run single-threaded, in a background thread, about
four times as fast as the same copies in torch. Bits are moved as unsigned integers. One call moves a whole chunk, so
that the engine's own Python code is interrupted once, not once a layer.

`cache` is one flat view of the engine's memory and `layer_at` the offset of every layer in it (elements);
`geometry` is int64 `[block_stride, kv_heads, head_dim, block_tokens, first_block]`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Kernel = Callable[..., None]


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """`scatter_codes` (None: no compiled form for this dtype), `scatter_values` and `gather`; see `compile_kernels`."""

    scatter_codes: Kernel | None
    scatter_values: Kernel
    gather: Kernel


def compile_kernels(dtype: str) -> CpuKernels:
    """Return the kernels for a KV cache of `dtype`; they compile on first call. Raises `ImportError` without numba."""
    jit: Any = importlib.import_module("numba").njit(nogil=True, boundscheck=False)
    into = {"bfloat16": _into_bfloat16, "float32": _into_float32}.get(dtype)
    scatter_codes = None
    if into is not None:
        scatter_codes = jit(_scatter_codes(jit(into), jit(_transpose_bytes)))
    return CpuKernels(scatter_codes, jit(_scatter_values), jit(_gather))


def _into_bfloat16(value: Any) -> Any:
    """Return the bits of a float32 rounded to bfloat16, to nearest even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def _into_float32(value: Any) -> Any:
    return np.float32(value).view(np.uint32)


def _transpose_bytes(source: Any, target: Any) -> None:
    """Transpose bytes: words uint64 `[tokens][channels / 8]` into `[channels][tokens / 8]`, 8 x 8 bytes at a time.

    The byte, pair and quad swaps of Warren, Hacker's Delight, 7-3.
    """
    bytes_low, pairs_low = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
    quads_low = np.uint64(0x00000000FFFFFFFF)
    one, two, four = np.uint64(8), np.uint64(16), np.uint64(32)
    tokens, words = source.shape
    for token in range(0, tokens, 8):
        column = token // 8
        for word in range(words):
            a0, a1 = source[token, word], source[token + 1, word]
            a2, a3 = source[token + 2, word], source[token + 3, word]
            a4, a5 = source[token + 4, word], source[token + 5, word]
            a6, a7 = source[token + 6, word], source[token + 7, word]
            b0, b1 = (a0 & bytes_low) | ((a1 & bytes_low) << one), ((a0 >> one) & bytes_low) | (a1 & ~bytes_low)
            b2, b3 = (a2 & bytes_low) | ((a3 & bytes_low) << one), ((a2 >> one) & bytes_low) | (a3 & ~bytes_low)
            b4, b5 = (a4 & bytes_low) | ((a5 & bytes_low) << one), ((a4 >> one) & bytes_low) | (a5 & ~bytes_low)
            b6, b7 = (a6 & bytes_low) | ((a7 & bytes_low) << one), ((a6 >> one) & bytes_low) | (a7 & ~bytes_low)
            c0, c2 = (b0 & pairs_low) | ((b2 & pairs_low) << two), ((b0 >> two) & pairs_low) | (b2 & ~pairs_low)
            c1, c3 = (b1 & pairs_low) | ((b3 & pairs_low) << two), ((b1 >> two) & pairs_low) | (b3 & ~pairs_low)
            c4, c6 = (b4 & pairs_low) | ((b6 & pairs_low) << two), ((b4 >> two) & pairs_low) | (b6 & ~pairs_low)
            c5, c7 = (b5 & pairs_low) | ((b7 & pairs_low) << two), ((b5 >> two) & pairs_low) | (b7 & ~pairs_low)
            row = 8 * word
            target[row, column] = (c0 & quads_low) | (c4 << four)
            target[row + 1, column] = (c1 & quads_low) | (c5 << four)
            target[row + 2, column] = (c2 & quads_low) | (c6 << four)
            target[row + 3, column] = (c3 & quads_low) | (c7 << four)
            target[row + 4, column] = (c0 >> four) | (c4 & ~quads_low)
            target[row + 5, column] = (c1 >> four) | (c5 & ~quads_low)
            target[row + 6, column] = (c2 >> four) | (c6 & ~quads_low)
            target[row + 7, column] = (c3 >> four) | (c7 & ~quads_low)


def _scatter_codes(into: Any, transpose: Any) -> Kernel:
    """Return the kernel `(image, cache, layer_at, blocks, geometry, scratch)`.

    `image` is `(codes, codes as uint64, steps, means)`; `scratch` int8 `[channels][tokens]`, as it is and as uint64.
    """

    def scatter_codes(image: Any, cache: Any, layer_at: Any, blocks: Any, geometry: Any, scratch: Any) -> None:
        codes, words, steps, means = image
        turned, turned_words = scratch
        stride, heads, dims, tokens, first = geometry[0], geometry[1], geometry[2], geometry[3], geometry[4]
        half = tokens * dims
        for layer in range(layer_at.size):
            transpose(words[2 * layer], turned_words)
            for index in range(blocks.size):
                block_at = layer_at[layer] + blocks[index] * stride
                token_at = (first + index) * tokens
                for head in range(heads):
                    key_at = block_at + head * 2 * half
                    step = steps[2 * layer]
                    for dim in range(dims):
                        channel = head * dims + dim
                        mean = np.uint32(np.uint32(means[2 * layer, channel]) << np.uint32(16)).view(np.float32)
                        row = turned[channel, token_at : token_at + tokens]
                        out = cache[key_at + dim * tokens : key_at + (dim + 1) * tokens]
                        for token in range(tokens):
                            out[token] = into(mean + step * np.float32(row[token]))
                    value_at = key_at + half
                    step = steps[2 * layer + 1]
                    offsets = means[2 * layer + 1, head * dims : (head + 1) * dims]
                    for token in range(tokens):
                        row = codes[2 * layer + 1, token_at + token, head * dims : (head + 1) * dims]
                        out = cache[value_at + token * dims : value_at + (token + 1) * dims]
                        for dim in range(dims):
                            mean = np.uint32(np.uint32(offsets[dim]) << np.uint32(16)).view(np.float32)
                            out[dim] = into(mean + step * np.float32(row[dim]))

    return scatter_codes


def _scatter_values(values: Any, cache: Any, layer_at: Any, blocks: Any, geometry: Any) -> None:
    """Copy canonical bits `[planes][tokens][channels]` into the blocks."""
    stride, heads, dims, tokens, first = geometry[0], geometry[1], geometry[2], geometry[3], geometry[4]
    half = tokens * dims
    for layer in range(layer_at.size):
        for index in range(blocks.size):
            block_at = layer_at[layer] + blocks[index] * stride
            token_at = (first + index) * tokens
            for head in range(heads):
                key_at = block_at + head * 2 * half
                for tile in range(0, tokens, 32):
                    for dim in range(dims):
                        out = cache[key_at + dim * tokens + tile : key_at + dim * tokens + tile + 32]
                        for token in range(32):
                            out[token] = values[2 * layer, token_at + tile + token, head * dims + dim]
                for token in range(tokens):
                    out = cache[key_at + half + token * dims : key_at + half + (token + 1) * dims]
                    row = values[2 * layer + 1, token_at + token, head * dims : (head + 1) * dims]
                    for dim in range(dims):
                        out[dim] = row[dim]


def _gather(values: Any, cache: Any, layer_at: Any, blocks: Any, geometry: Any) -> None:
    """Copy blocks into canonical bits `[planes][tokens][channels]`: the inverse of `_scatter_values`."""
    stride, heads, dims, tokens, first = geometry[0], geometry[1], geometry[2], geometry[3], geometry[4]
    half = tokens * dims
    for layer in range(layer_at.size):
        for index in range(blocks.size):
            block_at = layer_at[layer] + blocks[index] * stride
            token_at = (first + index) * tokens
            for head in range(heads):
                key_at = block_at + head * 2 * half
                for tile in range(0, dims, 32):
                    for token in range(tokens):
                        row = values[2 * layer, token_at + token, head * dims + tile : head * dims + tile + 32]
                        for dim in range(row.size):
                            row[dim] = cache[key_at + (tile + dim) * tokens + token]
                for token in range(tokens):
                    out = cache[key_at + half + token * dims : key_at + half + (token + 1) * dims]
                    row = values[2 * layer + 1, token_at + token, head * dims : (head + 1) * dims]
                    for dim in range(dims):
                        row[dim] = out[dim]

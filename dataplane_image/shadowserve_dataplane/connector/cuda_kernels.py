"""Triton kernels between canonical chunks in device memory and the engine's paged cache (`EngineLayout.STRIDED`).

One program moves `TILE` tokens of one plane, or of both planes of a layer. `layers` holds the address of every layer's
cache tensor; all layers have the same strides (elements): block, head, token, dim. `geometry` of a call: `token` 0 of
the destination span is token `first * block_tokens` of the chunk, and `blocks[i]` is the engine block of the span's
i-th block.
"""

import triton
import triton.language as tl

TILE = 8
"""Tokens that a program moves: small, so that it ends soon when a decode step waits for its place."""


@triton.jit
def _cache_offsets(  # type: ignore[no-untyped-def]
    blocks, tokens, columns, plane, stride_block, stride_head, stride_token, stride_dim, block_tokens, head_dim
):
    """Return the offsets of a tile `[tokens][columns]` inside one layer's cache."""
    block = tl.load(blocks + tokens // block_tokens)
    dim = columns % head_dim + (plane % 2) * head_dim
    row = block * stride_block + (tokens % block_tokens) * stride_token
    return row[:, None] + ((columns // head_dim) * stride_head + dim * stride_dim)[None, :]


@triton.jit
def scatter_codes_kernel(  # type: ignore[no-untyped-def]
    codes,
    steps,
    means,
    layers,
    blocks,
    first_token,
    span_tokens,
    chunk_tokens,
    stride_block,
    stride_head,
    stride_token,
    stride_dim,
    block_tokens: tl.constexpr,
    head_dim: tl.constexpr,
    channels: tl.constexpr,
    columns_padded: tl.constexpr,
    tile: tl.constexpr,
    dtype: tl.constexpr,
):
    """Write `mean + step * code`, computed in float32 and rounded once to `dtype`; one program does K and V of a tile.

    What lands here is read and written once: it may leave the cache first.
    """
    layer = tl.program_id(0)
    tokens = tl.program_id(1) * tile + tl.arange(0, tile)
    columns = tl.arange(0, columns_padded)
    inside = (tokens < span_tokens)[:, None] & (columns < channels)[None, :]
    tokens = tl.minimum(tokens, span_tokens - 1)
    cache = tl.load(layers + layer).to(tl.pointer_type(dtype))
    for half in tl.static_range(2):
        plane = 2 * layer + half
        rows = (plane * chunk_tokens + first_token + tokens).to(tl.int64) * channels
        code = tl.load(codes + rows[:, None] + columns[None, :], inside, 0, eviction_policy="evict_first")
        mean = tl.load(means + plane * channels + columns, columns < channels, 0).to(tl.float32)
        value = code.to(tl.float32) * tl.load(steps + plane) + mean[None, :]
        offsets = _cache_offsets(
            blocks, tokens, columns, half, stride_block, stride_head, stride_token, stride_dim, block_tokens, head_dim
        )
        tl.store(cache + offsets, value.to(dtype), inside, eviction_policy="evict_first")


@triton.jit
def copy_bits_kernel(  # type: ignore[no-untyped-def]
    values,
    layers,
    blocks,
    first_token,
    span_tokens,
    chunk_tokens,
    stride_block,
    stride_head,
    stride_token,
    stride_dim,
    block_tokens: tl.constexpr,
    head_dim: tl.constexpr,
    channels: tl.constexpr,
    columns_padded: tl.constexpr,
    tile: tl.constexpr,
    dtype: tl.constexpr,
    into_cache: tl.constexpr,
):
    """Move values as they are: `[planes][chunk_tokens][channels]` into the cache, or out of it."""
    plane = tl.program_id(0)
    tokens = tl.program_id(1) * tile + tl.arange(0, tile)
    columns = tl.arange(0, columns_padded)
    inside = (tokens < span_tokens)[:, None] & (columns < channels)[None, :]
    tokens = tl.minimum(tokens, span_tokens - 1)
    rows = (plane * chunk_tokens + first_token + tokens).to(tl.int64) * channels
    outside_cache = values + rows[:, None] + columns[None, :]
    cache = tl.load(layers + plane // 2).to(tl.pointer_type(dtype))
    offsets = _cache_offsets(
        blocks, tokens, columns, plane, stride_block, stride_head, stride_token, stride_dim, block_tokens, head_dim
    )
    if into_cache:
        tl.store(cache + offsets, tl.load(outside_cache, inside), inside)
    else:
        tl.store(outside_cache, tl.load(cache + offsets, inside), inside)


@triton.jit
def exact_rows_kernel(  # type: ignore[no-untyped-def]
    rows,
    tokens_of_rows,
    layers,
    blocks,
    first_token,
    span_tokens,
    planes,
    stride_block,
    stride_head,
    stride_token,
    stride_dim,
    block_tokens: tl.constexpr,
    head_dim: tl.constexpr,
    channels: tl.constexpr,
    columns_padded: tl.constexpr,
    dtype: tl.constexpr,
):
    """Write row `[n][planes][channels]` over its token, if the span has that token."""
    plane, row = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, columns_padded)
    token = tl.load(tokens_of_rows + row) - first_token
    if (token >= 0) & (token < span_tokens):
        cache = tl.load(layers + plane // 2).to(tl.pointer_type(dtype))
        block = tl.load(blocks + token // block_tokens)
        dim = columns % head_dim + (plane % 2) * head_dim
        at = block * stride_block + (token % block_tokens) * stride_token
        offsets = at + (columns // head_dim) * stride_head + dim * stride_dim
        source = rows + (row * planes + plane).to(tl.int64) * channels + columns
        tl.store(cache + offsets, tl.load(source, columns < channels), columns < channels)

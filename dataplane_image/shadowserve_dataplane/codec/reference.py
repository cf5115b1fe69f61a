"""The codec again, in the plainest numpy: what the fast paths are checked against. Nothing here is fast or in place."""

import numpy as np
import zstandard
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvDtype
from shadowserve_dataplane.codec.format import ChunkHeader, Entropy, FrameEntry, FrameKind, exact_positions_bytes
from shadowserve_dataplane.codec.quantize import MAX_CODE, Bits, bits_dtype, dequantized, from_bfloat16_bits, narrow


def floats_of(bits: Bits, dtype: KvDtype) -> NDArray[np.float64]:
    """Return values, given as bits of `dtype`, as float64."""
    if dtype is KvDtype.BFLOAT16:
        return from_bfloat16_bits(bits.astype(np.uint16)).astype(np.float64)
    return bits.view(np.float16 if dtype is KvDtype.FLOAT16 else np.float32).astype(np.float64)


def quantized(values: NDArray[np.float64], step: np.float32, means: NDArray[np.uint16]) -> NDArray[np.int8]:
    """Return the codes of a plane `[tokens][channels]`: the nearest multiple of the step, from the channel's mean."""
    centred = (values - from_bfloat16_bits(means)).astype(np.float32)
    nearest: NDArray[np.float32] = np.rint(centred * (np.float32(1) / step))
    return np.clip(nearest, -MAX_CODE, MAX_CODE).astype(np.int8)


def unpacked(chunk: bytes, frame: FrameEntry) -> bytes:
    """Return the raw bytes of a frame."""
    encoded = chunk[frame.offset : frame.offset + frame.encoded_bytes]
    if frame.entropy is Entropy.RAW:
        return encoded
    return zstandard.ZstdDecompressor().stream_reader(encoded, read_across_frames=True).read()


def parameters(chunk: bytes, header: ChunkHeader) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Return the steps `[planes]` and the means, bfloat16 bits `[planes][channels]`, of a lossy chunk."""
    raw, shape = unpacked(chunk, header.frames[0]), header.shape
    steps = np.frombuffer(raw, np.float32, shape.planes)
    return steps, np.frombuffer(raw, np.uint16, offset=steps.nbytes).reshape(shape.planes, shape.channels)


def exact_rows(chunk: bytes, header: ChunkHeader) -> tuple[list[int], Bits]:
    """Return the tokens that are kept as they are, and their values as bits `[rows][planes][channels]`."""
    shape, count = header.shape, header.exact_rows
    frame = next((frame for frame in header.frames if frame.kind is FrameKind.EXACT), None)
    raw = b"" if frame is None else unpacked(chunk, frame)
    rows: Bits = np.frombuffer(raw[exact_positions_bytes(count) :], bits_dtype(shape.dtype))
    return np.frombuffer(raw, np.uint16, count).tolist(), rows.reshape(count, shape.planes, shape.channels)


def codes(chunk: bytes, header: ChunkHeader) -> NDArray[np.int8]:
    """Return the codes `[planes][tokens][channels]` of a lossy chunk."""
    shape = header.shape
    raw = b"".join(unpacked(chunk, frame) for frame in header.frames if frame.kind is FrameKind.CODES)
    return np.frombuffer(raw, np.int8).reshape(shape.planes, shape.tokens, shape.channels)


def decoded(chunk: bytes, header: ChunkHeader) -> Bits:
    """Return the chunk's values as bits of its dtype, `[planes][tokens][channels]`."""
    shape = header.shape
    if header.lossless:
        by_byte = [np.frombuffer(unpacked(chunk, f), np.uint8).reshape(shape.dtype.itemsize, -1) for f in header.frames]
        values: NDArray[np.uint8] = np.concatenate([np.ascontiguousarray(planes.T).reshape(-1) for planes in by_byte])
        lossless: Bits = values.view(bits_dtype(shape.dtype))
        return lossless.reshape(shape.planes, shape.tokens, shape.channels)
    steps, means = parameters(chunk, header)
    planes = [dequantized(*of_plane) for of_plane in zip(codes(chunk, header), steps, means, strict=True)]
    bits = narrow(np.stack(planes), shape.dtype)
    tokens, rows = exact_rows(chunk, header)
    bits[:, tokens] = rows.transpose(1, 0, 2)
    return bits

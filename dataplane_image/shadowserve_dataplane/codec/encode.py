"""The encoder: canonical values of one chunk to its encoded bytes. numpy and zstd, on scratch that is made once."""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.codec.bytewise import BytePlanes
from shadowserve_dataplane.codec.entropy import frame_compressor
from shadowserve_dataplane.codec.format import (
    ChunkHeader,
    Entropy,
    FrameEntry,
    FrameKind,
    exact_positions_bytes,
    frames_of,
    header_bytes_of,
    max_encoded_bytes,
    pack_header,
    planes_per_frame,
)
from shadowserve_dataplane.codec.quantize import Bits, ChunkQuantizer, bits_dtype
from shadowserve_dataplane.codec.tiers import Tier

Buffer = bytes | memoryview


class Encoder:
    """Encodes chunks of one shape and tier, one after the other; not thread-safe."""

    def __init__(self, shape: KvShape, tier: Tier) -> None:
        self.shape = shape
        self.tier = tier
        self._out = memoryview(bytearray(max_encoded_bytes(shape)))
        self._compressor = frame_compressor()
        self._quantizer = None if tier is Tier.LOSSLESS else ChunkQuantizer(shape, tier)
        self._bytewise = BytePlanes(planes_per_frame(shape) * shape.plane_elements, shape.dtype)

    @staticmethod
    def max_encoded_bytes(shape: KvShape) -> int:
        """Return a bound on the size of any chunk of this shape, whatever its tier."""
        return max_encoded_bytes(shape)

    def encode(self, values: memoryview, key: ChunkKey, begins_context: bool) -> memoryview:
        """Return the chunk, valid until the next call. `values` are canonical, `shape.values_bytes` long.

        Raises `ValueError` when `values` is not that long; when a lossy tier meets NaN or infinity, naming the plane.
        """
        shape = self.shape
        if values.nbytes != shape.values_bytes:
            raise ValueError(f"{values.nbytes} bytes of values; a chunk of this shape has {shape.values_bytes}")
        bits: Bits = np.frombuffer(values, bits_dtype(shape.dtype))
        planes: Bits = bits.reshape(shape.planes, shape.tokens, shape.channels)
        exact: Sequence[int] = ()
        if self._quantizer is not None:
            self._quantizer.quantize(planes, begins_context)
            exact = self._quantizer.exact
        wanted = frames_of(shape, self.tier, len(exact))
        start = at = header_bytes_of(len(wanted))
        entries = []
        for kind, first, count, _ in wanted:
            entry = self._frame(kind, first, planes[first : first + count], at)
            entries.append(entry)
            at += entry.encoded_bytes
        header = ChunkHeader(shape, key, self.tier, begins_context, len(exact), tuple(entries), start, at)
        pack_header(header, self._out)
        return self._out[:at]

    def _frame(self, kind: FrameKind, first: int, planes: Bits, at: int) -> FrameEntry:
        parts = self._raw(kind, first, planes)
        raw_bytes = sum(len(part) for part in parts)
        entropy, packed = Entropy.RAW, [self._compressor.compress(part) for part in parts]
        if sum(len(part) for part in packed) < raw_bytes:
            entropy, parts = Entropy.ZSTD, packed
        end = at
        for part in parts:
            self._out[end : end + len(part)] = part
            end += len(part)
        checksum = xxhash.xxh3_64_intdigest(self._out[at:end])
        return FrameEntry(kind, entropy, first, len(planes), raw_bytes, end - at, checksum, at)

    def _raw(self, kind: FrameKind, first: int, planes: Bits) -> Sequence[Buffer]:
        """Return the raw bytes of a frame, in the parts that are compressed one by one."""
        if kind is FrameKind.VALUES:
            return [plane.data for plane in self._bytewise.split(planes.reshape(-1))]
        quantizer = self._quantizer
        assert quantizer is not None, "a lossless chunk has only VALUES frames"
        if kind is FrameKind.CODES:
            return [quantizer.codes[first : first + len(planes)].reshape(-1).view(np.uint8).data]
        if kind is FrameKind.PARAMETERS:
            return [quantizer.steps.tobytes() + quantizer.means.tobytes()]
        return [_exact_block(quantizer.exact, planes)]


def _exact_block(tokens: Sequence[int], planes: Bits) -> bytes:
    positions = np.array(tokens, np.uint16).tobytes()
    padding = bytes(exact_positions_bytes(len(tokens)) - len(positions))
    rows: NDArray[np.unsignedinteger] = planes[:, list(tokens)].transpose(1, 0, 2)
    return positions + padding + rows.tobytes()

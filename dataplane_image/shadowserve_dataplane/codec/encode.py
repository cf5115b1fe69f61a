"""The encoder: canonical values of one chunk to its encoded bytes. numpy and zstd, on scratch that is made once."""

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.codec.entropy import frame_compressor
from shadowserve_dataplane.codec.format import (
    MAX_EXACT_ROWS,
    SINK_TOKENS,
    ChunkHeader,
    Entropy,
    FrameEntry,
    FrameKind,
    exact_positions_bytes,
    frames_of,
    header_bytes_of,
    max_encoded_bytes,
    pack_header,
)
from shadowserve_dataplane.codec.quantize import (
    MAX_CODE,
    Bits,
    PlaneScratch,
    as_bfloat16_bits,
    bits_dtype,
    from_bfloat16_bits,
    step_up,
    widen,
)
from shadowserve_dataplane.codec.tiers import Tier


@dataclass(slots=True)
class _Quantized:
    steps: NDArray[np.float32]
    means: NDArray[np.uint16]
    codes: NDArray[np.int8]
    exact: list[int]


class Encoder:
    """Encodes chunks of one shape and tier, one after the other; not thread-safe."""

    def __init__(self, shape: KvShape, tier: Tier) -> None:
        self.shape = shape
        self.tier = tier
        self._out = memoryview(bytearray(max_encoded_bytes(shape)))
        self._compressor = frame_compressor()
        self._scratch = PlaneScratch.of(shape.tokens, shape.channels)
        planes = 0 if tier is Tier.LOSSLESS else shape.planes
        self._quantized = _Quantized(
            steps=np.zeros(planes, np.float32),
            means=np.zeros((planes, shape.channels), np.uint16),
            codes=np.zeros((planes, shape.tokens, shape.channels), np.int8),
            exact=[],
        )

    @staticmethod
    def max_encoded_bytes(shape: KvShape) -> int:
        """Return a bound on the size of any chunk of this shape, whatever its tier."""
        return max_encoded_bytes(shape)

    def encode(self, values: memoryview, key: ChunkKey, begins_context: bool) -> memoryview:
        """Return the chunk, valid until the next call. `values` are canonical, `shape.values_bytes` long.

        Raises `ValueError` when a lossy tier meets NaN or infinity, naming the plane.
        """
        shape = self.shape
        bits: Bits = np.frombuffer(values, bits_dtype(shape.dtype), shape.elements)
        planes: Bits = bits.reshape(shape.planes, shape.tokens, shape.channels)
        if self.tier is not Tier.LOSSLESS:
            self._quantize(planes, begins_context)
        exact = [] if self.tier is Tier.LOSSLESS else self._quantized.exact
        wanted = frames_of(shape, self.tier, len(exact))
        start = at = header_bytes_of(len(wanted))
        entries = []
        for kind, first, count, _ in wanted:
            entry = self._frame(kind, first, count, planes, at)
            entries.append(entry)
            at += entry.encoded_bytes
        header = ChunkHeader(shape, key, self.tier, begins_context, len(exact), tuple(entries), start, at)
        pack_header(header, self._out)
        return self._out[:at]

    def _quantize(self, planes: Bits, begins_context: bool) -> None:
        sinks = min(SINK_TOKENS, self.shape.tokens) if begins_context else 0
        self._quantized.exact = list(range(sinks))
        for plane in range(self.shape.planes):
            widen(planes[plane], self.shape.dtype, self._scratch)
            self._quantize_plane(plane, sinks)
        self._quantized.exact.sort()

    def _quantize_plane(self, plane: int, sinks: int) -> None:
        quantized, x = self._quantized, self._scratch.floats
        body = x[sinks:]
        rows = max(1, body.shape[0])
        with np.errstate(all="ignore"):
            means = as_bfloat16_bits(np.add.reduce(body, axis=0) / np.float32(rows))
            np.subtract(x, from_bfloat16_bits(means), out=x)
            sigma = float(np.sqrt(np.dot(body.reshape(-1), body.reshape(-1)) / max(1, body.size)))
            if not np.isfinite(sigma):
                raise ValueError(f"plane {plane}: NaN or infinity cannot be quantised; tier Lossless keeps any value")
            step = self._step(body, sinks, step_up(sigma * self.tier.step_in_sigmas))
            np.multiply(x, np.float32(1) / step, out=x)
            np.rint(x, out=x)
            np.clip(x, -MAX_CODE, MAX_CODE, out=x)
            np.copyto(quantized.codes[plane], x, casting="unsafe")
        quantized.steps[plane], quantized.means[plane] = step, means

    def _step(self, body: NDArray[np.float32], sinks: int, step: np.float32) -> np.float32:
        """Return the step; tokens that it would clip become exact rows, or the step is widened if they are many."""
        if not body.size:
            return step
        furthest = max(float(body.max()), -float(body.min()))
        if furthest <= (MAX_CODE + 0.5) * float(step):
            return step
        clipped = np.flatnonzero(np.abs(body).max(axis=1) > (MAX_CODE + 0.5) * step) + sinks
        exact = sorted({*self._quantized.exact, *clipped.tolist()})
        if len(exact) > MAX_EXACT_ROWS:
            return step_up(furthest / MAX_CODE)
        self._quantized.exact = exact
        return step

    def _frame(self, kind: FrameKind, first: int, count: int, planes: Bits, at: int) -> FrameEntry:
        raw = self._raw(kind, planes[first : first + count], first)
        packed: bytes | memoryview = raw
        if kind in (FrameKind.CODES, FrameKind.VALUES):
            packed = self._compressor.compress(raw)
        entropy = Entropy.ZSTD if len(packed) < len(raw) else Entropy.RAW
        packed = packed if entropy is Entropy.ZSTD else raw
        self._out[at : at + len(packed)] = packed
        checksum = xxhash.xxh3_64_intdigest(self._out[at : at + len(packed)])
        return FrameEntry(kind, entropy, first, count, len(raw), len(packed), checksum, at)

    def _raw(self, kind: FrameKind, planes: Bits, first: int) -> memoryview:
        quantized = self._quantized
        if kind is FrameKind.CODES:
            return quantized.codes[first : first + len(planes)].reshape(-1).data.cast("B")
        if kind is FrameKind.VALUES:
            item = self.shape.dtype.itemsize
            by_byte = planes.reshape(-1).view(np.uint8).reshape(-1, item).T
            return np.ascontiguousarray(by_byte).reshape(-1).data
        if kind is FrameKind.PARAMETERS:
            return memoryview(quantized.steps.tobytes() + quantized.means.tobytes())
        positions = np.array(quantized.exact, np.uint16).tobytes()
        padding = bytes(exact_positions_bytes(len(quantized.exact)) - len(positions))
        rows = np.ascontiguousarray(planes[:, quantized.exact].transpose(1, 0, 2))
        return memoryview(positions + padding + rows.tobytes())

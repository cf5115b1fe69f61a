"""Frames of an encoded chunk to the bytes that land. One `FrameDecoder` a thread; nothing is allocated per frame."""

import time

import numpy as np
import xxhash
from numpy.typing import NDArray

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.codec.dequantize import PlaneDequantizer
from shadowserve_dataplane.codec.entropy import FrameInflater
from shadowserve_dataplane.codec.format import (
    MAX_EXACT_ROWS,
    ChunkHeader,
    Entropy,
    FrameEntry,
    FrameKind,
    exact_bytes,
    exact_positions_bytes,
    parameters_bytes,
    planes_per_frame,
)
from shadowserve_dataplane.codec.landed import ImageKind, LandedLayout
from shadowserve_dataplane.codec.quantize import Bits, bits_dtype
from shadowserve_dataplane.errors import ChunkDamaged


class FrameDecoder:
    """Decodes the frames of chunks of one shape, one chunk at a time."""

    def __init__(self, shape: KvShape) -> None:
        self._shape = shape
        self._inflater = FrameInflater()
        frame_elements = planes_per_frame(shape) * shape.plane_elements
        self._scratch = np.zeros(frame_elements * shape.dtype.itemsize, np.uint8)
        self._parameters = memoryview(bytearray(parameters_bytes(shape)))
        self._exact = memoryview(bytearray(exact_bytes(shape, MAX_EXACT_ROWS)))
        self._dequantizer = PlaneDequantizer(shape)

    def begin(self, header: ChunkHeader, layout: LandedLayout) -> "ChunkDecode":
        """Return the decode of one chunk; it ends any earlier one of this decoder."""
        return ChunkDecode(self, header, layout)

    def verified(self, number: int, frame: FrameEntry, encoded: memoryview) -> str:
        """Return the frame's name. Raises `ChunkDamaged` when its bytes are not those that were written."""
        place = f"frame {number} ({frame.kind.name})"
        found = xxhash.xxh3_64_intdigest(encoded)
        if found != frame.checksum:
            raise ChunkDamaged(f"{place}: checksum", frame.checksum, found)
        return place

    def unpack(self, frame: FrameEntry, encoded: memoryview, destination: memoryview, place: str) -> None:
        """Undo the entropy coding of `frame` into `destination`, `frame.raw_bytes` long."""
        if frame.entropy is Entropy.RAW:
            destination[:] = encoded
        else:
            self._inflater.inflate(encoded, destination, place)

    def interleave(self, frame: FrameEntry, encoded: memoryview, destination: memoryview, place: str) -> None:
        """Undo the byte planes of a VALUES frame into `destination`."""
        item = self._shape.dtype.itemsize
        by_byte = self._scratch[: frame.raw_bytes]
        self.unpack(frame, encoded, by_byte.data, place)
        values = np.frombuffer(destination, np.uint8).reshape(-1, item)
        for byte, plane in enumerate(by_byte.reshape(item, -1)):
            values[:, byte] = plane

    def keep(self, frame: FrameEntry, encoded: memoryview, place: str) -> None:
        """Keep a PARAMETERS or EXACT frame for the dequantisation of the frames that follow."""
        kept = self._parameters if frame.kind is FrameKind.PARAMETERS else self._exact
        self.unpack(frame, encoded, kept[: frame.raw_bytes], place)

    def dequantize(self, header: ChunkHeader, frame: FrameEntry, destination: memoryview) -> None:
        """Turn the codes in scratch into values in `destination`, exact rows included."""
        shape = self._shape
        steps = np.frombuffer(self._parameters, np.float32, shape.planes)
        means = np.frombuffer(self._parameters, np.uint16, offset=4 * shape.planes).reshape(shape.planes, -1)
        codes = self._scratch[: frame.raw_bytes].view(np.int8).reshape(frame.planes, shape.tokens, shape.channels)
        out = np.frombuffer(destination, bits_dtype(shape.dtype)).reshape(codes.shape)
        tokens, rows = self._exact_rows(header.exact_rows)
        for plane in range(frame.planes):
            number = frame.first_plane + plane
            self._dequantizer.plane(codes[plane], steps[number], means[number], out[plane])
            if header.exact_rows:
                out[plane, tokens] = rows[:, number]

    def _exact_rows(self, count: int) -> tuple[NDArray[np.uint16], Bits]:
        shape = self._shape
        tokens = np.frombuffer(self._exact, np.uint16, count)
        start = exact_positions_bytes(count)
        rows: Bits = np.frombuffer(self._exact, bits_dtype(shape.dtype), count * shape.planes * shape.channels, start)
        return tokens, rows.reshape(count, shape.planes, shape.channels)

    def check_exact(self, header: ChunkHeader, block: memoryview, place: str) -> None:
        """Raise `ChunkDamaged` when the exact rows name tokens that the chunk does not have."""
        tokens = np.frombuffer(block, np.uint16, header.exact_rows)
        if header.exact_rows and int(tokens.max()) >= self._shape.tokens:
            raise ChunkDamaged(f"{place}: token", f"below {self._shape.tokens}", f"{int(tokens.max())}")

    @property
    def scratch(self) -> memoryview:
        """One frame's codes."""
        return self._scratch.data


class ChunkDecode:
    """The decode of one chunk, frame by frame; PARAMETERS and EXACT come first in every chunk."""

    def __init__(self, decoder: FrameDecoder, header: ChunkHeader, layout: LandedLayout) -> None:
        self._decoder = decoder
        self._header = header
        self._layout = layout
        self.dequantize_seconds = 0.0

    def decode(self, number: int, encoded: memoryview, destination: memoryview | None) -> None:
        """Verify frame `number` and write what lands to `destination`.

        `destination` has the length that `layout.destination(frame)` says; None where that is None.
        Raises `ChunkDamaged` naming the frame.
        """
        frame, decoder = self._header.frames[number], self._decoder
        place = decoder.verified(number, frame, encoded)
        if destination is None:
            decoder.keep(frame, encoded, place)
            if frame.kind is FrameKind.EXACT:
                decoder.check_exact(self._header, decoder._exact, place)
        elif frame.kind is FrameKind.VALUES:
            decoder.interleave(frame, encoded, destination, place)
        elif frame.kind is FrameKind.CODES and self._layout.kind is ImageKind.VALUES:
            decoder.unpack(frame, encoded, decoder.scratch[: frame.raw_bytes], place)
            start = time.perf_counter()
            decoder.dequantize(self._header, frame, destination)
            self.dequantize_seconds += time.perf_counter() - start
        else:
            decoder.unpack(frame, encoded, destination, place)
            if frame.kind is FrameKind.EXACT:
                decoder.check_exact(self._header, destination, place)

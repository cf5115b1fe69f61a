"""Frames of an encoded chunk to the bytes that land. One `FrameDecoder` a thread; nothing is allocated per frame."""

import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xxhash

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.codec.bytewise import BytePlanes
from shadowserve_dataplane.codec.dequantize import dequantizer
from shadowserve_dataplane.codec.entropy import FrameInflater, is_one_frame
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

_DEQUANTIZED_BYTES = 800 * 1024
"""Codes that are dequantized at once, unless one frame has more: fewer calls, and still in the processor's cache."""
_INFINITE_FLOAT32 = 0x7F800000
_INFINITE_BFLOAT16 = 0x7F80
_NEGATIVE = 0x8000


class FrameDecoder:
    """What decoding a frame needs: contexts and scratch, for chunks of one shape, one chunk at a time."""

    def __init__(self, shape: KvShape) -> None:
        self._shape = shape
        self._inflater = FrameInflater()
        frame_elements = planes_per_frame(shape) * shape.plane_elements
        self.run_bytes = max(frame_elements, _DEQUANTIZED_BYTES // frame_elements * frame_elements)
        self._scratch = memoryview(bytearray(max(self.run_bytes, frame_elements * shape.dtype.itemsize)))
        self._kept = {
            FrameKind.PARAMETERS: memoryview(bytearray(parameters_bytes(shape))),
            FrameKind.EXACT: memoryview(bytearray(exact_bytes(shape, MAX_EXACT_ROWS))),
        }
        self._dequantizer = dequantizer(shape, self.run_bytes // shape.plane_elements)
        self._bytewise = BytePlanes(frame_elements, shape.dtype)

    def begin(self, header: ChunkHeader, layout: LandedLayout) -> "ChunkDecode":
        """Return the decode of one chunk; it ends any earlier one of this decoder."""
        return ChunkDecode(self, header, layout)

    def unpack(self, frame: FrameEntry, encoded: memoryview, destination: memoryview, place: str) -> None:
        """Undo the entropy coding of `frame` into `destination`, `frame.raw_bytes` long."""
        if frame.entropy is Entropy.RAW:
            destination[:] = encoded
        else:
            self._inflater.inflate(encoded, destination, place)

    def unpack_run(self, frames: Sequence[FrameEntry], encoded: memoryview, destination: memoryview) -> bool:
        """Verify CODES frames that follow one another, and unpack all of them at once into `destination`.

        Returns False, and has perhaps written something, when they have to be decoded one by one: one is broken, or is
        not exactly one zstd frame of the right length: one might otherwise end in the next, where nobody would see it.
        """
        at = 0
        for frame in frames:
            part = encoded[at : at + frame.encoded_bytes]
            if xxhash.xxh3_64_intdigest(part) != frame.checksum:
                return False
            if frame.entropy is Entropy.RAW or not is_one_frame(part, frame.raw_bytes):
                return False
            at += frame.encoded_bytes
        try:
            self._inflater.inflate(encoded, destination, "frames")
        except ChunkDamaged:
            return False
        return True

    def kept(self, frame: FrameEntry) -> memoryview:
        """Return where a PARAMETERS or EXACT frame is kept for the frames that it helps to dequantise."""
        return self._kept[frame.kind][: frame.raw_bytes]

    def join_bytes(self, frame: FrameEntry, encoded: memoryview, destination: memoryview, place: str) -> None:
        """Turn a VALUES frame into values in `destination`."""
        shape, by_byte = self._shape, self._scratch[: frame.raw_bytes]
        self.unpack(frame, encoded, by_byte, place)
        planes = np.frombuffer(by_byte, np.uint8).reshape(shape.dtype.itemsize, -1)
        self._bytewise.join(planes, np.frombuffer(destination, bits_dtype(shape.dtype)))

    def begin_dequantizing(self) -> None:
        """Take the chunk's parameters, which are kept."""
        shape, kept = self._shape, self._kept[FrameKind.PARAMETERS]
        steps = np.frombuffer(kept, np.float32, shape.planes)
        means = np.frombuffer(kept, np.uint16, offset=steps.nbytes).reshape(shape.planes, -1)
        self._dequantizer.begin(steps, means)

    def dequantize(self, header: ChunkHeader, frames: Sequence[FrameEntry], destination: memoryview) -> None:
        """Turn the codes in scratch, of frames that follow one another, into values, exact rows included."""
        shape = self._shape
        codes = np.frombuffer(self._scratch, np.int8, destination.nbytes // shape.dtype.itemsize)
        codes = codes.reshape(-1, shape.tokens, shape.channels)
        flat: Bits = np.frombuffer(destination, bits_dtype(shape.dtype))
        out: Bits = flat.reshape(codes.shape)
        first, end = frames[0].first_plane, frames[-1].first_plane + frames[-1].planes
        self._dequantizer.planes(codes, first, out)
        if header.exact_rows:
            tokens, rows = self._exact_rows(header.exact_rows)
            out[:, tokens] = rows[:, first:end].transpose(1, 0, 2)

    def _exact_rows(self, count: int) -> tuple[list[int], Bits]:
        shape, kept = self._shape, self._kept[FrameKind.EXACT]
        start, elements = exact_positions_bytes(count), count * shape.planes * shape.channels
        rows: Bits = np.frombuffer(kept, bits_dtype(shape.dtype), elements, start)
        return np.frombuffer(kept, np.uint16, count).tolist(), rows.reshape(count, shape.planes, shape.channels)

    @property
    def scratch(self) -> memoryview:
        """Codes that are to be dequantized."""
        return self._scratch


class ChunkDecode:
    """The decode of one chunk, frame by frame; PARAMETERS and EXACT come first in every chunk."""

    def __init__(self, decoder: FrameDecoder, header: ChunkHeader, layout: LandedLayout) -> None:
        self._decoder = decoder
        self._header = header
        self._layout = layout
        self.dequantize_seconds = 0.0

    def whole(self, number: int, available: int, piece_bytes: int) -> int:
        """Return the end of the frames from `number` on that can be decoded at once; `number` if that one cannot be.

        The first `available` bytes of the chunk are there. It is more than one frame only for codes, and then at most
        `piece_bytes` land of them.
        """
        frames = self._header.frames
        first = frames[number]
        if available < first.offset + first.encoded_bytes:
            return number
        end = number + 1
        if first.kind is not FrameKind.CODES:
            return end
        most, raw = self._run_bytes(piece_bytes), first.raw_bytes
        for frame in frames[end:]:
            raw += frame.raw_bytes
            if raw > most or available < frame.offset + frame.encoded_bytes:
                break
            end += 1
        return end

    def _run_bytes(self, piece_bytes: int) -> int:
        """Return how many codes are decoded at once."""
        if self._layout.kind is ImageKind.CODES:
            return piece_bytes
        return min(self._decoder.run_bytes, piece_bytes // self._header.shape.dtype.itemsize)

    def decode_run(self, number: int, end: int, encoded: memoryview, destination: memoryview | None) -> None:
        """Do what `decode` does for all frames from `number` to before `end`, which `whole` returned.

        `encoded` has these frames one after the other, and `destination` what lands of them.
        """
        if end - number == 1:
            self.decode(number, encoded, destination)
            return
        assert destination is not None, "only codes are decoded in runs"
        frames = self._header.frames[number:end]
        landing_codes = self._layout.kind is ImageKind.CODES
        codes = destination if landing_codes else self._decoder.scratch[: sum(frame.raw_bytes for frame in frames)]
        if not self._decoder.unpack_run(frames, encoded, codes):
            self._one_by_one(number, frames, encoded, destination)
        elif not landing_codes:
            self._dequantize(frames, destination)

    def _one_by_one(
        self, number: int, frames: Sequence[FrameEntry], encoded: memoryview, destination: memoryview
    ) -> None:
        """Decode a run in which something is odd: names the frame that is broken."""
        begin = landed = 0
        for position, frame in enumerate(frames, number):
            part = encoded[begin : begin + frame.encoded_bytes]
            place = self._layout.destination(frame)
            assert place is not None, "codes always land"
            self.decode(position, part, destination[landed : landed + place[1]])
            begin, landed = begin + len(part), landed + place[1]

    def decode(self, number: int, encoded: memoryview, destination: memoryview | None) -> None:
        """Verify frame `number` and write what lands to `destination`.

        Frames are decoded in order. `destination` has the length that `layout.destination(frame)` says; None where that
        is None. Raises `ChunkDamaged` naming the frame.
        """
        frame, decoder = self._header.frames[number], self._decoder
        place = verified(number, frame, encoded)
        if frame.kind in (FrameKind.PARAMETERS, FrameKind.EXACT):
            raw = decoder.kept(frame) if destination is None else destination
            decoder.unpack(frame, encoded, raw, place)
            _check_aside(self._header, frame, raw, place)
            if frame.kind is FrameKind.PARAMETERS and destination is None:
                decoder.begin_dequantizing()
            return
        assert destination is not None, "codes and values always land"
        if frame.kind is FrameKind.VALUES:
            decoder.join_bytes(frame, encoded, destination, place)
        elif self._layout.kind is ImageKind.CODES:
            decoder.unpack(frame, encoded, destination, place)
        else:
            decoder.unpack(frame, encoded, decoder.scratch[: frame.raw_bytes], place)
            self._dequantize((frame,), destination)

    def _dequantize(self, frames: Sequence[FrameEntry], destination: memoryview) -> None:
        start = time.perf_counter()
        self._decoder.dequantize(self._header, frames, destination)
        self.dequantize_seconds += time.perf_counter() - start


def verified(number: int, frame: FrameEntry, encoded: memoryview) -> str:
    """Return the frame's name. Raises `ChunkDamaged` when its bytes are not those that were written."""
    place = _frame_name(number, frame.kind)
    found = xxhash.xxh3_64_intdigest(encoded)
    if found != frame.checksum:
        raise ChunkDamaged(f"{place}: checksum", frame.checksum, found)
    return place


@lru_cache(maxsize=1024)
def _frame_name(number: int, kind: FrameKind) -> str:
    return f"frame {number} ({kind.name})"


def _check_aside(header: ChunkHeader, frame: FrameEntry, raw: memoryview, place: str) -> None:
    if frame.kind is FrameKind.PARAMETERS:
        _check_parameters(header.shape, raw, place)
    else:
        _check_exact_tokens(header, raw, place)


def _check_parameters(shape: KvShape, raw: memoryview, place: str) -> None:
    """Raise `ChunkDamaged` unless every step is positive, finite and short, and every mean finite.

    Few calls, for this runs for every chunk: as integers, steps are in order, and so are means of one sign.
    """
    own = raw[: 4 * shape.planes]
    bits = own.cast("I").tolist()
    if not (min(bits) > 0 and max(bits) < _INFINITE_FLOAT32 and own[::4].tobytes().count(0) == shape.planes):
        raise ChunkDamaged(f"{place}: steps", "positive and finite, 16 significant bits", "others")
    means = np.frombuffer(raw, np.uint16, offset=len(own))
    signed = np.maximum.reduce(means.view(np.int16))
    if signed >= _INFINITE_BFLOAT16 or np.maximum.reduce(means) >= _NEGATIVE + _INFINITE_BFLOAT16:
        raise ChunkDamaged(f"{place}: means", "finite", "NaN or infinity")


def _check_exact_tokens(header: ChunkHeader, raw: memoryview, place: str) -> None:
    """Raise `ChunkDamaged` unless the exact rows name tokens that the chunk has, each once, ascending."""
    tokens = np.frombuffer(raw, np.uint16, header.exact_rows).tolist()
    if tokens != sorted(set(tokens)) or tokens[-1] >= header.shape.tokens:
        raise ChunkDamaged(f"{place}: tokens", f"ascending, below {header.shape.tokens}", f"{tokens}")

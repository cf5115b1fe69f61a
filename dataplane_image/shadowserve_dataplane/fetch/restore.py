"""Restores chunks as their bytes arrive: the sink of one worker's bulk reads.

As soon as a frame is whole it is verified, decompressed (and dequantized) into memory that the placement gave, and
placed, together with those behind it that are whole as well and that the placement takes at once. With shared memory
that memory is the landing slot itself: no copy.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.codec.decode import ChunkDecode, FrameDecoder
from shadowserve_dataplane.codec.format import (
    PREFIX_BYTES,
    ChunkHeader,
    Expected,
    Limits,
    header_length,
    parse_header,
)
from shadowserve_dataplane.codec.landed import HEADER_BYTES, LandedLayout
from shadowserve_dataplane.errors import ChunkDamaged, ChunkOutcome, ShadowServeError
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult, StageSeconds, outcome_of
from shadowserve_dataplane.place.base import Placement

_log = logging.getLogger(__name__)
Report = Callable[[ChunkResult], None]


@dataclass(slots=True)
class _Open:
    """What is known of a chunk once its header was read."""

    header: ChunkHeader
    layout: LandedLayout
    decoder: FrameDecoder
    decode: ChunkDecode


@dataclass(slots=True)
class _Progress:
    """One chunk on its way."""

    request: ChunkRequest
    size: int = 0
    began: float = 0.0
    next_frame: int = 0
    placed_bytes: int = 0
    placing: bool = False
    opened: _Open | None = None
    stages: StageSeconds = field(default_factory=StageSeconds)


class DecoderShelf:
    """Frame decoders of one thread, kept for the next chunk of the same shape."""

    def __init__(self) -> None:
        self._free: dict[KvShape, list[FrameDecoder]] = {}

    def take(self, shape: KvShape) -> FrameDecoder:
        """Return an unused decoder for `shape`."""
        free = self._free.get(shape)
        return free.pop() if free else FrameDecoder(shape)

    def put_back(self, shape: KvShape, decoder: FrameDecoder) -> None:
        """Keep a decoder for later; decoders of other shapes are let go, so that memory stays bounded."""
        if shape not in self._free:
            self._free = {shape: []}
        self._free[shape].append(decoder)


class ChunkRestorer:
    """A `ChunkSink` for the chunks of one job that one worker reads."""

    def __init__(
        self, job: FetchJob, placement: Placement, shelf: DecoderShelf, limits: Limits, report: Report
    ) -> None:
        self._job = job
        self._placement = placement
        self._shelf = shelf
        self._limits = limits
        self._report = report
        self._progress: dict[int, _Progress] = {}

    def expect(self, request: ChunkRequest) -> None:
        """Take note of a chunk that was asked for."""
        self._progress[request.index] = _Progress(request)

    def begin(self, index: int, size: int) -> None:
        """The store has it."""
        progress = self._progress[index]
        progress.size = size
        progress.began = time.perf_counter()

    def received(self, index: int, view: memoryview, available: int) -> None:
        """Restore every frame that is whole by now."""
        progress = self._progress[index]
        try:
            self._restore_whole_frames(progress, view, available)
        except Exception:
            self._abort(progress)  # at once: the rest of a damaged chunk may be long in coming, and the slot is held
            raise

    def _restore_whole_frames(self, progress: _Progress, view: memoryview, available: int) -> None:
        if progress.opened is None and not self._open(progress, view, available):
            return
        opened = progress.opened
        assert opened is not None
        number, frames, piece = progress.next_frame, opened.header.frames, self._placement.piece_bytes
        while number < len(frames):
            end = opened.decode.whole(number, available, piece)
            if end == number:
                return
            self._restore(progress, opened, view, end)
            number = progress.next_frame = end

    def complete(self, index: int) -> None:
        """All bytes came, so all frames are placed."""
        progress = self._progress[index]
        opened = progress.opened
        if opened is None:
            raise ChunkDamaged("chunk: length", "at least a whole header", f"{progress.size} bytes")
        progress.placing = True
        self._placement.finish(progress.request.ref, progress.placed_bytes)
        stages = progress.stages
        spent = stages.decompress + stages.dequantize + stages.place
        stages.receive = max(0.0, time.perf_counter() - progress.began - spent)
        self._end(progress, ChunkOutcome.LANDED, "")

    def missing(self, index: int) -> None:
        """The store has no such chunk (any more)."""
        self._end(self._progress[index], ChunkOutcome.MISSING, "the store does not have it")

    def failed(self, index: int, error: ShadowServeError) -> None:
        """It will not come."""
        progress = self._progress[index]
        self._abort(progress)
        self._end(progress, outcome_of(error, progress.placing), str(error))

    def fail_all(self, error: ShadowServeError) -> int:
        """Give up every chunk that has no result yet; return how many there were."""
        left = list(self._progress)
        for index in left:
            self.failed(index, error)
        return len(left)

    def _open(self, progress: _Progress, view: memoryview, available: int) -> bool:
        if available < PREFIX_BYTES or available < header_length(view[:available], self._limits):
            return False
        shape = self._job.shape
        expected = Expected(progress.request.key, shape)
        header = parse_header(view[:available], expected, self._limits, progress.size)
        layout = LandedLayout.of(header, self._job.mode)
        decoder = self._shelf.take(shape)
        progress.opened = _Open(header, layout, decoder, decoder.begin(header, layout))
        self._place_bytes(progress, layout.header())
        return True

    def _abort(self, progress: _Progress) -> None:
        try:
            self._placement.abort(progress.request.ref)
        except Exception:
            _log.exception("job %d: its placement cannot abort", self._job.job)

    def _place_bytes(self, progress: _Progress, data: bytes) -> None:
        ref = progress.request.ref
        progress.placing = True
        self._placement.reserve(ref, 0, HEADER_BYTES)[:] = data
        self._placement.commit(ref, 0, HEADER_BYTES)
        progress.placing = False
        progress.placed_bytes += HEADER_BYTES

    def _restore(self, progress: _Progress, opened: _Open, view: memoryview, end: int) -> None:
        """Restore the frames before `end`, all of which are whole."""
        ref, stages, decode, number = progress.request.ref, progress.stages, opened.decode, progress.next_frame
        frames = opened.header.frames[number:end]
        encoded = view[frames[0].offset : frames[-1].offset + frames[-1].encoded_bytes]
        place = opened.layout.span(frames)
        start = time.perf_counter()
        destination = None
        if place is not None:
            progress.placing = True
            destination = self._placement.reserve(ref, *place)
            progress.placing = False
        reserved = time.perf_counter()
        dequantizing = decode.dequantize_seconds
        decode.decode_run(number, end, encoded, destination)
        decoded = time.perf_counter()
        if place is not None:
            progress.placing = True
            self._placement.commit(ref, *place)
            progress.placing = False
            progress.placed_bytes += place[1]
        dequantizing = decode.dequantize_seconds - dequantizing
        stages.decompress += decoded - reserved - dequantizing
        stages.dequantize += dequantizing
        stages.place += time.perf_counter() - decoded + reserved - start

    def _end(self, progress: _Progress, outcome: ChunkOutcome, detail: str) -> None:
        request, opened = progress.request, progress.opened
        del self._progress[request.index]
        if opened is not None:
            self._shelf.put_back(self._job.shape, opened.decoder)
        landed = outcome is ChunkOutcome.LANDED
        self._report(
            ChunkResult(
                self._job.job,
                request.index,
                outcome,
                encoded_bytes=progress.size if landed else 0,
                values_bytes=self._job.shape.values_bytes if landed else 0,
                detail=detail,
                stages=progress.stages,
            )
        )

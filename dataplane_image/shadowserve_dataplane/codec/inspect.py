"""Explains an encoded chunk to people: `shadowserve chunk inspect FILE`."""

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.codec.decode import FrameDecoder
from shadowserve_dataplane.codec.format import ChunkHeader, Limits, parse_any_header
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.errors import ChunkDamaged, ChunkRefused

_MAX_IMAGE_BYTES = 1 << 30


def describe(chunk: bytes) -> str:
    """Return what the chunk says about itself, its frames, and whether it is whole; one line each."""
    view = memoryview(chunk)
    try:
        header = parse_any_header(view, Limits(), len(chunk))
    except (ChunkDamaged, ChunkRefused) as error:
        return f"not a chunk that can be read: {error}"
    return "\n".join([*_header_lines(header), *_frame_lines(header), _verdict(view, header)])


def _header_lines(header: ChunkHeader) -> list[str]:
    shape = header.shape
    ratio = shape.values_bytes / header.total_bytes
    begins = "begins a context" if header.begins_context else "continues a context"
    return [
        f"key {ChunkKey(header.key).hex()}, {begins}",
        f"tier {header.tier.label}, {shape.layers} layers, {shape.kv_heads} KV heads of {shape.head_dim}, "
        f"{shape.tokens} tokens, {shape.dtype}",
        f"{header.total_bytes} bytes for {shape.values_bytes} bytes of values ({ratio:.2f} : 1), "
        f"{header.exact_rows} exact rows",
    ]


def _frame_lines(header: ChunkHeader) -> list[str]:
    return [
        f"  frame {number} {frame.kind.name:<10} planes {frame.first_plane}-{frame.first_plane + frame.planes - 1}, "
        f"{frame.encoded_bytes} of {frame.raw_bytes} bytes at {frame.offset}, {frame.entropy.name.lower()}, "
        f"checksum {frame.checksum:016x}"
        for number, frame in enumerate(header.frames)
    ]


def _verdict(chunk: memoryview, header: ChunkHeader) -> str:
    needed = LandedLayout.max_bytes(header.shape)
    if needed > _MAX_IMAGE_BYTES:
        return f"header is whole; frames not checked: they would need {needed} bytes, more than {_MAX_IMAGE_BYTES}"
    layout = LandedLayout.of(header, LandingMode.CODES)
    image = memoryview(bytearray(layout.total_bytes))
    decode = FrameDecoder(header.shape).begin(header, layout)
    for number, frame in enumerate(header.frames):
        place = layout.destination(frame)
        destination = None if place is None else image[place[0] : sum(place)]
        try:
            decode.decode(number, chunk[frame.offset : frame.offset + frame.encoded_bytes], destination)
        except ChunkDamaged as error:
            return f"DAMAGED: {error.place}: expected {error.expected}, found {error.found}"
    return "whole: every checksum is right and every frame can be decoded"

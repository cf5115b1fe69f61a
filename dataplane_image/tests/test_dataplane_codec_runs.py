"""Frames of codes that are all there are decoded at once: the same bytes, and the same errors, as one by one."""

import struct
from collections.abc import Iterator

import pytest
import xxhash
import zstandard
from codec_samples import encode, land, parse, sample_values

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.codec.decode import FrameDecoder
from shadowserve_dataplane.codec.entropy import frame_compressor
from shadowserve_dataplane.codec.format import PREFIX_BYTES, Entropy, FrameKind
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.errors import ChunkDamaged

SHAPE = KvShape(layers=7, kv_heads=2, head_dim=64, tokens=256)
CHUNKS = {tier: encode(sample_values(SHAPE), SHAPE, tier, True) for tier in Tier}
EVERYTHING = 1 << 30
FRAME_BYTES = 6 * SHAPE.plane_elements


def runs(chunk: bytes, mode: LandingMode, steps: list[int], piece_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Restore the chunk as it arrives in these steps; yield how many frames each run had, and the image so far."""
    header = parse(chunk, SHAPE)
    layout = LandedLayout.of(header, mode)
    image = memoryview(bytearray(LandedLayout.max_bytes(SHAPE)))
    image[: len(layout.header())] = layout.header()
    decode, number = FrameDecoder(SHAPE).begin(header, layout), 0
    for available in steps:
        while number < len(header.frames) and (end := decode.whole(number, available, piece_bytes)) > number:
            frames = header.frames[number:end]
            place = layout.span(frames)
            encoded = memoryview(chunk)[frames[0].offset : frames[-1].offset + frames[-1].encoded_bytes]
            decode.decode_run(number, end, encoded, None if place is None else image[place[0] : sum(place)])
            yield end - number, image
            number = end


def forged(chunk: bytes, bodies: dict[int, bytes], entropy: Entropy = Entropy.ZSTD) -> bytes:
    """Return the chunk with the bytes of some frames replaced, sizes and checksums made right."""
    header = parse(chunk, SHAPE)
    parts = [bytes(chunk[frame.offset : frame.offset + frame.encoded_bytes]) for frame in header.frames]
    head = bytearray(chunk[: header.header_bytes])
    for number, body in bodies.items():
        entry = PREFIX_BYTES + 24 * number
        parts[number] = body
        head[entry + 1] = entropy
        struct.pack_into("<IQ", head, entry + 12, len(body), xxhash.xxh3_64_intdigest(body))
    struct.pack_into("<Q", head, 46, len(head) + sum(map(len, parts)))
    struct.pack_into("<Q", head, len(head) - 8, xxhash.xxh3_64_intdigest(bytes(head[:-8])))
    return bytes(head) + b"".join(parts)


def codes_of(chunk: bytes, number: int) -> bytes:
    """Return the codes of a frame."""
    frame = parse(chunk, SHAPE).frames[number]
    layout = LandedLayout.of(parse(chunk, SHAPE), LandingMode.CODES)
    place = layout.destination(frame)
    assert frame.kind is FrameKind.CODES
    assert place is not None
    return bytes(land(chunk, SHAPE, LandingMode.CODES)[place[0] : sum(place)])


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("mode", list(LandingMode))
def test_a_chunk_lands_the_same_however_it_arrives(tier: Tier, mode: LandingMode) -> None:
    chunk = CHUNKS[tier]
    expected = land(chunk, SHAPE, mode)
    for step in (len(chunk), 100_000, 7_001):
        steps = [*range(step, len(chunk), step), len(chunk)]
        for piece_bytes in (EVERYTHING, 2 * FRAME_BYTES, 1):
            *_, (_, image) = runs(chunk, mode, steps, piece_bytes)
            assert image == expected


def test_as_many_frames_are_decoded_at_once_as_are_there_and_may_be() -> None:
    chunk = CHUNKS[Tier.BALANCED]
    kinds = [frame.kind for frame in parse(chunk, SHAPE).frames]
    assert kinds == [FrameKind.PARAMETERS, FrameKind.EXACT, *[FrameKind.CODES] * 3]

    def lengths(mode: LandingMode, steps: list[int], piece_bytes: int) -> list[int]:
        return [length for length, _ in runs(chunk, mode, steps, piece_bytes)]

    assert lengths(LandingMode.CODES, [len(chunk)], EVERYTHING) == [1, 1, 3]
    assert lengths(LandingMode.CODES, [len(chunk) - 1, len(chunk)], EVERYTHING) == [1, 1, 2, 1]
    assert lengths(LandingMode.CODES, [len(chunk)], 2 * FRAME_BYTES) == [1, 1, 2, 1]
    assert lengths(LandingMode.CODES, [len(chunk)], 1) == [1] * 5
    assert lengths(LandingMode.VALUES, [len(chunk)], EVERYTHING) == [1, 1, 3]
    assert lengths(LandingMode.VALUES, [len(chunk)], 4 * FRAME_BYTES) == [1, 1, 2, 1]
    assert lengths(LandingMode.VALUES, [len(chunk)], 2 * FRAME_BYTES) == [1] * 5


def test_frames_that_others_may_write_are_taken_too() -> None:
    """A frame may be raw, or be several zstd frames in a row; both also between others."""
    chunk = CHUNKS[Tier.HIGH]
    codes, compressor = codes_of(chunk, 3), frame_compressor()
    halves = b"".join(compressor.compress(part) for part in (codes[:1000], codes[1000:]))
    for other in (forged(chunk, {3: halves}), forged(chunk, {3: codes}, Entropy.RAW)):
        for mode in LandingMode:
            *_, (_, image) = runs(other, mode, [len(other)], EVERYTHING)
            assert image == land(chunk, SHAPE, mode)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_broken_frame_of_a_run_is_named(number: int) -> None:
    chunk = CHUNKS[Tier.COMPACT]
    frame = parse(chunk, SHAPE).frames[number]
    flipped = bytearray(chunk)
    flipped[frame.offset + frame.encoded_bytes // 2] ^= 1
    broken = bytes(chunk[frame.offset : frame.offset + frame.encoded_bytes - 2])
    for damaged, what in ((bytes(flipped), ": checksum"), (forged(chunk, {number: broken}), "")):
        for mode in LandingMode:
            with pytest.raises(ChunkDamaged, match=rf"frame {number} \(CODES\){what}"):
                list(runs(damaged, mode, [len(damaged)], EVERYTHING))


def test_frames_that_are_too_long_and_too_short_do_not_make_up_for_each_other() -> None:
    chunk = CHUNKS[Tier.BALANCED]
    two, three, compressor = codes_of(chunk, 2), codes_of(chunk, 3), frame_compressor()
    for bodies in (
        {2: compressor.compress(two + three[:99]), 3: compressor.compress(three[99:])},
        {2: compressor.compress(two) + compressor.compress(three[:99]), 3: compressor.compress(three[99:])},
    ):
        damaged = forged(chunk, bodies)
        with pytest.raises(ChunkDamaged, match=r"frame 2 \(CODES\).*more bytes"):
            list(runs(damaged, LandingMode.CODES, [len(damaged)], EVERYTHING))


def test_no_frame_may_end_in_the_next_one() -> None:
    """The zstd frame of frame 2 goes on into frame 3, which begins with what looks like a zstd frame's beginning."""
    chunk, block = CHUNKS[Tier.BALANCED], 1 << 17
    zeros = frame_compressor().compress(bytes(FRAME_BYTES))
    header = zeros[: zstandard.frame_header_size(zeros)]
    raw, repeated = (block << 3).to_bytes(3, "little"), (block << 3 | 2).to_bytes(3, "little") + b"\1"
    last = (FRAME_BYTES - block << 3 | 3).to_bytes(3, "little") + b"\1"
    content = bytes(1000) + header + bytes(block - 1000 - len(header))
    whole = header + raw + content + last + header + repeated + last
    cut = whole.index(content) + 1000
    assert zstandard.frame_content_size(whole[cut:]) == FRAME_BYTES
    damaged = forged(chunk, {2: whole[:cut], 3: whole[cut:]})
    for mode in LandingMode:
        with pytest.raises(ChunkDamaged, match=r"frame 2 \(CODES\)"):
            list(runs(damaged, mode, [len(damaged)], EVERYTHING))

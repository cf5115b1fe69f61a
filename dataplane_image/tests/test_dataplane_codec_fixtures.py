"""Chunks written by the first version of every tier and dtype: readable for ever. Never regenerate these files."""

import re
from pathlib import Path

import numpy as np
import pytest
from codec_samples import land, parse, restored, sample_shape

from shadowserve_dataplane.chunks import KvDtype
from shadowserve_dataplane.codec import reference
from shadowserve_dataplane.codec.inspect import describe
from shadowserve_dataplane.codec.tiers import LandingMode, Tier

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = [(tier, dtype) for tier in Tier for dtype in KvDtype]


@pytest.mark.parametrize(("tier", "dtype"), NAMES)
@pytest.mark.parametrize("mode", list(LandingMode))
def test_chunks_of_version_1_give_the_same_values_for_ever(tier: Tier, dtype: KvDtype, mode: LandingMode) -> None:
    name = f"chunk-v1-{tier.label.lower()}-{dtype.value}"
    chunk = (FIXTURES / f"{name}.bin").read_bytes()
    assert np.array_equal(restored(chunk, sample_shape(dtype), mode), np.load(FIXTURES / f"{name}.npy"))


@pytest.mark.parametrize("kind", ["lossless-by-byte", "balanced-inside", "balanced-packed"])
@pytest.mark.parametrize("dtype", list(KvDtype))
@pytest.mark.parametrize("mode", list(LandingMode))
def test_so_do_chunks_with_other_frames(kind: str, dtype: KvDtype, mode: LandingMode) -> None:
    """Each byte compressed by itself; no exact rows; exact rows compressed."""
    name = f"chunk-v1-{kind}-{dtype.value}"
    chunk, shape = (FIXTURES / f"{name}.bin").read_bytes(), sample_shape(dtype, tokens=64)
    assert np.array_equal(restored(chunk, shape, mode), np.load(FIXTURES / f"{name}.npy"))
    assert np.array_equal(reference.decoded(chunk, parse(chunk, shape)), np.load(FIXTURES / f"{name}.npy"))


def test_a_chunk_can_be_explained_to_people() -> None:
    chunk = (FIXTURES / "chunk-v1-balanced-bfloat16.bin").read_bytes()
    said = describe(chunk)
    assert "Balanced" in said
    assert "2 layers" in said
    assert "every checksum is right" in said


def test_the_explanation_says_where_a_chunk_is_damaged() -> None:
    chunk = bytearray((FIXTURES / "chunk-v1-high-float16.bin").read_bytes())
    chunk[-1] ^= 1
    assert "DAMAGED" in describe(bytes(chunk))
    assert "frame 2 (CODES): checksum" in describe(bytes(chunk))
    assert "not a chunk" in describe(b"something else entirely")


def hex_lines(text: str) -> bytes:
    """Return the bytes of the hex lines in `text`, whose offsets must follow one another."""
    found = b""
    for offset, data in re.findall(r"^ {4}([0-9a-f]{4})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})  ", text, re.MULTILINE):
        assert int(offset, 16) == len(found)
        found += bytes.fromhex(data)
    return found


def test_the_specification_shows_the_fixture_as_it_is() -> None:
    """FORMAT.md's example, byte by byte: offsets in the specification are those of the code."""
    chunk = (FIXTURES / "chunk-v1-balanced-bfloat16.bin").read_bytes()
    page = (FIXTURES.parents[1] / "FORMAT.md").read_text().partition("## 7. Example")[2]
    encoded, _, landed = page.partition("It lands as codes")
    assert len(hex_lines(encoded)) == 0xE2
    assert chunk.startswith(hex_lines(encoded))
    image = bytes(land(chunk, sample_shape(), LandingMode.CODES))
    assert len(hex_lines(landed)) == 0x40
    assert image.startswith(hex_lines(landed))


def test_the_value_that_the_specification_works_out() -> None:
    chunk = (FIXTURES / "chunk-v1-balanced-bfloat16.bin").read_bytes()
    header = parse(chunk, sample_shape())
    assert [frame.offset for frame in header.frames] == [0xD0, 0x160, 0x368]
    assert reference.codes(chunk, header)[0, 4, 0] == -2
    assert reference.decoded(chunk, header)[0, 4, 0] == 0x3F0B

"""Entropy coding of one frame: standard zstd frames whose literals are Huffman-coded and which hold no matches.

Quantised KV is noise to a match finder: looking for matches makes the output larger and the decoder slower, so the
encoder is given parameters under which it finds none. Any zstd decodes the frames (RFC 8878).
"""

import zstandard

from shadowserve_dataplane.errors import ChunkDamaged

_HUFFMAN_ONLY = {"window_log": 17, "hash_log": 6, "chain_log": 6, "min_match": 7, "target_length": 0}

_BLOCK_HEADER_BYTES, _LAST_BLOCK, _BLOCK_TYPE, _REPEATED_BYTE = 3, 0b001, 0b110, 0b010


def frame_compressor() -> zstandard.ZstdCompressor:
    """Return a compressor for frames; not thread-safe. Frames carry their content size and no checksum of their own."""
    parameters = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST, write_content_size=1, write_checksum=0, write_dict_id=0, **_HUFFMAN_ONLY
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def is_one_frame(encoded: memoryview, size: int) -> bool:
    """Return whether `encoded` is exactly one zstd frame that says of itself that it holds `size` bytes.

    Goes from block to block (RFC 8878, 3.1.1.2) and decompresses nothing. Frames with a checksum count as others.
    """
    try:
        if zstandard.frame_content_size(encoded) != size:
            return False
        at = zstandard.frame_header_size(encoded)
    except zstandard.ZstdError:
        return False
    end = encoded.nbytes - _BLOCK_HEADER_BYTES
    while at <= end:
        block = encoded[at] | encoded[at + 1] << 8 | encoded[at + 2] << 16
        at += _BLOCK_HEADER_BYTES + (1 if block & _BLOCK_TYPE == _REPEATED_BYTE else block >> 3)
        if block & _LAST_BLOCK:
            return at == encoded.nbytes
    return False


class FrameInflater:
    """Decompresses whole frames into memory that is there already; one a thread."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=1 << 20)

    def inflate(self, encoded: memoryview, destination: memoryview, place: str) -> None:
        """Fill `destination` exactly, from one zstd frame or several that follow one another.

        Raises `ChunkDamaged`, naming `place`, when they are broken or not that long.
        """
        size, count, surplus = len(destination), 0, b""
        if not encoded.nbytes:
            raise ChunkDamaged(place, f"zstd frames of {size} bytes", "no bytes")
        try:
            source = self._context.stream_reader(encoded, read_size=encoded.nbytes, read_across_frames=True)
            count = source.readinto(destination)
            surplus = source.read(1) if count == size else b""
        except zstandard.ZstdError as error:
            raise ChunkDamaged(place, f"zstd frames of {size} bytes", str(error)) from error
        if count != size or surplus:
            raise ChunkDamaged(place, f"{size} bytes", "more bytes" if surplus else f"{count} bytes")

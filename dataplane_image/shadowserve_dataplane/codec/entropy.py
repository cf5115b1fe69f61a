"""Entropy coding of one frame: standard zstd frames whose literals are Huffman-coded and which hold no matches.

Quantised KV is noise to a match finder: looking for matches makes the output larger and the decoder slower, so the
encoder is given parameters under which it finds none. Any zstd decodes the frames (RFC 8878).
"""

import zstandard

from shadowserve_dataplane.errors import ChunkDamaged

_HUFFMAN_ONLY = {"window_log": 17, "hash_log": 6, "chain_log": 6, "min_match": 7, "target_length": 0}


def frame_compressor() -> zstandard.ZstdCompressor:
    """Return a compressor for frames; not thread-safe. Frames carry their content size and no checksum of their own."""
    parameters = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST, write_content_size=1, write_checksum=0, write_dict_id=0, **_HUFFMAN_ONLY
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def declares(encoded: memoryview, size: int) -> bool:
    """Return whether the first zstd frame of `encoded` says of itself that it holds `size` bytes."""
    try:
        return bool(zstandard.frame_content_size(encoded) == size)
    except zstandard.ZstdError:
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

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


class FrameInflater:
    """Decompresses whole frames into memory that is there already; one a thread."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=1 << 20)

    def inflate(self, encoded: memoryview, destination: memoryview, place: str) -> None:
        """Fill `destination` exactly. Raises `ChunkDamaged` at `place` when the frame is broken or not that long."""
        size = len(destination)
        try:
            with self._context.stream_reader(encoded, read_size=len(encoded), closefd=False) as reader:
                count = reader.readinto(destination)
                surplus = reader.read(1) if count == size else b""
        except zstandard.ZstdError as error:
            raise ChunkDamaged(place, f"a zstd frame of {size} bytes", str(error)) from error
        if count != size or surplus:
            raise ChunkDamaged(place, f"{size} bytes", f"{'more' if surplus else count} bytes")

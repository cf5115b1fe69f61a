"""Copies between canonical chunks and the engine's paged cache: the promise that all of them keep."""

from dataclasses import dataclass
from typing import Protocol

from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage


@dataclass(frozen=True, slots=True)
class BlockSpan:
    """Engine blocks that hold a part of a chunk: block `blocks[i]` holds the chunk's block number `first + i`."""

    blocks: tuple[int, ...]
    first: int = 0


class PagedCopy(Protocol):
    """Copies of one engine's cache; both return when the bytes are where they belong. Used by one thread at a time."""

    def prepare(self) -> None:
        """Get ready (compile, allocate); takes up to seconds, later calls are then fast."""

    def adopt(self, landing: memoryview) -> None:
        """Get ready to read a new landing buffer, before its first slot is; let go of the buffer before."""

    def scatter(self, image: CodesImage | ValuesImage, span: BlockSpan) -> None:
        """Write the span's part of a landed chunk into the cache, dequantizing codes on the way."""

    def gather(self, span: BlockSpan, values: memoryview) -> None:
        """Write the span's tokens as canonical values `[layer][K|V][token][kv head * head dim]` into `values`."""

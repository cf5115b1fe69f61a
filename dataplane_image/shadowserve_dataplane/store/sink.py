"""What the bulk reader is asked for, and how it tells what became of it."""

from dataclasses import dataclass
from typing import Protocol

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.errors import ShadowServeError


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """One chunk to read; `index` is the caller's own name for it, unique within one `BulkGetter.get`."""

    index: int
    key: ChunkKey


class ChunkSink(Protocol):
    """Takes what arrives, on the thread that called `BulkGetter.get`.

    Every request taken from the iterator gets exactly one of `complete`, `missing` and `failed`. Chunks of different
    shards are received at the same time, so calls for different indices interleave.

    `begin`, `received` and `complete` may raise a `ShadowServeError`: that chunk ends as `failed` with it (the rest of
    its bytes is read and forgotten) and the others go on. Any other exception ends `get` and reaches its caller.
    """

    def begin(self, index: int, size: int) -> None:
        """The store has the chunk and it is `size` bytes long; it fits a slab."""

    def received(self, index: int, view: memoryview, available: int) -> None:
        """The first `available` bytes of `view` are in; `view` is `size` long, the same memory in every call.

        Comes at least once with `available == size` before `complete` when `size` is not 0. The memory belongs to the
        sink until it returns from `complete` or `failed` of this index, and to somebody else afterwards.
        """

    def complete(self, index: int) -> None:
        """All bytes came; the slab is given back when this returns."""

    def missing(self, index: int) -> None:
        """The store has no such chunk."""

    def failed(self, index: int, error: ShadowServeError) -> None:
        """The chunk will not come; it may have begun."""

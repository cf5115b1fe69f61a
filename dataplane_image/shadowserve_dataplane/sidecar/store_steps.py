"""One finished chunk on its way into the store: is it there already, encode it, ask whether it still counts, put it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.tiers import Tier
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ShadowServeError
from shadowserve_dataplane.sidecar.store_messages import Done
from shadowserve_dataplane.sidecar.store_policy import DropReason
from shadowserve_dataplane.store.client import PutOutcome


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """A chunk in a staging slot; `values` are canonical, `first` says whether it begins a context.

    `replace`: also if the store has something under its key.
    """

    key: ChunkKey
    shape: KvShape
    first: bool
    values: memoryview
    replace: bool = False


class PutsChunks(Protocol):
    """What storing needs of the store client."""

    async def present(self, key: ChunkKey, deadline: Deadline) -> bool:
        """Return whether the chunk is there."""
        ...

    async def put(self, key: ChunkKey, value: memoryview, deadline: Deadline, replace: bool = False) -> PutOutcome:
        """Put the chunk, with `replace` also if one is there."""
        ...


class StoreSteps:
    """Stores chunks one after the other, with one encoder; every chunk has `allowed_seconds`."""

    def __init__(self, tier: Tier, allowed_seconds: float) -> None:
        self._tier = tier
        self._allowed = allowed_seconds
        self._encoder: Encoder | None = None

    async def store(self, chunk: StagedChunk, client: PutsChunks, confirm: Callable[[], bool]) -> Done:
        """Store the chunk if `confirm()` after encoding. Never raises: what goes wrong is a reason to drop it."""
        try:
            return await self._store(chunk, client, confirm)
        except ShadowServeError as error:
            return Done(DropReason.STORE_ERROR, detail=str(error))
        except ValueError as error:
            return Done(DropReason.NOT_FINITE, detail=str(error))

    async def _store(self, chunk: StagedChunk, client: PutsChunks, confirm: Callable[[], bool]) -> Done:
        deadline = Deadline.after(self._allowed)
        if not chunk.replace and await client.present(chunk.key, deadline):
            return Done(PutOutcome.PRESENT)
        encoded = self._encoder_for(chunk.shape).encode(chunk.values, chunk.key, chunk.first)
        if not confirm():
            return Done(DropReason.SHUTDOWN, detail="its engine is gone")
        put = await client.put(chunk.key, encoded, deadline, chunk.replace)
        return Done(put, len(encoded) if put is PutOutcome.STORED else 0)

    def _encoder_for(self, shape: KvShape) -> Encoder:
        if self._encoder is None or self._encoder.shape != shape:
            self._encoder = Encoder(shape, self._tier)
        return self._encoder

"""Look-ups: how many leading chunks of a prompt does the store have? Answered within the deadline, or with 0."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shadowserve_dataplane.chunks import KEY_BYTES, ChunkKey
from shadowserve_dataplane.deadline import Clock, Deadline
from shadowserve_dataplane.errors import DeadlineExceeded, ShadowServeError
from shadowserve_dataplane.sidecar.metrics import LookupResult

MAX_KEYS = 65_536
"""Most keys of one look-up: 16 million tokens of one rank."""
MAX_AT_ONCE = 256
"""Most look-ups under way; beyond that the store is no longer asked."""


class KnowsChunks(Protocol):
    """What a look-up needs of the store client."""

    async def exists(self, keys: Sequence[ChunkKey], deadline: Deadline) -> list[bool]:
        """Return for every key whether its chunk is there."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """`chunks` leading chunks exist for every rank; `detail` is for people, when it went wrong."""

    chunks: int
    result: LookupResult
    detail: str = ""


class Index:
    """Answers look-ups from the store. It keeps nothing: a chunk that was evicted a moment ago is not there."""

    def __init__(self, store: KnowsChunks, allowed_seconds: float, clock: Clock = time.monotonic) -> None:
        self._store = store
        self._allowed = allowed_seconds
        self._clock = clock
        self._asking = 0

    async def look_up(self, ranks: Sequence[Sequence[bytes]]) -> Answer:
        """Return how many leading chunks are there; `ranks` has one list of keys per rank. Never raises."""
        obstacle = self._obstacle(ranks)
        if obstacle:
            return Answer(0, LookupResult.REFUSED, obstacle)
        keys = [ChunkKey(key) for rank in ranks for key in rank]
        if not keys:
            return Answer(0, LookupResult.MISS)
        self._asking += 1
        try:
            present = await self._store.exists(keys, Deadline.after(self._allowed, self._clock))
        except DeadlineExceeded as error:
            return Answer(0, LookupResult.LATE, str(error))
        except ShadowServeError as error:
            return Answer(0, LookupResult.ERROR, str(error))
        finally:
            self._asking -= 1
        return _answer(present, len(ranks))

    def _obstacle(self, ranks: Sequence[Sequence[bytes]]) -> str:
        if self._asking >= MAX_AT_ONCE:
            return f"{self._asking} look-ups are under way"
        if sum(len(rank) for rank in ranks) > MAX_KEYS:
            return f"more than {MAX_KEYS} keys"
        if len({len(rank) for rank in ranks}) > 1:
            return "ranks differ in the number of keys"
        if any(len(key) != KEY_BYTES for rank in ranks for key in rank):
            return f"a key that is not {KEY_BYTES} bytes long"
        return ""


def _answer(present: Sequence[bool], ranks: int) -> Answer:
    chunks = len(present) // ranks
    leading = leading_chunks([present[rank * chunks : (rank + 1) * chunks] for rank in range(ranks)])
    if leading == chunks:
        return Answer(leading, LookupResult.HIT)
    return Answer(leading, LookupResult.PARTIAL if leading else LookupResult.MISS)


def leading_chunks(present: Sequence[Sequence[bool]]) -> int:
    """Return how many chunks from the first on are present for every rank."""
    everywhere = [all(ranks) for ranks in zip(*present, strict=True)]
    return everywhere.index(False) if False in everywhere else len(everywhere)

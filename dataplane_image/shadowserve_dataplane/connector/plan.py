"""What to look up, load and store, decided from numbers alone: no engine, no clock, no messages.

`StepPlan` is what the scheduler half tells the workers each step, `StepReport` what a worker tells it back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes in tokens; `chunk` is a multiple of `block`."""

    chunk: int
    block: int

    @property
    def blocks_per_chunk(self) -> int:
        """Engine blocks that one chunk fills."""
        return self.chunk // self.block


@dataclass(frozen=True, slots=True)
class ChunkLoad:
    """One chunk to fetch: `keys[rank]`, and the blocks to fill; `blocks[0]` is the chunk's block `first_block`.

    `first_block` > 0 when the local prefix hit ends inside the chunk: blocks before it are shared and stay untouched.
    """

    keys: tuple[bytes, ...]
    blocks: tuple[int, ...]
    first_block: int = 0


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Leading chunks to load for one request; `load` is a number that is never used again."""

    load: int
    request: str
    chunks: tuple[ChunkLoad, ...]


@dataclass(frozen=True, slots=True)
class ChunkStore:
    """One chunk that is whole after this step: `keys[rank]`, its blocks; `first` if it begins a context."""

    store: int
    request: str
    keys: tuple[bytes, ...]
    blocks: tuple[int, ...]
    first: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Orders for the workers in one step.

    `cancels`: loads nobody waits for; `preempted`: requests whose blocks are gone; `held`: finished requests whose
    blocks are kept until every worker has said that it no longer reads them; `idle`: no forward runs in this step.
    """

    loads: tuple[LoadPlan, ...] = ()
    stores: tuple[ChunkStore, ...] = ()
    cancels: tuple[int, ...] = ()
    preempted: frozenset[str] = frozenset()
    held: tuple[str, ...] = ()
    idle: bool = False


@dataclass(frozen=True, slots=True)
class StepReport:
    """What workers report, merged over ranks.

    `read[store]`: how many ranks no longer read that store's blocks; `settled`: stores that the sidecar is done with;
    `dropped`: those of them that are not in the store; `failed_loads`: loads of which a chunk did not come.
    """

    read: Mapping[int, int] = field(default_factory=dict)
    settled: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    failed_loads: frozenset[int] = frozenset()

    def merged(self, other: "StepReport") -> "StepReport":
        """Return both reports as one."""
        read = dict(self.read)
        for store, ranks in other.read.items():
            read[store] = read.get(store, 0) + ranks
        return StepReport(
            read,
            self.settled | other.settled,
            self.dropped | other.dropped,
            self.failed_loads | other.failed_loads,
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.read or self.settled or self.failed_loads)


@dataclass(frozen=True, slots=True)
class RequestTraits:
    """What decides what may be done for a request.

    `only_token_ids`: its KV cache follows from its token ids alone (no images, no embeddings); `growing`: its prompt
    may still change; `may_read` and `may_store`: the engine's role and the request's own options allow it.
    """

    prompt_tokens: int
    only_token_ids: bool = True
    growing: bool = False
    may_read: bool = True
    may_store: bool = True


def storable(traits: RequestTraits) -> bool:
    """Whether the request's chunks may be stored."""
    return traits.may_store and traits.only_token_ids and not traits.growing


def chunks_to_look_up(traits: RequestTraits, chunk_tokens: int) -> int:
    """Return how many chunks of the prompt are worth a look-up; 0 for a prompt of at most one chunk.

    A prompt that is a whole number of chunks may come from outside entirely: the engine recomputes its last token.
    """
    readable = traits.may_read and traits.only_token_ids and not traits.growing
    return traits.prompt_tokens // chunk_tokens if readable and traits.prompt_tokens > chunk_tokens else 0


def tokens_beyond(found_chunks: int, computed_tokens: int, chunk_tokens: int) -> int:
    """Return how many tokens the found chunks add to the `computed_tokens` that the engine has already."""
    return max(0, found_chunks * chunk_tokens - computed_tokens)


def plan_chunks(
    keys: Sequence[tuple[bytes, ...]], blocks: Sequence[int], computed_tokens: int, geometry: Geometry
) -> tuple[ChunkLoad, ...]:
    """Return the loads that bring the engine from `computed_tokens` to the end of the last of `keys`.

    `keys` are those of all leading chunks found, `blocks` those of the request; `computed_tokens` is a whole number
    of blocks.
    """
    first_block = computed_tokens // geometry.block
    per_chunk = geometry.blocks_per_chunk
    plans = []
    for chunk in range(computed_tokens // geometry.chunk, len(keys)):
        start = max(first_block, chunk * per_chunk)
        end = (chunk + 1) * per_chunk
        plans.append(ChunkLoad(keys[chunk], tuple(blocks[start:end]), start - chunk * per_chunk))
    return tuple(plans)


def chunks_filled(computed_tokens: int, known_tokens: int, chunk_tokens: int) -> int:
    """Return how many leading chunks hold only computed tokens whose ids are known."""
    return min(computed_tokens, known_tokens) // chunk_tokens


class KnownChunks:
    """Keys of chunks that are in the store as far as this engine knows; the least recently named are forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: dict[bytes, None] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Iterable[bytes]) -> None:
        """Remember `keys`, most recent last."""
        for key in keys:
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) > self._limit:
            del self._keys[next(iter(self._keys))]

    def forget(self, keys: Iterable[bytes]) -> None:
        """Forget `keys`: a chunk with such a key may be stored again."""
        for key in keys:
            self._keys.pop(key, None)

"""Which transfers a worker has under way, and what it owes the engine for them. No threads, no clock, no messages.

A load ends exactly once: when every chunk that the engine will keep is scattered, or when the first missing one is
known. It never ends while one of its chunks is being scattered, because the engine may then give its blocks away.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from shadowserve_dataplane.connector.plan import ChunkLoad, ChunkStore, LoadPlan


class _Chunk(Enum):
    PENDING = auto()
    SCATTERING = auto()
    DONE = auto()
    FAILED = auto()


@dataclass(slots=True)
class _Load:
    plan: LoadPlan
    deadline: float
    chunks: list[_Chunk]
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will be written, and what the engine may keep is settled."""
        if _Chunk.SCATTERING in self.chunks:
            return False
        if self.cancelled:
            return True
        return next((c for c in self.chunks if c is not _Chunk.DONE), _Chunk.FAILED) is _Chunk.FAILED

    @property
    def failed_from(self) -> int:
        """Index of the first chunk that did not come; the number of chunks if all came."""
        return next((i for i, chunk in enumerate(self.chunks) if chunk is not _Chunk.DONE), len(self.chunks))


@dataclass(frozen=True, slots=True)
class EndedLoad:
    """A load the engine can be told about: the blocks in `failed_blocks` hold nothing; `whole` if none failed."""

    load: int
    request: str
    failed_blocks: tuple[int, ...]
    whole: bool
    all_answered: bool


class Loads:
    """Loads under way, by number. Not thread-safe: the owner locks."""

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}

    def __len__(self) -> int:
        return len(self._loads)

    def begin(self, plan: LoadPlan, deadline: float) -> None:
        """Start to wait for the chunks of `plan`, until `deadline`."""
        self._loads[plan.load] = _Load(plan, deadline, [_Chunk.PENDING] * len(plan.chunks))

    def claim(self, load: int, index: int) -> ChunkLoad | None:
        """Return the chunk if it may be scattered now; then `settle` must follow. None: nobody waits for it."""
        entry = self._loads.get(load)
        if entry is None or entry.cancelled or not 0 <= index < len(entry.chunks):
            return None
        if entry.chunks[index] is not _Chunk.PENDING:
            return None
        entry.chunks[index] = _Chunk.SCATTERING
        return entry.plan.chunks[index]

    def settle(self, load: int, index: int, done: bool) -> None:
        """The claimed chunk was scattered, or could not be."""
        self._loads[load].chunks[index] = _Chunk.DONE if done else _Chunk.FAILED

    def fail(self, load: int, index: int) -> bool:
        """A chunk will not come. Returns whether anyone was waiting for it."""
        entry = self._loads.get(load)
        waiting = entry is not None and 0 <= index < len(entry.chunks) and entry.chunks[index] is _Chunk.PENDING
        if entry is not None and waiting:
            entry.chunks[index] = _Chunk.FAILED
        return waiting

    def cancel(self, load: int) -> bool:
        """Nobody waits for this load any more. Returns whether it was under way."""
        entry = self._loads.get(load)
        if entry is not None:
            entry.cancelled = True
        return entry is not None

    def fail_pending(self, overdue: Callable[[float], bool]) -> int:
        """Give up the pending chunks of every load whose deadline is `overdue`; return how many there were."""
        given_up = 0
        for entry in self._loads.values():
            if overdue(entry.deadline):
                given_up += entry.chunks.count(_Chunk.PENDING)
                entry.chunks = [_Chunk.FAILED if c is _Chunk.PENDING else c for c in entry.chunks]
        return given_up

    def take_ended(self) -> list[EndedLoad]:
        """Return the loads that have ended since the last call."""
        return [self._end(load) for load in [n for n, entry in self._loads.items() if entry.ended]]

    def _end(self, load: int) -> EndedLoad:
        entry = self._loads.pop(load)
        failed = entry.plan.chunks[entry.failed_from :]
        reported = () if entry.cancelled else failed
        return EndedLoad(
            load=load,
            request=entry.plan.request,
            failed_blocks=tuple(block for chunk in reported for block in chunk.blocks),
            whole=not failed,
            all_answered=_Chunk.PENDING not in entry.chunks,
        )


@dataclass(slots=True)
class Stores:
    """Stores that still have to read engine blocks, oldest first, and finished requests kept for them."""

    waiting: dict[int, ChunkStore] = field(default_factory=dict)
    _reading: dict[int, ChunkStore] = field(default_factory=dict)
    _spoiled: set[int] = field(default_factory=set)
    _held: dict[str, float] = field(default_factory=dict)

    @property
    def holding(self) -> bool:
        """Whether the engine keeps any finished request's blocks."""
        return bool(self._held)

    def claim(self) -> ChunkStore | None:
        """Return the oldest store, whose blocks may be read now; then `settle` must follow."""
        if not self.waiting:
            return None
        number = next(iter(self.waiting))
        store = self._reading[number] = self.waiting.pop(number)
        return store

    def settle(self, store: int) -> bool:
        """The claimed store's blocks were read. Returns whether they held that chunk all the while."""
        del self._reading[store]
        sound = store not in self._spoiled
        self._spoiled.discard(store)
        return sound

    def drop(self, unwanted: Callable[[ChunkStore], bool]) -> list[int]:
        """Drop what is unwanted; a store that is being read is dropped as soon as it was. Returns their numbers."""
        dropped = [number for number, store in self.waiting.items() if unwanted(store)]
        for number in dropped:
            del self.waiting[number]
        reading = ((number, store) for number, store in self._reading.items() if number not in self._spoiled)
        spoiled = [number for number, store in reading if unwanted(store)]
        self._spoiled.update(spoiled)
        return dropped + spoiled

    def hold(self, request: str, deadline: float) -> None:
        """Remember that the engine keeps the blocks of a finished request until it is told that they are free."""
        self._held[request] = deadline

    def overdue(self, now: float) -> set[str]:
        """Return the held requests whose time has passed."""
        return {request for request, deadline in self._held.items() if deadline <= now}

    @property
    def any_freed(self) -> bool:
        """Whether `take_freed` would return any."""
        return bool(self._freed())

    def take_freed(self) -> set[str]:
        """Return the held requests whose blocks nobody reads any more."""
        freed = self._freed()
        for request in freed:
            del self._held[request]
        return freed

    def _freed(self) -> set[str]:
        if not self._held:
            return set()
        return set(self._held) - {store.request for store in self._stores()}

    def _stores(self) -> Iterator[ChunkStore]:
        yield from self.waiting.values()
        yield from (store for number, store in self._reading.items() if number not in self._spoiled)

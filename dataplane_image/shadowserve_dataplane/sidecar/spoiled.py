"""Keys under which the store holds what no engine can use: the next one that computes such a chunk replaces it.

Without this a damaged chunk would be there for ever: it is found, fetched and computed again by every request, and a
put leaves alone what is there.
"""

from collections import OrderedDict

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.errors import ChunkOutcome

_SPOILED = frozenset({ChunkOutcome.DAMAGED, ChunkOutcome.REFUSED})


class SpoiledKeys:
    """The latest `limit` of them; one that is forgotten is found out again by its next fetch."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._keys: OrderedDict[ChunkKey, None] = OrderedDict()

    def __contains__(self, key: ChunkKey) -> bool:
        return key in self._keys

    def fetched(self, key: ChunkKey, outcome: ChunkOutcome) -> None:
        """Note how a fetch of the chunk ended."""
        if outcome in _SPOILED:
            self._keys[key] = None
            self._keys.move_to_end(key)
            if len(self._keys) > self._limit:
                self._keys.popitem(last=False)
        elif outcome is ChunkOutcome.LANDED:
            self._keys.pop(key, None)

    def replaced(self, key: ChunkKey) -> None:
        """The store has a sound chunk under this key now."""
        self._keys.pop(key, None)

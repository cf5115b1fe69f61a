"""Sinks that remember what a bulk read told them."""

from collections.abc import Callable

from shadowserve_dataplane.errors import ShadowServeError


class RecordingSink:
    """Keeps the bytes of complete chunks and the errors of failed ones; checks the promises of `ChunkSink`."""

    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}
        self.absent: set[int] = set()
        self.errors: dict[int, ShadowServeError] = {}
        self.order: list[int] = []
        self.on_received: Callable[[int, memoryview, int], None] | None = None
        self.on_begin: Callable[[int, int], None] | None = None
        self._sizes: dict[int, int] = {}
        self._available: dict[int, int] = {}
        self._views: dict[int, memoryview] = {}

    def begin(self, index: int, size: int) -> None:
        assert index not in self._sizes, "begun twice"
        self._sizes[index] = size
        self._available[index] = 0
        if self.on_begin is not None:
            self.on_begin(index, size)

    def received(self, index: int, view: memoryview, available: int) -> None:
        assert self._available[index] < available <= self._sizes[index] == len(view)
        self._available[index] = available
        self._views[index] = view
        if self.on_received is not None:
            self.on_received(index, view, available)

    def complete(self, index: int) -> None:
        assert self._available[index] == self._sizes[index]
        self._end(index)
        self.values[index] = bytes(self._views.get(index, b""))

    def missing(self, index: int) -> None:
        self._end(index)
        self.absent.add(index)

    def failed(self, index: int, error: ShadowServeError) -> None:
        self._end(index)
        self.errors[index] = error

    def _end(self, index: int) -> None:
        assert index not in self.order, "answered twice"
        self.order.append(index)

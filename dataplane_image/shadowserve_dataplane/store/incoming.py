"""The value that one shard is sending: its slab, how much of it is in, and what the sink made of it."""

from shadowserve_dataplane.errors import ChunkRefused, ShadowServeError
from shadowserve_dataplane.pool import Lease
from shadowserve_dataplane.store.sink import ChunkSink


class Incoming:
    """One value on its way into a slab; without a lease it is only read past, because `error` says why."""

    __slots__ = ("_lease", "_reported", "_sink", "_view", "available", "error", "index")

    def __init__(self, index: int, size: int, lease: Lease, sink: ChunkSink) -> None:
        self.index = index
        self.available = 0
        self.error: ShadowServeError | None = None
        self._lease: Lease | None = lease
        self._view = lease.view[:size]
        self._reported = 0
        self._sink = sink

    @property
    def view(self) -> memoryview:
        """Where the value goes: exactly its size."""
        return self._view

    def begin(self) -> None:
        """Tell the sink that the value begins."""
        try:
            self._sink.begin(self.index, len(self._view))
        except ShadowServeError as error:
            self.error = error

    def report(self) -> None:
        """Tell the sink how much is in, when there is more than it knows and it still wants to know."""
        if self.error is not None or self.available == self._reported:
            return
        self._reported = self.available
        try:
            self._sink.received(self.index, self._view, self.available)
        except ShadowServeError as error:
            self.error = error

    def end(self) -> None:
        """Tell the sink that all is in, or what went wrong before, and give the slab back."""
        self.report()
        if self.error is None:
            try:
                self._sink.complete(self.index)
            except ShadowServeError as error:
                self.error = error
        if self.error is not None:
            self._sink.failed(self.index, self.error)
        self.release()

    def release(self) -> None:
        """Give the slab back; harmless when repeated."""
        lease, self._lease = self._lease, None
        self._view = memoryview(b"")
        if lease is not None:
            lease.release()


class TooLarge:
    """A value that fits no slab: it is read past, then refused."""

    __slots__ = ("_sink", "available", "error", "index")

    def __init__(self, index: int, size: int, slab_bytes: int, sink: ChunkSink) -> None:
        self.index = index
        self.available = 0
        self.error = ChunkRefused(f"the value has {size} bytes, a buffer only {slab_bytes}")
        self._sink = sink

    def report(self) -> None:
        """Say nothing: there is nothing for the sink yet."""

    def end(self) -> None:
        """Tell the sink, now that the shard can go on with the next value."""
        self._sink.failed(self.index, self.error)

    def release(self) -> None:
        """Do nothing: it holds no slab."""

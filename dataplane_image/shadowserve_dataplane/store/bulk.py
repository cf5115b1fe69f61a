"""Reads many chunks from the store into pooled buffers: the hot end of the fetch path.

One `BulkGetter` belongs to one worker thread. It keeps one connection per shard and moves whichever has news; replies
go from the socket straight into a leased slab, and the sink is told after every piece, so that a frame can be worked on
while the next one is still coming.
"""

import selectors
import time
from collections.abc import Callable, Iterable, Iterator, ValuesView

from shadowserve_dataplane.chunks import store_key
from shadowserve_dataplane.deadline import Clock, Deadline
from shadowserve_dataplane.errors import Cancelled, DeadlineExceeded, ShadowServeError, StoreRefused
from shadowserve_dataplane.pool import BufferPool
from shadowserve_dataplane.store.discovery import TopologySource
from shadowserve_dataplane.store.lane import STARVED_POLL_SECONDS, Errand, LaneSettings, ShardLane
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.sink import BulkRequest, ChunkSink
from shadowserve_dataplane.store.topology import Address, Redirect, SlotMap, Topology, slot_of

__all__ = ["BulkGetter", "BulkRequest", "ChunkSink"]

POLL_SECONDS = 0.05
"""The longest time between two looks at deadline and cancellation."""
PIPELINE_DEPTH = 2
"""GETs sent ahead on a connection: the next reply is on its way while this one is worked on."""
MAX_REDIRECTS = 5
MAX_POSTPONEMENTS = 8
_PAUSE_SECONDS = 0.05


def _never() -> bool:
    return False


class BulkGetter:
    """Reads chunks for one thread; `topology` (see `discovery.topology_source`) is shared by all threads.

    `buffers` needs one slab per shard to keep every shard busy; with fewer, shards wait for one another's slabs. A
    value larger than a slab ends as `ChunkRefused`.
    """

    def __init__(
        self,
        settings: StoreSettings,
        topology: TopologySource,
        buffers: BufferPool,
        depth: int = PIPELINE_DEPTH,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._selector = selectors.DefaultSelector()
        self._lane_settings = LaneSettings(settings, buffers, self._selector, clock, depth)
        self._lanes: dict[Address, ShardLane] = {}

    def get(
        self,
        requests: Iterable[BulkRequest],
        sink: ChunkSink,
        deadline: Deadline,
        cancelled: Callable[[], bool] = _never,
    ) -> None:
        """Read every chunk of `requests` and tell `sink`; return when the iterator is exhausted and all are answered.

        Requests are taken from the iterator only when there is room for them, so one that yields what a job still
        needs can be shared with other workers; it must not block. At the deadline, or when `cancelled()` turns true
        (both looked at every 50 ms or more often), what is left in the iterator is taken out and fails as well.

        Raises only what the sink or the iterator raise that is no `ShadowServeError`; the getter stays usable.
        """
        run = _Run(self, iter(requests), sink, deadline)
        try:
            run.until_answered(cancelled)
        except ShadowServeError as error:
            run.abandon(error)
        except BaseException:
            for lane in self._lanes.values():
                lane.reset()
            raise

    def close(self) -> None:
        """Close all connections."""
        for lane in self._lanes.values():
            lane.reset()
        self._lanes.clear()
        self._selector.close()

    def lane(self, address: Address) -> ShardLane:
        """Return the lane to the shard at `address`; for one `get`."""
        if address not in self._lanes:
            self._lanes[address] = ShardLane(address, self._lane_settings)
        return self._lanes[address]

    @property
    def lanes(self) -> ValuesView[ShardLane]:
        """All lanes; for one `get`."""
        return self._lanes.values()

    @property
    def topology(self) -> TopologySource:
        """Where slot maps come from; for one `get`."""
        return self._topology

    @property
    def standalone(self) -> bool:
        """Whether redirects are a mistake in the settings; for one `get`."""
        return self._settings.topology is Topology.STANDALONE

    def keep_only(self, addresses: Iterable[Address]) -> None:
        """Drop the lanes to shards that are no longer part of the cluster; for one `get`."""
        for address in self._lanes.keys() - set(addresses):
            self._lanes.pop(address).reset()

    def ready_lanes(self, timeout: float) -> set[ShardLane]:
        """Return the lanes whose sockets have news, waiting up to `timeout` seconds; for one `get`."""
        return {key.data for key, _ in self._selector.select(timeout)}


class _Run:
    """One `BulkGetter.get`: routes requests to lanes and keeps time."""

    def __init__(
        self, getter: BulkGetter, requests: Iterator[BulkRequest], sink: ChunkSink, deadline: Deadline
    ) -> None:
        self.sink = sink
        self._getter = getter
        self._requests = requests
        self._exhausted = False
        self._deadline = deadline
        self._clock = deadline.clock
        self._map: SlotMap | None = None
        self._open: list[ShardLane] = []
        self._later: list[tuple[float, Errand]] = []

    def until_answered(self, cancelled: Callable[[], bool]) -> None:
        """Run until nothing is left; raises `DeadlineExceeded` or `Cancelled`."""
        self._start()
        while self._advance(now := self._clock()):
            if cancelled():
                raise Cancelled("the fetch was cancelled")
            if now >= self._deadline.at:
                raise DeadlineExceeded("the store did not answer in time")
            self._turn(now)

    def abandon(self, error: ShadowServeError) -> None:
        """Fail everything that is unanswered, and all that was not asked for yet."""
        for lane in self._getter.lanes:
            late = isinstance(error, DeadlineExceeded)
            lane.abandon(DeadlineExceeded(f"{lane.address}: {error}{lane.trouble}") if late else error, self.sink)
        for _, errand in self._later:
            self.sink.failed(errand.request.index, error)
        for request in self._requests:
            self.sink.failed(request.index, error)

    def redirected(self, errand: Errand, redirect: Redirect) -> None:
        """Follow MOVED and ASK, not for ever."""
        errand.redirects += 1
        if self._getter.standalone:
            why = "set the store's topology to Cluster"
            self._fail(errand, f"the store sent slot {redirect.slot} to {redirect.address}: {why}")
        elif errand.redirects > MAX_REDIRECTS:
            self._fail(errand, f"slot {redirect.slot} was redirected {MAX_REDIRECTS} times, last to {redirect.address}")
        else:
            errand.asking = redirect.ask
            if not redirect.ask:
                self._getter.topology.moved(redirect.slot, redirect.address)
            self._getter.lane(redirect.address).backlog.append(errand)

    def postponed(self, errand: Errand, error: ShadowServeError) -> None:
        """Ask again after a growing pause."""
        errand.tries += 1
        if errand.tries > MAX_POSTPONEMENTS:
            self.sink.failed(errand.request.index, error)
        else:
            self._later.append((self._clock() + _PAUSE_SECONDS * errand.tries, errand))

    def unreachable(self) -> None:
        """Have the slot map looked up anew."""
        self._getter.topology.suspect()

    def _start(self) -> None:
        for lane in self._getter.lanes:
            lane.forgive()
        self._getter.keep_only(self._getter.topology.slot_map(self._deadline).addresses)

    def _advance(self, now: float) -> bool:
        """Hand out requests; return whether anything is left to do."""
        if self._getter.topology.slot_map(self._deadline) is not self._map:
            self._follow_map()
        if self._later:
            self._resume(now)
        while not self._exhausted and self._has_room():
            self._take_next()
        return not self._exhausted or bool(self._later) or any(lane.busy for lane in self._getter.lanes)

    def _resume(self, now: float) -> None:
        due = [errand for when, errand in self._later if when <= now]
        self._later = [(when, errand) for when, errand in self._later if when > now]
        for errand in due:
            self._route(errand)

    def _has_room(self) -> bool:
        if not self._open:
            return not self._later  # no shard at all: one request at a time finds out whether that changes
        return any(lane.room > 0 for lane in self._open)

    def _take_next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._exhausted = True
            return
        name = store_key(request.key)
        self._route(Errand(request, name, slot_of(name)))

    def _follow_map(self) -> None:
        """Take the newest map, and send what waits where it belongs now."""
        self._map = self._getter.topology.slot_map(self._deadline)
        self._open = [self._getter.lane(address) for address in self._map.addresses]
        for lane in list(self._getter.lanes):
            for errand in lane.take_backlog():
                if errand.asking:
                    lane.backlog.append(errand)
                else:
                    self._route(errand)

    def _route(self, errand: Errand) -> None:
        address = self._map.address_of(errand.slot) if self._map else None
        if address is None:
            self._getter.topology.suspect()
            self.postponed(errand, StoreRefused(f"no shard of the cluster serves slot {errand.slot}"))
        else:
            self._getter.lane(address).backlog.append(errand)

    def _turn(self, now: float) -> None:
        timeout = min(POLL_SECONDS, self._deadline.at - now, *(when - now for when, _ in self._later))
        for lane in self._getter.lanes:
            timeout = min(timeout, lane.patience(now))
        ready = self._getter.ready_lanes(max(0.0, timeout))
        now = self._clock()
        for lane in list(self._getter.lanes):  # a redirect may add one
            if lane in ready or lane.patience(now) <= STARVED_POLL_SECONDS:
                lane.turn(self)
            else:
                lane.check_silence(self)

    def _fail(self, errand: Errand, why: str) -> None:
        self.sink.failed(errand.request.index, StoreRefused(why))

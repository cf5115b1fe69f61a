"""Who has which slot: asks the cluster, keeps the answer for the worker threads, asks again when it seems wrong."""

import asyncio
import threading
from collections.abc import Iterable
from typing import Protocol

from valkey.exceptions import ResponseError

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import DeadlineExceeded, NetworkError, ShadowServeError, StoreRefused
from shadowserve_dataplane.store.node import Node, translated
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address, SlotMap, Topology, parse_cluster_slots


class TopologySource(Protocol):
    """What a worker thread needs to know about the cluster; shared by all workers, safe from any thread."""

    def slot_map(self, deadline: Deadline) -> SlotMap:
        """Return the newest map; waits for the first one only. Raises as `discover` does."""

    def moved(self, slot: int, address: Address) -> None:
        """Take note of a MOVED: `slot` is at `address` from now on."""

    def suspect(self) -> None:
        """Have the map looked up anew, in the background: a shard it names does not answer or a slot has none."""


def topology_source(settings: StoreSettings) -> TopologySource:
    """Return the source of slot maps for the store of `settings`."""
    if settings.topology is Topology.STANDALONE:
        return StandaloneTopology(settings.endpoints[0])
    return ClusterTopology(settings)


async def discover(settings: StoreSettings, also: Iterable[Address], deadline: Deadline) -> SlotMap:
    """Return the slot map as told by whichever of the endpoints and the nodes `also` answers first.

    Raises `DeadlineExceeded` when none answers in time, else `StoreRefused` or `NetworkError` of one of them.
    """
    asked = [asyncio.ensure_future(_ask(address, settings)) for address in {*settings.endpoints, *also}]
    errors: list[ShadowServeError] = []
    try:
        async with asyncio.timeout(deadline.remaining()):
            for answer in asyncio.as_completed(asked):
                try:
                    return await answer
                except ShadowServeError as error:
                    errors.append(error)
    except TimeoutError as error:
        raise DeadlineExceeded(f"no node of the cluster answered in time: {_seen(settings, errors)}") from error
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    raise next((error for error in errors if isinstance(error, StoreRefused)), errors[0])


async def _ask(address: Address, settings: StoreSettings) -> SlotMap:
    node = Node(address, settings)
    try:
        [reply] = await node.run([("CLUSTER", "SLOTS")])
    finally:
        node.close()
    if isinstance(reply, ResponseError):
        if "cluster support disabled" in str(reply):
            raise StoreRefused(f"{address} is not in cluster mode: set the store's topology to Standalone")
        raise translated(reply, address)
    slot_map = parse_cluster_slots(reply, address)
    if not slot_map.addresses:
        raise NetworkError(f"{address} knows no shard yet: the cluster is not formed")
    return slot_map


def _seen(settings: StoreSettings, errors: list[ShadowServeError]) -> str:
    return "; ".join(map(str, errors)) or "silence from " + ", ".join(map(str, settings.endpoints))


class StandaloneTopology:
    """The source for a store of one process: nothing ever moves."""

    def __init__(self, address: Address) -> None:
        self._map = SlotMap.single(address)

    def slot_map(self, deadline: Deadline) -> SlotMap:
        """Return the one map."""
        return self._map

    def moved(self, slot: int, address: Address) -> None:
        """Raise `StoreRefused`: a store that redirects is a cluster."""
        raise StoreRefused(f"the store redirected slot {slot} to {address}: set the store's topology to Cluster")

    def suspect(self) -> None:
        """Do nothing: there is nobody else to ask."""


class ClusterTopology:
    """The source for a cluster: looked up once, corrected by MOVED, looked up again by a thread when suspected."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._first_look = threading.Lock()
        self._map: SlotMap | None = None
        self._refreshing = False
        self.last_error: str | None = None
        """Why the last look in the background failed; None when it did not."""

    def slot_map(self, deadline: Deadline) -> SlotMap:
        """Return the newest map; the first call looks it up, and raises as `discover` does."""
        if self._map is not None:
            return self._map
        if not self._first_look.acquire(timeout=min(deadline.remaining(), threading.TIMEOUT_MAX)):
            raise DeadlineExceeded("the cluster's topology was not found in time")
        try:
            if self._map is None:
                self._map = asyncio.run(discover(self._settings, (), deadline))
            return self._map
        finally:
            self._first_look.release()

    def moved(self, slot: int, address: Address) -> None:
        """Take note of a MOVED, and look the whole map up: one moved slot seldom comes alone."""
        with self._lock:
            if self._map is None or self._map.address_of(slot) == address:
                return
            self._map = self._map.moved(slot, address)
        self.suspect()

    def suspect(self) -> None:
        """Look the map up in a thread of its own, unless one is at it already."""
        with self._lock:
            if self._refreshing or self._map is None:
                return
            self._refreshing = True
        threading.Thread(target=self._refresh, name="store-topology", daemon=True).start()

    def _refresh(self) -> None:
        known = self._map.addresses if self._map else ()
        deadline = Deadline.after(self._settings.connect_timeout + self._settings.read_timeout)
        try:
            found = asyncio.run(discover(self._settings, known, deadline))
        except ShadowServeError as error:
            self.last_error = str(error)  # the old map stays; whoever suspected it will again
        else:
            self._map = found
            self.last_error = None
        finally:
            self._refreshing = False

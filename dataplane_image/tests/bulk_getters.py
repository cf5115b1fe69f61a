"""Bulk getters with their buffers, and values for them to read."""

import random
from collections.abc import Callable, Iterator

from chunk_sinks import RecordingSink
from real_store import RedisCluster, RedisServer

from shadowserve_dataplane.chunks import ChunkKey, store_key
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.pool import BufferPool
from shadowserve_dataplane.store.bulk import BulkGetter, BulkRequest
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import slot_of

SLAB = 1 << 20


def key(number: int) -> ChunkKey:
    return ChunkKey(number.to_bytes(32, "big"))


def value(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def soon() -> Deadline:
    return Deadline.after(60)


def requests(numbers: range | list[int]) -> list[BulkRequest]:
    return [BulkRequest(number, key(number)) for number in numbers]


class Getter:
    """A bulk getter and its buffers, closed at the end of the test."""

    def __init__(self, settings: StoreSettings, slabs: int = 3) -> None:
        self.buffers = BufferPool(SLAB, slabs, "test")
        self.bulk = BulkGetter(settings, topology_source(settings), self.buffers)

    def get(
        self,
        wanted: list[BulkRequest] | Iterator[BulkRequest],
        deadline: Deadline | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        sink: RecordingSink | None = None,
    ) -> RecordingSink:
        sink = sink or RecordingSink()
        self.bulk.get(wanted, sink, deadline or soon(), cancelled)
        assert self.buffers.free == self.buffers.slabs, "every slab came back"
        return sink


def fill(server: RedisServer, sizes: dict[int, int]) -> dict[int, bytes]:
    values = {number: value(number, size) for number, size in sizes.items()}
    for number, data in values.items():
        server.admin("SET", store_key(key(number)), data)
    return values


def fill_cluster(cluster: RedisCluster, sizes: dict[int, int]) -> dict[int, bytes]:
    return {n: v for number, size in sizes.items() for n, v in fill(shard_of(cluster, number), {number: size}).items()}


def shard_of(cluster: RedisCluster, number: int) -> RedisServer:
    return cluster.owner(slot_of(store_key(key(number))))


MakeGetter = Callable[..., Getter]

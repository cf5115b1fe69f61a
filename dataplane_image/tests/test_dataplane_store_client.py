"""Look-ups and puts against real servers."""

import asyncio
import os
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from real_store import Certificate, RedisCluster, RedisServer, wait_until

from shadowserve_dataplane.chunks import ChunkKey, store_key
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import DeadlineExceeded, NetworkError, SettingsError, StoreRefused
from shadowserve_dataplane.store.client import PutOutcome, StoreClient
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Topology, slot_of

READER = ["resetkeys", "~shadowserve:*", "resetchannels", "-@all", "+get", "+ping", "+asking", "+cluster|slots"]
WRITER = [*READER, "+exists", "+set"]


def key(number: int) -> ChunkKey:
    return ChunkKey(number.to_bytes(32, "big"))


def soon() -> Deadline:
    return Deadline.after(60)


@asynccontextmanager
async def client_of(settings: StoreSettings) -> AsyncIterator[StoreClient]:
    client = StoreClient(settings)
    try:
        yield client
    finally:
        await client.close()


async def test_put_then_exists(redis_standalone: RedisServer) -> None:
    async with client_of(redis_standalone.settings()) as client:
        assert await client.exists([key(1), key(2)], soon()) == [False, False]
        assert await client.put(key(1), memoryview(b"one"), soon()) is PutOutcome.STORED
        assert await client.exists([key(2), key(1)], soon()) == [False, True]
        assert await client.present(key(1), soon())
        await client.ping(soon())


async def test_a_chunk_that_is_there_is_not_written_again(redis_standalone: RedisServer) -> None:
    async with client_of(redis_standalone.settings()) as client:
        await client.put(key(1), b"first", soon())
        assert await client.put(key(1), b"second", soon()) is PutOutcome.PRESENT
    assert redis_standalone.admin("GET", store_key(key(1))) == b"first"


async def test_time_to_live_is_set_on_puts_and_only_when_given(redis_standalone: RedisServer) -> None:
    for number, seconds, least, most in ((1, 90.5, 60_000, 90_500), (2, None, -1, -1)):
        async with client_of(redis_standalone.settings(time_to_live=seconds)) as client:
            await client.put(key(number), b"value", soon())
        assert least <= redis_standalone.admin("PTTL", store_key(key(number))) <= most


async def test_a_full_store_refuses_by_its_own_words(store_binary: str, tmp_path: Path) -> None:
    options = ["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"]
    with RedisServer(tmp_path, options) as server:
        async with client_of(server.settings()) as client:

            async def fill() -> None:
                for number in range(20):
                    await client.put(key(number), os.urandom(1_000_000), soon())

            with pytest.raises(StoreRefused, match="maxmemory"):
                await fill()
            assert await client.exists([key(0)], soon()) == [True]


async def test_a_wrong_password_names_the_setting(store_binary: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="right") as server:
        for wrong in ("wrong", None):
            async with client_of(server.settings(password=wrong)) as client:
                with pytest.raises(StoreRefused, match="password of the store"):
                    await client.exists([key(1)], soon())
        async with client_of(server.settings()) as client:
            assert await client.exists([key(1)], soon()) == [False]


async def test_the_documented_rights_are_enough_and_no_more_than_needed(redis_standalone: RedisServer) -> None:
    redis_standalone.admin("ACL", "SETUSER", "writer", "on", ">secret", *WRITER)
    redis_standalone.admin("ACL", "SETUSER", "reader", "on", ">secret", *READER)
    async with client_of(redis_standalone.settings(username="writer", password="secret")) as client:
        await client.ping(soon())
        assert await client.put(key(1), b"value", soon()) is PutOutcome.STORED
        assert await client.present(key(1), soon())
    async with client_of(redis_standalone.settings(username="reader", password="secret")) as client:
        with pytest.raises(StoreRefused, match=r"rights listed in shadowserve_dataplane\.store\.client"):
            await client.put(key(2), b"value", soon())


async def test_the_documented_rights_are_enough_for_a_cluster(redis_cluster: RedisCluster) -> None:
    for shard in redis_cluster.shards:
        shard.admin("ACL", "SETUSER", "writer", "on", ">secret", *WRITER)
    async with client_of(redis_cluster.settings(username="writer", password="secret")) as client:
        keys = [key(number) for number in range(30)]
        for one in keys:
            assert await client.put(one, b"value", soon()) is PutOutcome.STORED
        assert await client.exists(keys, soon()) == [True] * 30
        await client.ping(soon())
        assert len((await client.topology(soon())).addresses) == 3


async def test_puts_and_look_ups_follow_moved_and_ask(redis_cluster: RedisCluster) -> None:
    slot = slot_of(store_key(key(1)))
    source = redis_cluster.owner(slot)
    target = next(shard for shard in redis_cluster.shards if shard is not source)
    async with client_of(redis_cluster.settings()) as client:
        assert await client.exists([key(1)], soon()) == [False]
        redis_cluster.begin_migration(slot, target)
        assert await client.put(key(1), b"asked", soon()) is PutOutcome.STORED
        assert await client.exists([key(1)], soon()) == [True]
        redis_cluster.end_migration(slot, target)
        assert await client.put(key(1), b"moved", soon()) is PutOutcome.PRESENT
        assert (await client.topology(soon())).address_of(slot) == target.address
    assert target.admin("GET", store_key(key(1))) == b"asked"


async def test_a_silent_store_ends_at_the_deadline_and_works_again_afterwards(redis_standalone: RedisServer) -> None:
    async with client_of(redis_standalone.settings()) as client:
        await client.put(key(1), b"value", soon())
        redis_standalone.pause()
        with pytest.raises(DeadlineExceeded):
            await client.exists([key(1)], Deadline.after(0.2))
        redis_standalone.resume()
        assert await client.exists([key(1), key(2)], soon()) == [True, False]


async def test_a_put_given_up_leaves_the_connection_in_step(redis_standalone: RedisServer) -> None:
    async with client_of(redis_standalone.settings()) as client:
        redis_standalone.pause()
        with pytest.raises(DeadlineExceeded):
            await client.put(key(1), os.urandom(8_000_000), Deadline.after(0.2))
        redis_standalone.resume()
        assert await client.put(key(2), b"two", soon()) is PutOutcome.STORED
        assert await client.exists([key(2), key(3)], soon()) == [True, False]


async def test_a_put_given_up_leaves_no_connection_to_a_store_that_takes_nothing(redis_standalone: RedisServer) -> None:
    opened = open_sockets()
    async with client_of(redis_standalone.settings()) as client:
        redis_standalone.pause()
        with pytest.raises(DeadlineExceeded):
            await client.put(key(1), os.urandom(8_000_000), Deadline.after(0.2))
    assert not open_sockets() - opened


def open_sockets() -> set[str]:
    """Return the sockets of this process; other tests' may still be closing."""
    names = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists this folder
            names.add(os.readlink(each))
    return {name for name in names if name.startswith("socket:")}


async def test_a_cancelled_look_up_leaves_the_connection_in_step(redis_standalone: RedisServer) -> None:
    async with client_of(redis_standalone.settings()) as client:
        await client.put(key(1), b"one", soon())
        redis_standalone.pause()
        look_up = asyncio.ensure_future(client.exists([key(1)] * 5, soon()))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(look_up, 0.1)
        redis_standalone.resume()
        assert await client.exists([key(2)], soon()) == [False]


async def test_reconnects_after_kill_and_restart(redis_standalone: RedisServer) -> None:
    async with client_of(redis_standalone.settings()) as client:
        await client.put(key(1), b"one", soon())
        redis_standalone.kill()
        with pytest.raises(NetworkError):
            await client.exists([key(1)], soon())
        redis_standalone.start()
        assert await client.exists([key(1)], soon()) == [False]


async def test_one_dead_shard_is_a_network_error_and_the_cluster_is_found_again(redis_cluster: RedisCluster) -> None:
    keys = [key(number) for number in range(30)]
    async with client_of(redis_cluster.settings()) as client:
        await client.exists(keys, soon())
        redis_cluster.shards[1].kill()
        with pytest.raises(NetworkError):
            await client.exists(keys, soon())
        alive = [one for one in keys if redis_cluster.owner(slot_of(store_key(one))) is not redis_cluster.shards[1]]
        assert await client.exists(alive, soon()) == [False] * len(alive)
        redis_cluster.shards[1].start()


async def test_a_shard_that_says_nothing_is_left_for_the_one_that_took_its_slots_over(
    redis_cluster: RedisCluster,
) -> None:
    wanted, slot = key(1), slot_of(store_key(key(1)))
    silent = redis_cluster.owner(slot)
    successor, witness = (shard for shard in redis_cluster.shards if shard is not silent)
    async with client_of(redis_cluster.settings()) as client:
        await client.exists([wanted], soon())
        silent.pause()
        for shard in (successor, witness):
            shard.admin("CLUSTER", "SETSLOT", slot, "NODE", successor.admin("CLUSTER", "MYID"))
        with pytest.raises(DeadlineExceeded):
            await client.put(wanted, b"lost", Deadline.after(0.2))
        assert await answered(client, wanted) == [False]
        assert await client.put(wanted, b"kept", soon()) is PutOutcome.STORED
    silent.resume()
    silent.kill()


async def answered(client: StoreClient, wanted: ChunkKey) -> list[bool]:
    """Return what a look-up in less time than a dead shard takes to be given up says, once one is answered."""
    for _ in range(100):
        with suppress(DeadlineExceeded):
            return await client.exists([wanted], Deadline.after(0.2))
    raise AssertionError("every look-up went to the shard that says nothing")


async def test_a_paused_first_endpoint_does_not_hold_up_discovery(redis_cluster: RedisCluster) -> None:
    redis_cluster.shards[0].pause()
    async with client_of(redis_cluster.settings(connect_timeout=300.0, read_timeout=300.0)) as client:
        slot_map = await client.topology(soon())
    assert set(slot_map.addresses) == {shard.address for shard in redis_cluster.shards}


async def test_topology_for_threads_is_refreshed_in_the_background(redis_cluster: RedisCluster) -> None:
    source = topology_source(redis_cluster.settings())
    first = await asyncio.to_thread(source.slot_map, soon())
    source.moved(7, redis_cluster.shards[2].address)  # not true: the cluster says otherwise when asked
    assert source.slot_map(soon()) is not first
    owner = redis_cluster.owner(7).address
    wait_until(lambda: source.slot_map(soon()).address_of(7) == owner, "the map was looked up again")
    wait_until(lambda: all(t.name != "store-topology" for t in threading.enumerate()), "the thread is gone")


async def test_tls(store_binary: str, tmp_path: Path, certificate: Certificate) -> None:
    with RedisServer(tmp_path, tls=certificate, password="secret") as server:
        async with client_of(server.settings()) as client:
            assert await client.put(key(1), os.urandom(100_000), soon()) is PutOutcome.STORED
            assert await client.present(key(1), soon())


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [(ssl.create_default_context, StoreRefused, "certificate"), (lambda: None, NetworkError, "rediss://")],
    ids=["an unknown authority", "no TLS at all"],
)
async def test_wrong_tls_is_named(
    store_binary: str,
    tmp_path: Path,
    certificate: Certificate,
    context: Callable[[], ssl.SSLContext | None],
    error: type[Exception],
    message: str,
) -> None:
    with RedisServer(tmp_path, tls=certificate) as server:
        async with client_of(server.settings(tls=context())) as client:
            with pytest.raises(error, match=message):
                await client.exists([key(1)], soon())


async def test_tls_to_a_store_without_it_is_named(redis_standalone: RedisServer, certificate: Certificate) -> None:
    async with client_of(redis_standalone.settings(tls=certificate.client_context(), connect_timeout=1.0)) as client:
        with pytest.raises(NetworkError, match="redis://"):
            await client.exists([key(1)], soon())


async def test_the_wrong_topology_is_named(redis_standalone: RedisServer, redis_cluster: RedisCluster) -> None:
    async with client_of(redis_standalone.settings(topology=Topology.CLUSTER)) as client:
        with pytest.raises(StoreRefused, match="set the store's topology to Standalone"):
            await client.exists([key(1)], soon())
    async with client_of(redis_cluster.shards[0].settings()) as client:
        with pytest.raises(StoreRefused, match="set the store's topology to Cluster"):
            await client.exists([key(number) for number in range(20)], soon())


@pytest.mark.parametrize(
    ("url", "endpoints", "topology", "username", "password"),
    [
        ("redis://store", (("store", 6379),), Topology.STANDALONE, None, None),
        ("valkey://:p%40ss@store:7000", (("store", 7000),), Topology.STANDALONE, None, "p@ss"),
        ("redis://me:x@[::1]:7000/0", (("::1", 7000),), Topology.STANDALONE, "me", "x"),
        ("redis://a:1,b:2,c?topology=Cluster", (("a", 1), ("b", 2), ("c", 6379)), Topology.CLUSTER, None, None),
    ],
)
def test_urls(url: str, endpoints: object, topology: Topology, username: str | None, password: str | None) -> None:
    settings = StoreSettings.parse_url(url)
    assert (settings.endpoints, settings.topology) == (endpoints, topology)
    assert (settings.username, settings.password, settings.tls) == (username, password, None)


def test_a_rediss_url_verifies_certificates_and_host_names() -> None:
    settings = StoreSettings.parse_url("rediss://store:1")
    assert settings.tls is not None
    assert settings.tls.verify_mode is ssl.CERT_REQUIRED
    assert settings.tls.check_hostname


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://store", "scheme"),
        ("redis://", "endpoints"),
        ("redis://a,b", "topology to Cluster"),
        ("redis://a:port", "host:port"),
        ("redis://a:70000", "host:port"),
        ("redis://a/3", "database 0"),
        ("redis://a?topology=Ring", "Standalone, Cluster"),
        ("redis://a?retries=3", "retries"),
        ("redis://me:hunter2@a:x", "host:port"),
        ("redis://me@a", "password"),
    ],
)
def test_a_url_that_cannot_work_says_why_and_keeps_the_password(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        StoreSettings.parse_url(url)
    assert "hunter2" not in str(caught.value)


def test_the_password_is_not_shown() -> None:
    assert "hunter2" not in repr(StoreSettings.parse_url("redis://me:hunter2@store"))


@pytest.mark.parametrize("field", ["connect_timeout", "read_timeout", "time_to_live"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_cannot_work_are_refused(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=field):
        StoreSettings(endpoints=(("store", 1),), **{field: value})  # type: ignore[arg-type]

"""Fixtures that start real store processes; they end with the test, or with the session, whatever happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bulk_getters import Getter, MakeGetter
from real_store import Certificate, RedisCluster, RedisServer, server_binary

from shadowserve_dataplane.store.settings import StoreSettings


@pytest.fixture(scope="session")
def store_binary() -> str:
    """The store server on PATH; tests that need one are skipped, with a reason, where there is none."""
    binary = server_binary()
    if binary is None:
        pytest.skip("no redis-server or valkey-server on PATH")
    return binary


@pytest.fixture
def redis_standalone(store_binary: str, tmp_path: Path) -> Iterator[RedisServer]:
    """A running, empty server; the test may kill, pause and restart it."""
    with RedisServer(tmp_path / "store") as server:
        yield server


@pytest.fixture(scope="session")
def _clusters(store_binary: str) -> Iterator[list[RedisCluster]]:
    clusters: list[RedisCluster] = []
    yield clusters
    for cluster in clusters:
        cluster.stop()


@pytest.fixture
def redis_cluster(_clusters: list[RedisCluster], tmp_path_factory: pytest.TempPathFactory) -> RedisCluster:
    """A running, empty cluster of three shards; used again by the next test unless this one spoils it."""
    if _clusters and not _clusters[0].pristine():
        _clusters.pop().stop()
    if not _clusters:
        _clusters.append(RedisCluster(tmp_path_factory.mktemp("cluster")))
        _clusters[0].start()
    return _clusters[0]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for 127.0.0.1 and the authority that signed it, made for this session."""
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def getter_of() -> Iterator[MakeGetter]:
    """Makes bulk getters, which are closed at the end of the test."""
    made: list[Getter] = []

    def make(settings: StoreSettings, slabs: int = 3) -> Getter:
        made.append(Getter(settings, slabs))
        return made[-1]

    yield make
    for getter in made:
        getter.bulk.close()

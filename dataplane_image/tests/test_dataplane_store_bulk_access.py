"""Bulk reads that are not let in: passwords, rights, TLS, and the wrong topology, each named in words."""

from pathlib import Path

from bulk_getters import SLAB, MakeGetter, fill, fill_cluster, requests
from real_store import Certificate, RedisCluster, RedisServer

from shadowserve_dataplane.errors import NetworkError, StoreRefused


def test_wrong_password_names_the_setting(store_binary: str, tmp_path: Path, getter_of: MakeGetter) -> None:
    with RedisServer(tmp_path, password="right") as server:
        values = fill(server, {0: 1000})
        for wrong in ("wrong", None):
            sink = getter_of(server.settings(password=wrong)).get(requests(range(20)))
            assert {type(error) for error in sink.errors.values()} == {StoreRefused}
            assert len(sink.errors) == 20
            assert "password of the store" in str(sink.errors[0])
        assert getter_of(server.settings()).get(requests(range(1))).values == values


def test_the_documented_rights_are_enough_to_read(redis_cluster: RedisCluster, getter_of: MakeGetter) -> None:
    values = fill_cluster(redis_cluster, dict.fromkeys(range(9), 1000))
    rights = ["resetkeys", "~shadowserve:*", "resetchannels", "-@all", "+get", "+asking", "+cluster|slots"]
    for shard in redis_cluster.shards:
        shard.admin("ACL", "SETUSER", "reader", "reset", "on", ">secret", *rights)
        shard.admin("ACL", "SETUSER", "nobody", "reset", "on", ">secret", *rights, "-get")
    assert (
        getter_of(redis_cluster.settings(username="reader", password="secret")).get(requests(range(9))).values == values
    )
    sink = getter_of(redis_cluster.settings(username="nobody", password="secret")).get(requests(range(9)))
    assert len(sink.errors) == 9
    assert "rights listed in" in str(sink.errors[0])


def test_tls(store_binary: str, tmp_path: Path, certificate: Certificate, getter_of: MakeGetter) -> None:
    with RedisServer(tmp_path, tls=certificate, password="secret") as server:
        values = fill(server, {0: 0, 1: 1, 2: 16_384, 3: 500_000, 4: SLAB})
        getter = getter_of(server.settings())
        assert getter.get(requests(range(5))).values == values
        assert getter.get(requests(range(5))).values == values


def test_wrong_tls_is_named(store_binary: str, tmp_path: Path, certificate: Certificate, getter_of: MakeGetter) -> None:
    other = Certificate.make(tmp_path / "other")
    with RedisServer(tmp_path / "store", tls=certificate) as server:
        untrusted = getter_of(server.settings(tls=other.client_context())).get(requests(range(3)))
        assert {type(error) for error in untrusted.errors.values()} == {StoreRefused}
        assert "certificate is not accepted" in str(untrusted.errors[0])
        plain = getter_of(server.settings(tls=None)).get(requests(range(3)))
        assert len(plain.errors) == 3
        assert "rediss://" in str(plain.errors[0])


def test_tls_to_a_store_without_it_is_named(
    redis_standalone: RedisServer, certificate: Certificate, getter_of: MakeGetter
) -> None:
    settings = redis_standalone.settings(tls=certificate.client_context(), connect_timeout=0.5)
    sink = getter_of(settings).get(requests(range(3)))
    assert {type(error) for error in sink.errors.values()} == {NetworkError}
    assert "redis://" in str(sink.errors[0])


def test_a_cluster_behind_standalone_settings_is_named(redis_cluster: RedisCluster, getter_of: MakeGetter) -> None:
    sink = getter_of(redis_cluster.shards[0].settings()).get(requests(range(30)))
    assert len(sink.order) == 30
    assert any("topology to Cluster" in str(error) for error in sink.errors.values())

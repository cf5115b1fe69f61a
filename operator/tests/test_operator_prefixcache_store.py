"""The store of a PrefixCache on a cluster in memory: shards that come and go, stores of somebody else."""

from base64 import b64decode

import pytest
from cache_on_a_cluster import CACHE, a_cluster, become_ready, cache, conditions, message, server, until_quiet
from fakes import FakeCluster, FakeNetwork

from shadowserve_dataplane.sidecar.settings import parse_config
from shadowserve_operator.desired.external_store import Finding
from shadowserve_operator.desired.sharding import ShardPlan, StoreSeen
from shadowserve_operator.kinds import (
    CONFIG_MAP,
    NODE,
    SECRET,
    STATEFUL_SET,
    Json,
    Ref,
)


def sharded(shards: int) -> Json:
    return cache(store={"managed": {"shards": shards}})


def servers(cluster: FakeCluster) -> int:
    return int(cluster.objects[Ref(STATEFUL_SET, "default", "kv-store")]["spec"]["replicas"])


async def test_servers_that_still_have_slots_stay_until_these_have_moved() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    cluster.put(sharded(4))
    await until_quiet(cluster, network=network)
    for number in range(4):
        cluster.put(server(number))
    become_ready(cluster)
    cluster.objects[Ref(STATEFUL_SET, "default", "kv-store")]["status"] = {"readyReplicas": 4}
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["StoreReady"] == ("True", "Succeeded")
    cluster.put(sharded(2))
    network.store = StoreSeen(ShardPlan((), "8192 slots move to other shards", 4, 4, covered=True))
    assert not (await until_quiet(cluster, network=network)).settled
    assert servers(cluster) == 4
    assert conditions(cluster)["StoreReady"] == ("True", "Pending"), "engines store and fetch meanwhile"
    assert conditions(cluster)["Ready"][0] == "True"
    assert message(cluster, "StoreReady") == "every slot is served by 4 shards; 8192 slots move to other shards"
    network.store = None
    await until_quiet(cluster, network=network)
    assert servers(cluster) == 2
    assert cluster.objects[CACHE]["status"]["store"]["readyShards"] == 2


async def test_a_store_that_lost_a_shard_is_not_ready() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    await until_quiet(cluster)
    become_ready(cluster)
    network.store = StoreSeen(ShardPlan((), "slots are given out", 1, 0))
    assert not (await until_quiet(cluster, network=network)).settled
    assert conditions(cluster)["StoreReady"] == ("False", "Pending")
    assert message(cluster, "StoreReady") == "slots are given out"


async def test_a_store_that_the_operator_cannot_reach_is_named_with_the_port() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    await until_quiet(cluster)
    become_ready(cluster)
    silent = {"kv-store-0": "kv-store-0 at 10.2.0.0: no answer in time"}
    network.store = StoreSeen(ShardPlan((), "0 of 1 store servers answer", 1), silent)
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["StoreReady"] == ("False", "Unreachable")
    assert "kv-store-0 at 10.2.0.0: no answer in time; it has to reach port 6379" in message(cluster, "StoreReady")


async def test_a_change_of_shards_restarts_no_server() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    before = cluster.objects[Ref(STATEFUL_SET, "default", "kv-store")]["spec"]["template"]
    cluster.put(sharded(3))
    await until_quiet(cluster)
    assert cluster.objects[Ref(STATEFUL_SET, "default", "kv-store")]["spec"]["template"] == before


async def test_without_cards_the_host_serves() -> None:
    cluster = a_cluster()
    cluster.remove(Ref(NODE, "", "card-0"))
    await until_quiet(cluster)
    assert conditions(cluster)["DataPlaneReady"] == ("True", "NoDpuNodeMatches")


async def test_a_missing_secret_of_an_external_store_is_named_and_heals() -> None:
    cluster = a_cluster()
    external = {"endpoints": ["127.0.0.1:1"], "topology": "Standalone", "credentialsSecretRef": {"name": "login"}}
    cluster.put(cache(store={"type": "External", "external": external}))
    await until_quiet(cluster)
    assert conditions(cluster)["StoreReady"] == ("False", "SecretNotFound")
    assert "login" in message(cluster, "StoreReady")
    login = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": "default"}}
    cluster.put(login | {"data": {"username": "bWU=", "password": "YS9AYg=="}})
    await until_quiet(cluster)
    assert conditions(cluster)["StoreReady"] == ("True", "Succeeded")
    shared = cluster.objects[Ref(SECRET, "default", "kv-secrets")]["data"]
    assert (shared["store-password"], b64decode(shared["store-password-quoted"])) == ("YS9AYg==", b"a%2F%40b")
    config = cluster.objects[Ref(CONFIG_MAP, "default", "kv-config")]["data"]["config.json"]
    assert parse_config(config).store.username == "me"


@pytest.mark.parametrize(
    ("seen", "reason", "fix"),
    [
        ((Finding.SILENT, "refused"), "Unreachable", "127.0.0.1:1: refused; correct store.external.endpoints"),
        ((Finding.CLUSTER, ""), "TopologyMismatch", "a member of a cluster: set store.external.topology to Cluster"),
        ((Finding.NOT_LET_IN, "NOAUTH"), "Error", "name a Secret with the password in store.external.credentials"),
        ((Finding.NO_STORE, "garbage"), "Error", "if it speaks TLS, set store.external.tls"),
        (
            (Finding.NOT_TRUSTED, "unknown"),
            "Error",
            "name a Secret with its authority in store.external.tls",
        ),
    ],
)
async def test_what_is_wrong_with_an_external_store_is_told_with_the_fix(
    seen: tuple[Finding, str], reason: str, fix: str
) -> None:
    cluster, network = a_cluster(), FakeNetwork()
    network.found["127.0.0.1:1"] = seen
    cluster.put(cache(store={"type": "External", "external": {"endpoints": ["127.0.0.1:1"]}}))
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["StoreReady"] == ("False", reason)
    assert fix in message(cluster, "StoreReady")

"""The store of a PrefixCache on a cluster in memory: shards that come and go, stores of somebody else."""

from base64 import b64decode, b64encode

import pytest
from cache_on_a_cluster import CACHE, a_cluster, become_ready, cache, conditions, message, server, until_quiet
from fakes import FakeCluster, FakeNetwork

from shadowserve_crds import names
from shadowserve_dataplane.sidecar.settings import parse_config
from shadowserve_operator.desired.external_store import Finding
from shadowserve_operator.desired.sharding import ShardPlan, StoreSeen
from shadowserve_operator.kinds import (
    CONFIG_MAP,
    DAEMON_SET,
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
    moving = "every slot is served by 4 shards; 8192 slots move to other shards; see kubectl"
    assert message(cluster, "StoreReady").startswith(moving)
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
    assert message(cluster, "StoreReady").startswith("slots are given out; see kubectl -n default get pods")


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
    assert message(cluster, "DataPlaneReady") == (
        f"no node has the label {names.DEFAULT_HOST_LABEL}; engines restore on host cores; "
        f"label the cards' nodes: kubectl label node CARD_NODE {names.DEFAULT_HOST_LABEL}=HOST_NODE"
    )


async def test_labels_that_no_node_has_are_told_as_kubectl_takes_them() -> None:
    cluster = a_cluster()
    cluster.put(cache(placement={"order": ["DPU"], "dpu": {"nodeSelector": {"pool": "cards", "arch": "arm64"}}}))
    await until_quiet(cluster)
    assert conditions(cluster)["DataPlaneReady"] == ("False", "NoDpuNodeMatches")
    assert message(cluster, "DataPlaneReady") == (
        "no node has the labels arch=arm64 and pool=cards; engines compute everything; "
        "label the cards' nodes: "
        f"kubectl label node CARD_NODE arch=arm64 pool=cards {names.DEFAULT_HOST_LABEL}=HOST_NODE"
    )


EXTERNAL = {"endpoints": ["127.0.0.1:1"], "topology": "Standalone", "credentialsSecretRef": {"name": "login"}}
LOGIN, PASSWORDS = Ref(SECRET, "default", "login"), Ref(SECRET, "default", "kv-secrets")
CONFIG, PLANES = Ref(CONFIG_MAP, "default", "kv-config"), Ref(DAEMON_SET, "default", "kv-data-plane")


def login(password: str = "a/@b", **more: Json) -> Json:
    """Return the Secret of somebody else's store."""
    data = {key: b64encode(value.encode()).decode() for key, value in {"username": "me", "password": password}.items()}
    metadata = {"name": "login", "namespace": "default", **more}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def an_external() -> FakeCluster:
    cluster = a_cluster()
    cluster.put(cache(store={"type": "External", "external": EXTERNAL}))
    return cluster


def started_with(cluster: FakeCluster) -> tuple[str, Json]:
    """Return what sidecars and data planes are started with."""
    settings = cluster.objects[CONFIG]["metadata"]["annotations"][names.CONFIG_ANNOTATION]
    return settings, cluster.objects[PLANES]["spec"]["template"]


async def test_a_missing_secret_of_an_external_store_is_named_and_heals() -> None:
    cluster = an_external()
    await until_quiet(cluster)
    assert conditions(cluster)["StoreReady"] == ("False", "SecretNotFound")
    assert "login" in message(cluster, "StoreReady")
    assert not {CONFIG, PLANES} & set(cluster.objects), "nobody starts who could not log in"
    cluster.put(login())
    await until_quiet(cluster)
    assert conditions(cluster)["StoreReady"] == ("True", "Succeeded")
    shared = cluster.objects[PASSWORDS]["data"]
    assert (shared["store-password"], b64decode(shared["store-password-quoted"])) == ("YS9AYg==", b"a%2F%40b")
    assert parse_config(cluster.objects[CONFIG]["data"]["config.json"]).store.username == "me"
    [variable] = [each for each in _environment(cluster) if each["name"] == "SHADOWSERVE_STORE"]
    assert variable["value"].startswith("valkey://me:")


def _environment(cluster: FakeCluster) -> list[Json]:
    return list(cluster.objects[PLANES]["spec"]["template"]["spec"]["containers"][0]["env"])


async def test_a_login_that_was_rotated_starts_whoever_uses_it_anew_once() -> None:
    cluster = an_external()
    cluster.put(login())
    await until_quiet(cluster)
    before = started_with(cluster)
    cluster.put(login(annotations={"looked": "at"}))
    await until_quiet(cluster)
    assert started_with(cluster) == before, "it is the same login"
    cluster.put(login("another"))
    await until_quiet(cluster)
    after = started_with(cluster)
    assert (after[0] == before[0], after[1] == before[1]) == (False, False)
    assert cluster.objects[PASSWORDS]["data"]["store-password"] == b64encode(b"another").decode()


async def test_who_runs_keeps_the_login_while_its_secret_is_away() -> None:
    cluster = an_external()
    cluster.put(login())
    await until_quiet(cluster)
    before = started_with(cluster)
    cluster.remove(LOGIN)
    await until_quiet(cluster)
    assert conditions(cluster)["StoreReady"] == ("False", "SecretNotFound")
    assert started_with(cluster) == before
    cluster.put(login())
    await until_quiet(cluster)
    assert started_with(cluster) == before


async def test_settings_are_not_written_before_the_secret_that_belongs_to_them() -> None:
    cluster = a_cluster()
    theirs = login()
    theirs["metadata"]["name"] = PASSWORDS.name
    cluster.put(theirs)
    await until_quiet(cluster)
    assert not {CONFIG, PLANES} & set(cluster.objects)
    assert "Secret kv-secrets" in message(cluster, "CertificatesReady")
    cluster.remove(PASSWORDS)
    await until_quiet(cluster)
    assert {CONFIG, PLANES} <= set(cluster.objects)


@pytest.mark.parametrize(
    ("seen", "reason", "fix"),
    [
        ((Finding.SILENT, "refused"), "Unreachable", "127.0.0.1:1: refused; correct spec.store.external.endpoints"),
        ((Finding.CLUSTER, ""), "TopologyMismatch", "member of a cluster: set spec.store.external.topology to Cluster"),
        ((Finding.NOT_LET_IN, "NOAUTH"), "Error", "name a Secret with the password in spec.store.external.credentials"),
        ((Finding.NO_STORE, "garbage"), "Error", "if it speaks TLS, set spec.store.external.tls"),
        (
            (Finding.NOT_TRUSTED, "unknown"),
            "Error",
            "name a Secret with its authority in spec.store.external.tls",
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

"""What an edit of a PrefixCache does to the pods of its pools: which edits replace them, when, and which do not."""

from typing import Any

import pytest
from cache_on_a_cluster import reconcile as keep_cache
from fakes import FakeCluster
from test_operator_inferencepool import (
    ENGINES,
    POOL,
    a_cluster,
    become_ready,
    cache,
    conditions,
    message,
    put_cache,
    reconcile,
    until_quiet,
)
from test_operator_prefixcache_store import login

from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.desired.config import Login, config_map, written_settings
from shadowserve_operator.kinds import CONFIG_MAP, PREFIX_CACHE, SECRET, SERVICE, Json, Ref

KV, SETTINGS = Ref(PREFIX_CACHE, "default", "kv"), Ref(CONFIG_MAP, "default", "kv-config")
_LIMITS = {"lookupDeadline": "20ms", "fetchDeadline": "5s", "maxInFlightChunks": 64}


def template(cluster: FakeCluster) -> Json:
    return dict(cluster.objects[ENGINES]["spec"]["template"])


@pytest.mark.parametrize(
    "spec",
    [
        {"codec": {"tier": "Lossless"}},
        {"limits": {**_LIMITS, "lookupDeadline": "30ms"}},
        {"limits": {**_LIMITS, "timeToLive": "24h"}},
        {"placement": {"landing": "Values"}},
        {"placement": {"landingBuffer": "1Gi"}},
        {"placement": {"host": {"resources": {"cpu": 2}}}},
        {"placement": {"order": ["DPU"]}},
        {"tenancy": {"isolation": "Shared"}},
        {"security": {"transport": "Plaintext"}},
        {"security": {"issuerRef": {"name": "corporate"}}},
    ],
    ids=str,
)
async def test_what_sidecars_read_at_their_start_rolls_the_pods_once(spec: dict[str, Any]) -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    before = template(cluster)
    put_cache(cluster, generation=2, **spec)
    await until_quiet(cluster)
    after = template(cluster)
    assert after != before
    writes = len(cluster.writes)
    for _ in range(3):
        await reconcile(cluster)
    assert (template(cluster), len(cluster.writes)) == (after, writes)
    put_cache(cluster, generation=3)
    await until_quiet(cluster)
    assert template(cluster) == before, "the same settings are the same template"


@pytest.mark.parametrize(
    "spec",
    [
        {"placement": {"order": ["Host"]}},
        {"placement": {"order": ["Host", "DPU"]}},
        {"placement": {"dpu": {"resources": {"cpu": 8}}}},
        {"store": {"type": "Managed", "managed": {"shards": 3}}},
        {"store": {"type": "Managed", "managed": {"eviction": "LeastRecentlyUsed", "memoryPerShard": "8Gi"}}},
    ],
    ids=str,
)
async def test_what_is_none_of_the_sidecars_or_is_told_to_running_ones_restarts_nothing(spec: dict[str, Any]) -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    before = template(cluster)
    put_cache(cluster, generation=2, **spec)
    await until_quiet(cluster)
    assert template(cluster) == before


EXTERNAL: Json = {"endpoints": ["valkey:6379"], "credentialsSecretRef": {"name": "login"}}


@pytest.mark.parametrize("login", [Login("me", "new", b"key"), Login("you", "old", b"key")], ids=["password", "user"])
async def test_a_login_that_was_rotated_rolls_the_pods(login: Login) -> None:
    cluster = a_cluster()
    put_cache(cluster, Login("me", "old", b"key"), store={"type": "External", "external": EXTERNAL})
    await until_quiet(cluster)
    before = template(cluster)
    put_cache(cluster, login, store={"type": "External", "external": EXTERNAL})
    await until_quiet(cluster)
    assert template(cluster) != before


async def test_another_authority_of_an_external_store_rolls_the_pods() -> None:
    cluster = a_cluster()
    put_cache(cluster, store={"type": "External", "external": {**EXTERNAL, "tls": {}}})
    await until_quiet(cluster)
    before = template(cluster)
    external = {**EXTERNAL, "tls": {"caSecretRef": {"name": "ca"}}}
    put_cache(cluster, generation=2, store={"type": "External", "external": external})
    await until_quiet(cluster)
    assert template(cluster) != before


async def test_pods_are_not_replaced_before_the_new_settings_are_written() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    before = template(cluster)
    written = cluster.objects[SETTINGS]
    put_cache(cluster, generation=2, codec={"tier": "Lossless"}, placement={"landingBuffer": "1Gi"})
    late, cluster.objects[SETTINGS] = cluster.objects[SETTINGS], written
    await until_quiet(cluster)
    assert template(cluster) == before, "they would start with the old settings, and keep them"
    cluster.objects[SETTINGS] = late
    await until_quiet(cluster)
    assert template(cluster) != before


async def test_a_pool_that_waits_for_settings_says_so_and_is_scaled_and_served_meanwhile() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    become_ready(cluster)
    await until_quiet(cluster)
    assert conditions(cluster)["RolloutComplete"] == ("True", "Succeeded")
    before = template(cluster)
    written = cluster.objects[SETTINGS]
    put_cache(cluster, generation=2, codec={"tier": "Lossless"})
    late, cluster.objects[SETTINGS] = cluster.objects[SETTINGS], written
    cluster.objects[POOL]["spec"]["replicas"] = 3
    cluster.remove(Ref(SERVICE, "default", "chat"))
    await until_quiet(cluster)
    assert conditions(cluster)["RolloutComplete"] == ("False", "Pending")
    assert message(cluster, "RolloutComplete") == (
        "waits for the settings of PrefixCache kv: see kubectl -n default describe pfc kv"
    )
    assert (cluster.objects[ENGINES]["spec"]["replicas"], template(cluster)) == (3, before)
    assert Ref(SERVICE, "default", "chat") in cluster.objects
    cluster.objects[SETTINGS] = late
    await until_quiet(cluster)
    assert template(cluster) != before
    become_ready(cluster, 3)
    await until_quiet(cluster)
    assert conditions(cluster)["RolloutComplete"] == ("True", "Succeeded")


async def test_a_rollout_that_has_just_begun_is_not_complete() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    become_ready(cluster)
    await until_quiet(cluster)
    put_cache(cluster, generation=2, codec={"tier": "Lossless"})
    assert (await reconcile(cluster)).writes
    assert conditions(cluster)["RolloutComplete"] == ("False", "Pending")


async def test_a_rollout_that_a_person_paused_stays_paused() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    before = template(cluster)
    cluster.objects[ENGINES]["spec"]["paused"] = True
    put_cache(cluster, generation=2, codec={"tier": "Lossless"})
    await until_quiet(cluster)
    assert (template(cluster) != before, cluster.objects[ENGINES]["spec"]["paused"]) == (True, True)


async def test_a_new_pool_waits_for_the_settings_and_says_so() -> None:
    cluster = a_cluster(replicas=0)
    settings = cluster.objects[SETTINGS]
    cluster.remove(SETTINGS)
    await until_quiet(cluster)
    assert ENGINES not in cluster.objects
    assert conditions(cluster)["EnginesReady"] == ("False", "Pending")
    cluster.objects[SETTINGS] = settings
    await until_quiet(cluster)
    assert ENGINES in cluster.objects


async def test_a_pool_starts_once_the_secret_of_its_external_store_is_there_and_rolls_when_it_is_rotated() -> None:
    cluster = a_cluster(replicas=0)
    cluster.remove(SETTINGS)
    cluster.put(cache(store={"type": "External", "external": EXTERNAL}))

    async def settle() -> None:
        for _ in range(4):
            await keep_cache(cluster)
            await until_quiet(cluster)

    await settle()
    assert ENGINES not in cluster.objects, "engines would load a model, and find no store"
    assert "Secret login with the key password does not exist in default" in message(cluster, "EnginesReady")
    cluster.put(login("old"))
    await settle()
    before = template(cluster)
    cluster.put(login("new"))
    await settle()
    assert template(cluster) != before
    cluster.remove(Ref(SECRET, "default", "login"))
    await settle()
    assert ENGINES in cluster.objects


def test_settings_of_another_cache_of_the_name_do_not_count() -> None:
    def of(uid: str, generation: int) -> PrefixCache:
        metadata = {"name": "kv", "namespace": "llm", "uid": uid, "generation": generation}
        return PrefixCache.parse({"metadata": metadata})

    mine = of("1", 3)
    settings = config_map(mine)["metadata"]["annotations"][names.CONFIG_ANNOTATION]
    assert written_settings(mine, config_map(mine)) == settings
    assert written_settings(mine, config_map(of("1", 4))) == settings, "a pool may have read an older spec"
    assert written_settings(mine, config_map(of("1", 2))) is None
    assert written_settings(mine, config_map(of("2", 3))) is None
    assert written_settings(mine, None) is None


def test_nobody_can_guess_a_password_by_what_anybody_may_read() -> None:
    metadata = {"name": "kv", "namespace": "llm", "uid": "1", "generation": 1}
    subject = PrefixCache.parse({"metadata": metadata, "spec": {"store": {"type": "External", "external": EXTERNAL}}})
    told = [config_map(subject, Login("me", "1234", key)) for key in (b"of one cache", b"of another")]
    digests = {written_settings(subject, each) for each in told}
    assert len(digests) == 2, "whoever tries passwords needs the key, which lies beside the password"
    assert all("1234" not in str(each) for each in told)

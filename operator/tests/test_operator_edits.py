"""What an edit of a PrefixCache does to the pods of its pools: which edits replace them, when, and which do not."""

from typing import Any

import pytest
from fakes import FakeCluster
from test_operator_inferencepool import ENGINES, a_cluster, conditions, put_cache, reconcile, until_quiet

from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.desired.config import config_map, is_written
from shadowserve_operator.kinds import CONFIG_MAP, PREFIX_CACHE, Json, Ref

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


@pytest.mark.parametrize("change", [{"credentialsSecretRef": {"name": "b"}}, {"tls": {"caSecretRef": {"name": "ca"}}}])
async def test_another_secret_of_an_external_store_rolls_the_pods(change: Json) -> None:
    def external(**changes: Any) -> Json:
        store = {"endpoints": ["valkey:6379"], "credentialsSecretRef": {"name": "a"}, "tls": {}, **changes}
        return {"type": "External", "external": store}

    cluster = a_cluster()
    put_cache(cluster, store=external())
    await until_quiet(cluster)
    before = template(cluster)
    put_cache(cluster, generation=2, store=external(**change))
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


def test_settings_of_another_cache_of_the_name_do_not_count() -> None:
    def cache(uid: str, generation: int) -> PrefixCache:
        metadata = {"name": "kv", "namespace": "llm", "uid": uid, "generation": generation}
        return PrefixCache.parse({"metadata": metadata})

    mine = cache("1", 3)
    assert is_written(mine, config_map(mine))
    assert is_written(mine, config_map(cache("1", 4))), "a pool may have read an older spec"
    assert not is_written(mine, config_map(cache("1", 2)))
    assert not is_written(mine, config_map(cache("2", 3)))
    assert not is_written(mine, None)

"""A store that is silent for a moment: nobody is told that the cache is not ready before it has lasted."""

from datetime import datetime, timedelta

import pytest
from cache_on_a_cluster import (
    CACHE,
    NOW,
    SETTINGS,
    a_cluster,
    become_ready,
    cache,
    conditions,
    message,
    reconcile,
    until_quiet,
)
from fakes import FakeCluster, FakeNetwork

from shadowserve_crds.conditions import Condition, Reason, condition, merged
from shadowserve_crds.prefixcache import PrefixCacheStatus, StoreStatus
from shadowserve_operator.desired.external_store import Finding
from shadowserve_operator.desired.sharding import ShardPlan, StoreSeen
from shadowserve_operator.desired.store_grace import GRACE, grace_left, with_grace
from shadowserve_operator.reconcile import reconcile_prefixcache
from shadowserve_operator.worker import Pace

_WHO = "kv-store-0 at 10.2.0.0: no answer in time"
_SILENT = StoreSeen(ShardPlan((), "0 of 1 store servers answer", 1), {"kv-store-0": _WHO})
_REFUSED = StoreSeen(ShardPlan((), "300 slots move", 1, 1, covered=True), trouble="kv-store-0: keys cannot go")
_READY, _FALSE = ("True", "Succeeded"), condition("StoreReady", False, "Unreachable", "silent")
_MOMENT, _LONG = timedelta(seconds=5), GRACE


def _status(ready: bool, since: datetime | None) -> PrefixCacheStatus:
    said = merged((), [condition("StoreReady", ready, Reason.SUCCEEDED, "")], 1, NOW)
    silent_since = since.strftime("%Y-%m-%dT%H:%M:%SZ") if since else None
    return PrefixCacheStatus(conditions=list(said), store=StoreStatus(silent_since=silent_since))


def _found(before: PrefixCacheStatus, silence: str = _WHO, found: Condition = _FALSE) -> tuple[str, str, str | None]:
    said, since = with_grace(before, found, silence, NOW)
    return str(said.status), said.reason, since


@pytest.mark.parametrize(
    ("lasted", "says"), [(None, "True"), (_MOMENT, "True"), (_LONG, "False"), (timedelta(days=1), "False")]
)
def test_a_silence_counts_when_it_has_lasted(lasted: timedelta | None, says: str) -> None:
    status, reason, since = _found(_status(True, None if lasted is None else NOW - lasted))
    assert (status, reason) == (says, "Pending" if says == "True" else "Unreachable")
    assert since is not None
    assert datetime.fromisoformat(since) == NOW - (lasted or timedelta())


def test_a_store_that_never_was_ready_gets_no_grace() -> None:
    assert _found(_status(False, None))[:2] == ("False", "Unreachable")
    assert _found(PrefixCacheStatus())[:2] == ("False", "Unreachable")


def test_what_is_no_silence_is_told_at_once_and_ends_the_count() -> None:
    assert _found(_status(True, NOW - _MOMENT), silence="") == ("False", "Unreachable", None)
    fine = condition("StoreReady", True, Reason.SUCCEEDED, "1 of 1 shards serve")
    assert _found(_status(True, NOW - _MOMENT), found=fine) == ("True", "Succeeded", None)


def test_when_the_grace_ends_is_known() -> None:
    assert grace_left(_status(True, NOW - _MOMENT), NOW) == (_LONG - _MOMENT).total_seconds()
    assert grace_left(_status(True, NOW - 2 * _LONG), NOW) == 0
    assert grace_left(_status(True, None), NOW) is None
    assert grace_left(_status(False, NOW), NOW) is None


async def _serving() -> FakeCluster:
    cluster = a_cluster()
    await until_quiet(cluster)
    become_ready(cluster)
    await until_quiet(cluster)
    assert conditions(cluster)["Ready"] == _READY
    return cluster


def _since(cluster: FakeCluster, kind: str) -> str:
    listed = cluster.objects[CACHE]["status"]["conditions"]
    return str(next(each["lastTransitionTime"] for each in listed if each["type"] == kind))


@pytest.mark.parametrize("seen", [_SILENT, _REFUSED], ids=["silent", "refuses"])
async def test_a_cache_stays_ready_while_a_server_is_silent_for_a_moment(seen: StoreSeen) -> None:
    cluster, network = await _serving(), FakeNetwork()
    events, since = len(cluster.events), _since(cluster, "Ready")
    network.store = seen
    told = await reconcile(cluster, NOW, network)
    assert not told.settled
    assert told.again == GRACE.total_seconds()
    for seconds in (5, 15, 29):  # each look may be another operator's: nothing is remembered but the status
        result = await reconcile(cluster, NOW + timedelta(seconds=seconds), network)
        assert result.writes == 0, "a silence is told once"
        assert result.again == GRACE.total_seconds() - seconds
        assert Pace(60.0).after(result) <= result.again, "the end of it is noticed"
    assert conditions(cluster)["StoreReady"] == ("True", "Pending")
    assert "kv-store-0" in message(cluster, "StoreReady")
    assert "since 2026-11-24T12:00:00Z" in message(cluster, "StoreReady")
    network.store = None
    await until_quiet(cluster, NOW + timedelta(seconds=29), network)
    assert conditions(cluster)["StoreReady"] == _READY
    assert "silentSince" not in cluster.objects[CACHE]["status"]["store"]
    assert (len(cluster.events), _since(cluster, "Ready")) == (events, since), "nobody was alarmed"


@pytest.mark.parametrize(("seen", "reason"), [(_SILENT, "Unreachable"), (_REFUSED, "Error")], ids=["silent", "refuses"])
async def test_a_silence_that_lasts_is_told_with_its_reason_and_heals_at_once(seen: StoreSeen, reason: str) -> None:
    cluster, network = await _serving(), FakeNetwork()
    network.store = seen
    await until_quiet(cluster, NOW, network)
    result = await until_quiet(cluster, NOW + GRACE, network)
    assert conditions(cluster)["StoreReady"] == ("False", reason)
    assert conditions(cluster)["Ready"] == ("False", reason)
    assert result.again is None
    assert (await reconcile(cluster, NOW + 2 * GRACE, network)).writes == 0
    network.store = None
    await until_quiet(cluster, NOW + 2 * GRACE, network)
    assert conditions(cluster)["Ready"] == _READY


async def test_servers_that_start_silent_use_up_no_grace_of_those_that_serve() -> None:
    cluster, network = await _serving(), FakeNetwork()
    starts = {"kv-store-1": "kv-store-1 at 10.2.0.1: connection refused"}
    network.store = StoreSeen(ShardPlan((), "1 of 2 store servers answer", 2, 1, covered=True), starts)
    await until_quiet(cluster, NOW, network)
    network.store = _SILENT
    await until_quiet(cluster, NOW + 2 * GRACE, network)
    assert conditions(cluster)["StoreReady"] == ("True", "Pending")


async def test_slots_that_nobody_has_are_told_at_once() -> None:
    cluster, network = await _serving(), FakeNetwork()
    network.store = StoreSeen(ShardPlan((), "slots are given out", 1, 0), trouble="kv-store-0: no")
    await until_quiet(cluster, NOW, network)
    assert conditions(cluster)["StoreReady"] == ("False", "Error")


async def test_a_silence_counts_from_when_it_was_found_not_from_when_the_look_began() -> None:
    cluster, network = await _serving(), FakeNetwork()
    network.store = _SILENT
    clock = iter([NOW, NOW + timedelta(seconds=25)])
    await reconcile_prefixcache(cluster, "default", "kv", SETTINGS, lambda: next(clock), network)
    assert cluster.objects[CACHE]["status"]["store"]["silentSince"] == "2026-11-24T12:00:25Z"


async def test_an_external_store_has_the_same_grace() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    cluster.put(cache(store={"type": "External", "external": {"endpoints": ["127.0.0.1:1"]}}))
    await until_quiet(cluster, NOW, network)
    network.found["127.0.0.1:1"] = (Finding.SILENT, "refused")
    await until_quiet(cluster, NOW, network)
    assert conditions(cluster)["StoreReady"] == ("True", "Pending")
    await until_quiet(cluster, NOW + GRACE, network)
    assert conditions(cluster)["StoreReady"] == ("False", "Unreachable")
    network.found["127.0.0.1:1"] = (Finding.CLUSTER, "")
    await until_quiet(cluster, NOW + GRACE, network)
    assert conditions(cluster)["StoreReady"] == ("False", "TopologyMismatch")

"""What DPUBindings say of cards and hosts that do not belong together, and that it heals; on a cluster in memory."""

import pytest
from cache_on_a_cluster import (
    CACHE,
    NOW,
    SETTINGS,
    a_cluster,
    become_ready,
    cache,
    card,
    conditions,
    engine,
    kept,
    message,
    node,
    plane,
    until_quiet,
)
from fakes import FakeCluster, FakeNetwork

from shadowserve_crds import names
from shadowserve_operator.desired.round_trip import Word
from shadowserve_operator.errors import Forbidden
from shadowserve_operator.kinds import DPU_BINDING, NODE, Json, Ref
from shadowserve_operator.reconcile import forget_prefixcache, reconcile_prefixcache
from shadowserve_operator.settings import OperatorSettings

CARD = Ref(DPU_BINDING, "", "card-0")
MINE = Ref(DPU_BINDING, "", "mine")
LONG = "host-" + "x" * 60


def by_hand(name: str, host: str, on: str) -> Json:
    spec = {"hostNode": host, "dpuNode": on, "source": "Manual"}
    return {"apiVersion": names.API_VERSION, "kind": "DPUBinding", "metadata": {"name": name}, "spec": spec}


def says(cluster: FakeCluster, name: str) -> tuple[str, str]:
    """Return reason and message of a binding's PairingValid."""
    listed = cluster.objects[Ref(DPU_BINDING, "", name)].get("status", {}).get("conditions", [])
    found = {each["type"]: (each["reason"], each["message"]) for each in listed}
    return found.get("PairingValid", ("", ""))


@pytest.mark.parametrize(
    ("label", "reason", "message"),
    [
        ("", "HostNotFound", f"kubectl label --overwrite node card-0 {names.DEFAULT_HOST_LABEL}=HOST_NODE, or write"),
        ("host-9", "HostNotFound", "names host-9, which is no node; correct it, or let the host join"),
        ("card-0", "SelfPair", "names the card itself; name the host that it sits in"),
        ("card-1", "AmbiguousHost", "names card-1, which is a card itself; name the host"),
        (LONG[:63], "NameTooLong", f"the node is called {LONG}"),
    ],
)
async def test_a_card_whose_label_names_no_host_of_its_own_says_so_and_heals(
    label: str, reason: str, message: str
) -> None:
    cluster = a_cluster()
    cluster.put(card("card-0", label))
    cluster.put(card("card-1", "host-0"))
    cluster.put(node(LONG))
    await until_quiet(cluster)
    assert cluster.objects[CARD]["spec"]["hostNode"] == ""
    assert says(cluster, "card-0")[0] == reason
    assert message in says(cluster, "card-0")[1]
    assert says(cluster, "card-1")[0] == "Succeeded"
    cluster.put(card("card-0", "host-0"))
    await until_quiet(cluster)
    assert cluster.objects[CARD]["spec"]["hostNode"] == "host-0"
    assert says(cluster, "card-0") == ("Succeeded", "card card-0 sits in host host-0")


@pytest.mark.parametrize(
    ("bodies", "reason", "look"),
    [
        ([], "NoPod", "kubectl get pods -A -o wide -l app.kubernetes.io/component=data-plane"),
        ([plane("card-0", ready=False)], "Pending", "kubectl get pods -A -o wide -l app.kubernetes.io/component=data"),
        ([plane("card-0"), card("card-0", "host-0", ready=False)], "NodeNotReady", "kubectl describe node card-0"),
    ],
)
async def test_a_card_whose_data_plane_does_not_answer_says_where_to_look(
    bodies: list[Json], reason: str, look: str
) -> None:
    cluster = a_cluster()
    for body in bodies:
        cluster.put(body)
    await until_quiet(cluster)
    listed = cluster.objects[CARD]["status"]["conditions"]
    found = next(each for each in listed if each["type"] == "DataPlaneReachable")
    assert found["reason"] == reason
    assert f"; see {look}" in found["message"]


@pytest.mark.parametrize(
    ("host", "on", "reason", "message"),
    [
        ("host-9", "card-0", "HostNotFound", "DPUBinding mine names host-9, which is no node"),
        ("card-0", "card-0", "SelfPair", "DPUBinding mine names the card itself"),
        ("card-1", "card-0", "AmbiguousHost", "which is a card itself; name the host"),
        ("host-0", "card-9", "CardNotFound", "spec.dpuNode card-9 is no node; correct it, or let the card join"),
        ("host-1", "host-0", "CardNotFound", "no PrefixCache uses node host-0 as a card; correct spec.dpuNode"),
    ],
)
async def test_a_binding_by_hand_says_what_is_wrong_with_it_and_heals(
    host: str, on: str, reason: str, message: str
) -> None:
    cluster = a_cluster()
    cluster.put(card("card-1", "host-0"))
    cluster.put(node("host-1"))
    cluster.put(by_hand("mine", host, on))
    await until_quiet(cluster)
    assert conditions(cluster, MINE)["PairingValid"] == ("False", reason)
    assert message in says(cluster, "mine")[1]
    cluster.put(by_hand("mine", "host-1", "card-0"))
    await until_quiet(cluster)
    assert says(cluster, "mine") == ("Succeeded", "card card-0 sits in host host-1")


async def test_bindings_by_hand_that_contradict_each_other_both_say_so_until_one_is_left() -> None:
    cluster = a_cluster()
    cluster.put(node("host-1"))
    cluster.put(by_hand("one", "host-0", "card-0"))
    cluster.put(by_hand("two", "host-1", "card-0"))
    await until_quiet(cluster)
    for each in ("one", "two"):
        assert says(cluster, each) == (
            "AmbiguousHost",
            "card card-0: DPUBindings one, two name the hosts host-0, host-1; keep one",
        )
    cluster.remove(Ref(DPU_BINDING, "", "one"))
    await until_quiet(cluster)
    assert says(cluster, "two")[0] == "Succeeded"
    assert kept(cluster, DPU_BINDING) == ["two"]


async def test_of_two_caches_one_tells_and_nothing_is_written_to_and_fro() -> None:
    cluster = a_cluster()
    other = {"dpu": {"hostLabelKey": "example.org/host"}}
    cluster.put(cache("another", placement=other))  # first by name, and knows none of the cards
    cluster.put(by_hand("nowhere", "host-0", "card-9"))
    for name in ("another", "kv"):
        await _settle(cluster, name)
    assert says(cluster, "card-0")[0] == "Succeeded"
    assert says(cluster, "nowhere")[0] == "CardNotFound"
    before = len(cluster.writes)
    for name in ("another", "kv"):
        await _settle(cluster, name)
    assert len(cluster.writes) == before


async def a_healthy_binding_by_hand() -> FakeCluster:
    cluster = a_cluster()
    cluster.put(by_hand("mine", "host-0", "card-0"))
    await until_quiet(cluster)
    become_ready(cluster)
    await until_quiet(cluster)
    assert cluster.objects[MINE]["status"]["healthy"]
    return cluster


def assert_says_nothing(cluster: FakeCluster) -> None:
    status = cluster.objects[MINE]["status"]
    assert (status["healthy"], status["endpoint"], status["conditions"]) == (False, "", [])


async def test_a_binding_by_hand_says_nothing_once_no_cache_is_left_to_say_it() -> None:
    cluster = await a_healthy_binding_by_hand()
    cluster.objects[CACHE]["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    assert await forget_prefixcache(cluster, "default", "kv", SETTINGS)
    assert_says_nothing(cluster)
    assert not await forget_prefixcache(cluster, "default", "kv", SETTINGS)


async def test_a_binding_by_hand_says_nothing_once_the_last_cache_stops_using_cards() -> None:
    cluster = await a_healthy_binding_by_hand()
    cluster.objects[CACHE]["spec"] = {"placement": {"order": ["Host"]}}
    await until_quiet(cluster)
    assert_says_nothing(cluster)


async def test_with_the_host_first_no_host_is_missed_by_its_card() -> None:
    cluster = a_cluster()
    cluster.objects[CACHE]["spec"] = {"placement": {"order": ["Host", "DPU"]}}
    cluster.put(engine("one", "host-0"))
    await until_quiet(cluster)
    become_ready(cluster)
    await until_quiet(cluster)
    assert cluster.objects[CACHE]["status"]["unhealthyHosts"] == []
    assert cluster.objects[CACHE]["status"]["dataPlanes"]["onHost"] == 1


async def test_with_the_host_first_a_dead_card_is_told_and_the_cache_is_ready_without_it() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    cluster.objects[CACHE]["spec"] = {"placement": {"order": ["Host", "DPU"]}}
    await until_quiet(cluster)
    become_ready(cluster)
    network.said["10.1.0.9:9466"] = (Word.FAILED, "store", "refused")
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["Ready"] == ("True", "Succeeded"), "no pod fetches through the card's data plane"
    cluster.put(card("card-0", "host-0", ready=False))
    cluster.put(card("card-1", "nowhere"))
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["DataPlaneReady"] == ("False", "Pending")
    assert message(cluster, "DataPlaneReady").startswith("0 of 2 data planes serve; not on card-0, card-1; ")
    assert "no pod misses them" in message(cluster, "DataPlaneReady")
    assert conditions(cluster)["PairingResolved"] == ("False", "HostNotFound")
    assert conditions(cluster)["Ready"] == ("True", "Succeeded")


async def test_a_card_that_leaves_takes_its_binding_with_it() -> None:
    cluster = a_cluster()
    cluster.put(card("card-0", "nowhere"))
    await until_quiet(cluster)
    assert kept(cluster, DPU_BINDING) == ["card-0"]
    cluster.remove(Ref(NODE, "", "card-0"))
    await until_quiet(cluster)
    assert kept(cluster, DPU_BINDING) == []


async def _settle(cluster: FakeCluster, name: str) -> None:
    for _ in range(10):
        result = await reconcile_prefixcache(cluster, "default", name, SETTINGS, lambda: NOW, FakeNetwork())
        if not result.writes:
            return
    raise AssertionError(f"still writing: {cluster.writes[-5:]}")


async def test_a_watched_namespace_that_may_not_be_read_holds_up_its_own_caches_only() -> None:
    cluster, settings = a_cluster(), OperatorSettings(namespaces=("default", "chat"))
    cluster.namespaces.add("chat")
    cluster.put({**cache(), "metadata": {"name": "kv", "namespace": "chat"}})

    async def reconciled(namespace: str) -> None:
        await reconcile_prefixcache(cluster, namespace, "kv", settings, lambda: NOW, FakeNetwork())

    cluster.unreadable.add("chat")
    await reconciled("default")
    assert kept(cluster, DPU_BINDING) == ["card-0"]
    with pytest.raises(Forbidden):
        await reconciled("chat")
    deleted = {**cluster.objects[CACHE]["metadata"], "deletionTimestamp": "2026-11-24T12:00:00Z"}
    cluster.put({**cluster.objects[CACHE], "metadata": deleted})
    await forget_prefixcache(cluster, "default", "kv", settings)
    assert kept(cluster, DPU_BINDING) == [], "what nobody is known to need"
    cluster.unreadable.clear()
    await reconciled("chat")
    assert kept(cluster, DPU_BINDING) == ["card-0"]

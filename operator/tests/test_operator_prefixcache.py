"""A PrefixCache from creation to deletion on a cluster in memory, faults included."""

import json
import re
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cache_on_a_cluster import (
    CACHE,
    NOW,
    SETTINGS,
    a_cluster,
    annotation,
    become_ready,
    cache,
    card,
    conditions,
    engine,
    kept,
    message,
    node,
    plane,
    reconcile,
    server,
    until_quiet,
)
from fakes import FakeCluster, FakeNetwork, Killed

from shadowserve_crds import names
from shadowserve_dataplane.sidecar.settings import parse_config
from shadowserve_operator.desired.attachment import EngineState, SidecarSays
from shadowserve_operator.desired.round_trip import Plane, Word
from shadowserve_operator.kinds import (
    CONFIG_MAP,
    DAEMON_SET,
    DPU_BINDING,
    NODE,
    POD,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    Ref,
)
from shadowserve_operator.metrics import OperatorMetrics
from shadowserve_operator.reconcile import forget_prefixcache


async def test_a_cache_becomes_ready_and_then_nothing_is_written() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    assert conditions(cluster)["Ready"] == ("False", "Pending")
    assert message(cluster, "StoreReady") == (
        "0 of 1 store servers are ready; see kubectl -n default get pods -o wide "
        "-l app.kubernetes.io/component=store,shadowserve.io/cache=kv"
    )
    become_ready(cluster)
    await until_quiet(cluster)
    assert conditions(cluster) == {
        "StoreReady": ("True", "Succeeded"),
        "DataPlaneReady": ("True", "Succeeded"),
        "PairingResolved": ("True", "Succeeded"),
        "CertificatesReady": ("True", "Succeeded"),
        "RoundTripVerified": ("True", "Succeeded"),
        "PodsInjected": ("True", "Succeeded"),
        "Ready": ("True", "Succeeded"),
    }
    status = cluster.objects[CACHE]["status"]
    assert (status["store"]["shown"], status["dataPlanes"]["shown"]) == ("1/1", "1/1")
    before = len(cluster.writes)
    for minute in range(5):
        await reconcile(cluster, NOW + timedelta(minutes=minute))
    assert len(cluster.writes) == before


async def test_the_sidecar_takes_the_configuration() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    text = cluster.objects[Ref(CONFIG_MAP, "default", "kv-config")]["data"]["config.json"]
    config = parse_config(text)
    assert config.store.endpoints == ["kv-store.default.svc:6379"]
    assert config.store.tls is not None
    assert json.loads(text)["tier"] == "Balanced"


async def test_engines_cannot_read_what_rules_the_store() -> None:
    cluster = a_cluster()
    await reconcile(cluster)
    shared = cluster.objects[Ref(SECRET, "default", "kv-secrets")]["data"]
    assert set(shared) == {"store-password", "store-password-quoted", "salt"}
    users = b64decode(cluster.objects[Ref(SECRET, "default", "kv-store-users")]["data"]["users.acl"]).decode()
    assert "user default off" in users
    sidecar = next(line for line in users.splitlines() if "shadowserve-sidecar" in line)
    assert "-@all" in sidecar
    assert "+@" not in sidecar


async def test_passwords_and_certificates_stay_what_they_are() -> None:
    cluster = a_cluster()
    await reconcile(cluster)
    before = {ref: body["data"] for ref, body in cluster.objects.items() if ref.kind == SECRET}
    await reconcile(cluster, NOW + timedelta(days=1))
    assert {ref: body["data"] for ref, body in cluster.objects.items() if ref.kind == SECRET} == before


async def test_certificates_are_renewed_before_they_expire_and_the_password_is_not() -> None:
    cluster = a_cluster()
    await reconcile(cluster)
    leaf, password = Ref(SECRET, "default", "kv-store-tls"), Ref(SECRET, "default", "kv-secrets")
    before = {ref: dict(cluster.objects[ref]["data"]) for ref in (leaf, password)}
    await reconcile(cluster, NOW + timedelta(days=61))
    after = cluster.objects[leaf]["data"]
    assert after["tls.crt"] != before[leaf]["tls.crt"]
    assert after["ca.crt"] == before[leaf]["ca.crt"]
    assert cluster.objects[password]["data"] == before[password]


async def test_the_time_that_certificates_have_left_is_counted() -> None:
    cluster, metrics = a_cluster(), OperatorMetrics()
    now = datetime.now(UTC)
    await reconcile(cluster, now)
    metrics.expires("default", "kv", (await reconcile(cluster, now)).expires)
    labels = {"namespace": "default", "name": "kv"}
    left = metrics.registry.get_sample_value("shadowserve_certificate_expiry_seconds", labels)
    assert left is not None
    assert 89 * 86400 < left <= 90 * 86400
    metrics.expires("default", "kv", None)
    assert metrics.registry.get_sample_value("shadowserve_certificate_expiry_seconds", labels) is None


async def test_an_edit_and_a_deletion_are_repaired() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    service, store = Ref(SERVICE, "default", "kv-store"), Ref(STATEFUL_SET, "default", "kv-store")
    cluster.remove(service)
    cluster.objects[store]["spec"]["replicas"] = 0
    await until_quiet(cluster)
    assert service in cluster.objects
    assert cluster.objects[store]["spec"]["replicas"] == 1


async def test_somebody_elses_object_is_left_alone_and_told() -> None:
    cluster = a_cluster()
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kv-store", "namespace": "default"}}
    cluster.put(theirs | {"spec": {"selector": {"app": "theirs"}}})
    await until_quiet(cluster)
    assert cluster.objects[Ref(SERVICE, "default", "kv-store")]["spec"] == {"selector": {"app": "theirs"}}
    assert conditions(cluster)["StoreReady"] == ("False", "Error")
    assert "rename or delete it" in message(cluster, "StoreReady")


async def test_a_card_without_its_host_is_told_and_heals() -> None:
    cluster = a_cluster()
    cluster.remove(Ref(NODE, "", "host-0"))
    await until_quiet(cluster)
    assert conditions(cluster)["PairingResolved"] == ("False", "HostNotFound")
    assert kept(cluster, DPU_BINDING) == ["card-0"]
    cluster.put(node("host-0"))
    await until_quiet(cluster)
    assert conditions(cluster)["PairingResolved"] == ("True", "Succeeded")
    assert kept(cluster, DPU_BINDING) == ["card-0"]


async def test_pods_follow_the_card_and_come_back_after_a_while() -> None:
    cluster = a_cluster()
    cluster.put(engine("engine", "host-0"))
    await until_quiet(cluster)
    assert annotation(cluster, "engine") == ""
    cluster.put(plane("card-0", since=NOW))
    await until_quiet(cluster, NOW + timedelta(seconds=10))
    assert annotation(cluster, "engine") == ""
    await until_quiet(cluster, NOW + timedelta(seconds=31))
    assert annotation(cluster, "engine") == "10.1.0.9:9464"
    cluster.put(card("card-0", "host-0", ready=False))
    await reconcile(cluster, NOW + timedelta(seconds=40))
    assert annotation(cluster, "engine") == ""
    assert cluster.objects[CACHE]["status"]["unhealthyHosts"] == ["host-0"]


async def test_a_binding_tells_where_the_data_plane_is() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    become_ready(cluster)
    await until_quiet(cluster)
    binding = Ref(DPU_BINDING, "", "card-0")
    assert cluster.objects[binding]["spec"] == {"hostNode": "host-0", "dpuNode": "card-0", "source": "Label"}
    assert cluster.objects[binding]["status"]["endpoint"] == "10.1.0.9:9464"
    assert conditions(cluster, binding)["DataPlaneReachable"] == ("True", "Succeeded")


async def test_a_canary_that_fails_is_told_for_its_data_plane_and_heals() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    await until_quiet(cluster)
    become_ready(cluster)
    network.said["10.1.0.9:9466"] = (Word.FAILED, "store", "kv-store:6379: refused")
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["RoundTripVerified"] == ("False", "Error")
    assert conditions(cluster)["Ready"] == ("False", "Error")
    assert "the data plane on card-0, at store: kv-store:6379: refused" in message(cluster, "Ready")
    network.said.clear()
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["Ready"] == ("True", "Succeeded")


async def test_a_data_plane_that_cannot_be_asked_is_told_and_does_not_count_as_broken() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    await until_quiet(cluster)
    become_ready(cluster)
    network.said["10.1.0.9:9466"] = (Word.UNREACHABLE, "", "no answer")
    assert (await until_quiet(cluster, network=network)).settled
    assert conditions(cluster)["RoundTripVerified"] == ("Unknown", "Unreachable")
    assert "10.1.0.9:9466" in message(cluster, "RoundTripVerified")
    assert conditions(cluster)["Ready"] == ("True", "Succeeded")


async def test_a_round_trip_that_is_awaited_names_its_data_plane() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    await until_quiet(cluster)
    become_ready(cluster)
    network.said["10.1.0.9:9466"] = (Word.PENDING, "", "")
    assert not (await until_quiet(cluster, network=network)).settled
    assert conditions(cluster)["RoundTripVerified"] == ("Unknown", "Pending")
    assert message(cluster, "RoundTripVerified").endswith("still waits for the data plane on card-0")


async def test_on_the_host_the_sidecars_are_asked() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    cluster.put(cache(placement={"order": ["Host"]}))
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["RoundTripVerified"] == ("Unknown", "NoDataPlane")
    assert "each engine's sidecar brings its own; see kubectl" in message(cluster, "RoundTripVerified")
    sidecar = {"name": names.SIDECAR_CONTAINER, "started": True}
    running = {"phase": "Running", "podIP": "10.3.0.1", "initContainerStatuses": [sidecar]}
    cluster.put({**engine("chat-0", "host-0"), "status": running})
    cluster.put({**engine("starting", "host-0"), "status": {"phase": "Pending"}})
    await until_quiet(cluster, network=network)
    assert conditions(cluster)["RoundTripVerified"] == ("True", "Succeeded")
    assert message(cluster, "RoundTripVerified").endswith("through the sidecar of chat-0")
    network.said["10.3.0.1:9465"] = (Word.FAILED, "fetch", "deadline")
    await until_quiet(cluster, network=network)
    assert "the sidecar of chat-0, at fetch: deadline" in message(cluster, "RoundTripVerified")


async def test_every_change_of_what_a_round_trip_depends_on_asks_for_another_one() -> None:
    cluster, network = a_cluster(), FakeNetwork()
    await until_quiet(cluster, network=network)
    calm = network.changes[-1]
    await reconcile(cluster, NOW, network)
    assert network.changes[-1] == calm
    cluster.put(server())
    await reconcile(cluster, NOW, network)
    cluster.put(server(restarts=1))
    await reconcile(cluster, NOW, network)
    await until_quiet(cluster, NOW + timedelta(days=61), network)
    cluster.put(cache(codec={"tier": "High"}))
    await reconcile(cluster, NOW, network)
    seen = list(dict.fromkeys(network.changes))
    assert len(seen) >= 5


async def test_deleting_leaves_nothing_behind() -> None:
    cluster = a_cluster()
    cluster.put(engine("engine", "host-0"))
    await until_quiet(cluster)
    cluster.objects[CACHE]["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    assert await forget_prefixcache(cluster, "default", "kv", SETTINGS) == 2
    assert await forget_prefixcache(cluster, "default", "kv", SETTINGS) == 0
    cluster.remove(CACHE)
    assert {(ref.kind.name, ref.name) for ref in cluster.objects} == {
        ("Node", "host-0"),
        ("Node", "card-0"),
        ("Pod", "engine"),
    }
    assert annotation(cluster, "engine") is None


async def test_a_binding_that_another_cache_needs_stays() -> None:
    cluster = a_cluster()
    cluster.put(cache("other"))
    await until_quiet(cluster)
    cluster.objects[CACHE]["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    await forget_prefixcache(cluster, "default", "kv", SETTINGS)
    assert kept(cluster, DPU_BINDING) == ["card-0"]


async def test_a_binding_by_hand_is_never_touched() -> None:
    cluster = a_cluster()
    spec = {"hostNode": "host-1", "dpuNode": "card-0", "source": "Manual"}
    metadata = {"name": "mine"}
    cluster.put(node("host-1"))
    cluster.put({"apiVersion": names.API_VERSION, "kind": "DPUBinding", "metadata": metadata, "spec": spec})
    await until_quiet(cluster)
    assert kept(cluster, DPU_BINDING) == ["mine"]
    cluster.objects[CACHE]["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    await forget_prefixcache(cluster, "default", "kv", SETTINGS)
    assert kept(cluster, DPU_BINDING) == ["mine"]


async def test_a_resource_that_cannot_be_parsed_says_why() -> None:
    cluster = a_cluster()
    cluster.put(cache(codec={"tier": "Enormous"}))
    await reconcile(cluster)
    assert conditions(cluster)["Ready"] == ("False", "Failed")
    assert "codec.tier" in message(cluster, "Ready")
    assert not (await reconcile(cluster)).writes


async def test_a_pod_that_opted_in_says_which_settings_it_really_read() -> None:
    cluster, network = a_cluster(), FakeNetwork()

    def stamped() -> list[str]:
        bodies = [cluster.objects[Ref(POD, "default", name)] for name in ("alone", "of-a-pool")]
        return [body["metadata"]["annotations"][names.CONFIG_ANNOTATION] for body in bodies]

    for name, labels in (("alone", {}), ("of-a-pool", {names.POOL_LABEL: "chat"})):
        body = engine(name, "host-0")
        body["metadata"]["labels"] |= labels
        body["metadata"]["annotations"][names.CONFIG_ANNOTATION] = "of then"
        started = [{"name": names.SIDECAR_CONTAINER, "started": True}]
        cluster.put({**body, "status": {"podIP": "10.0.0.1", "initContainerStatuses": started}})
    await until_quiet(cluster, network=network)
    assert stamped() == ["of then", "of then"], "who says nothing changes nothing"
    for name in ("alone", "of-a-pool"):
        network.engines[name] = SidecarSays(Plane(name, ""), EngineState.WAITING, settings="of now")
    await until_quiet(cluster, network=network)
    assert stamped() == ["of now", "of then"], "a pool's pods are replaced by what they were made for"


def _shape(cluster: FakeCluster) -> dict[str, Any]:
    """Return what must be equal whatever happened on the way: all but chance, versions and identifiers."""
    shape: dict[str, Any] = {}
    for ref, body in cluster.objects.items():
        content: Any = {key: value for key, value in body.items() if key != "metadata"}
        if ref.kind == SECRET:
            content["data"] = sorted(content["data"])
        if ref.kind in (CONFIG_MAP, DAEMON_SET):
            content = re.sub(rf"({names.LOGIN_ANNOTATION}|settings)\W+[0-9a-f]+", r"\1", json.dumps(content))
        shape[f"{ref.kind.name}/{ref.name}"] = (content, body["metadata"].get("labels"))
    return shape


async def test_ending_at_any_call_converges_to_the_same() -> None:
    def with_engine() -> FakeCluster:
        cluster = a_cluster()
        cluster.put(engine("engine", "host-0"))
        return cluster

    calm = with_engine()
    await until_quiet(calm)
    calls = len(calm.calls)
    assert calls > 30
    for k in range(calls):
        cluster = with_engine()
        cluster.die_at = k
        with pytest.raises(Killed):
            await until_quiet(cluster)
        cluster.die_at = None
        await until_quiet(cluster)
        assert _shape(cluster) == _shape(calm), f"killed at call {k}: {calm.calls[k]}"

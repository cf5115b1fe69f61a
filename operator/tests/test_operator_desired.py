"""What is rendered for a PrefixCache, read by those it is made for: the sidecar, the store client, people."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

import pytest

from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_dataplane.sidecar.settings import parse_config
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Topology
from shadowserve_operator.desired.config import config_map, sidecar_config
from shadowserve_operator.desired.dataplane import dataplane_objects
from shadowserve_operator.desired.secrets import SecretValues, access_list, secret_manifests
from shadowserve_operator.desired.store import configuration_text, managed_store, store_objects
from shadowserve_operator.settings import OperatorSettings

SETTINGS = OperatorSettings()
VALUES = SecretValues("sidecar-password", "admin-password", b"salt")
EXTERNAL = {
    "type": "External",
    "external": {
        "endpoints": ["one.example.org:6379", "two.example.org:6379"],
        "topology": "Cluster",
        "credentialsSecretRef": {"name": "login"},
    },
}


def cache(**spec: Any) -> PrefixCache:
    metadata = {"name": "shared", "namespace": "llm", "uid": "1-2-3", "generation": 1}
    return PrefixCache.parse({"metadata": metadata, "spec": spec})


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(each for each in objects if each["kind"] == kind)


def container_of(workload: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = workload["spec"]["template"]["spec"]["containers"][0]
    return found


def test_every_object_is_labelled_owned_and_hashed() -> None:
    subject = cache(store={"managed": {"shards": 3}})
    objects = [
        config_map(subject),
        *secret_manifests(subject, VALUES),
        *store_objects(subject, SETTINGS),
        *dataplane_objects(subject, SETTINGS),
    ]
    found = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(found) == len(set(found)) == 9
    for each in objects:
        metadata = each["metadata"]
        assert metadata["namespace"] == "llm"
        assert metadata["labels"][names.CACHE_LABEL] == "shared"
        assert [owner["uid"] for owner in metadata["ownerReferences"]] == ["1-2-3"]
        assert len(metadata["annotations"][names.SPEC_HASH_ANNOTATION]) == 16


def test_rendering_again_gives_the_same_bytes() -> None:
    assert store_objects(cache(), SETTINGS) == store_objects(cache(), SETTINGS)
    assert config_map(cache()) == config_map(cache())
    assert secret_manifests(cache(), VALUES) == secret_manifests(cache(), VALUES)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"security": {"transport": "Plaintext"}},
        {"store": {"managed": {"shards": 3}}, "limits": {"timeToLive": "24h"}},
        {"store": EXTERNAL},
        {"tenancy": {"isolation": "Shared"}, "placement": {"order": ["Host"]}},
        {"tenancy": {"isolation": "PerTenant"}, "codec": {"tier": "Lossless"}, "placement": {"landing": "Values"}},
    ],
)
def test_the_sidecar_understands_its_configuration(spec: dict[str, Any]) -> None:
    subject = cache(**spec)
    config = parse_config(config_map(subject)["data"]["config.json"])
    assert config.tier == subject.spec.codec.tier
    assert config.landing == subject.spec.placement.landing
    assert config.landing_buffer_bytes == 512 << 20
    assert ("Host" in config.placement.order) == ("Host" in subject.spec.placement.order)
    assert config.limits.lookup_deadline_ms == 20


def test_mutual_tls_is_on_unless_plaintext_was_asked_for() -> None:
    assert sidecar_config(cache())["placement"]["tls"]["certificateFile"] == "/etc/shadowserve/tls/tls.crt"
    assert "tls" in sidecar_config(cache())["store"]
    plain = sidecar_config(cache(security={"transport": "Plaintext"}))
    assert "tls" not in plain["placement"]
    assert "tls" not in plain["store"]


def test_a_store_of_several_shards_is_a_cluster() -> None:
    subject = cache(store={"managed": {"shards": 3, "replicasPerShard": 1}})
    assert sidecar_config(subject)["store"]["topology"] == "Cluster"
    objects = store_objects(subject, SETTINGS)
    assert of_kind(objects, "StatefulSet")["spec"]["replicas"] == 6
    assert "cluster-enabled yes" in configuration_text(subject, managed_store(subject))
    assert of_kind(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_store_gives_chunks_up_before_its_memory_limit() -> None:
    subject = cache(store={"managed": {"memoryPerShard": "4Gi", "eviction": "LeastRecentlyUsed"}})
    text = configuration_text(subject, managed_store(subject))
    assert f"maxmemory {4 << 30}\n" in text
    assert "maxmemory-policy allkeys-lru" in text
    limits = container_of(of_kind(store_objects(subject, SETTINGS), "StatefulSet"))["resources"]["limits"]
    assert int(limits["memory"]) == 5 << 30


def test_a_changed_configuration_restarts_the_store() -> None:
    def annotations(subject: PrefixCache) -> dict[str, str]:
        template = of_kind(store_objects(subject, SETTINGS), "StatefulSet")["spec"]["template"]
        found: dict[str, str] = template["metadata"]["annotations"]
        return found

    assert annotations(cache()) != annotations(cache(store={"managed": {"memoryPerShard": "2Gi"}}))
    assert annotations(cache()) == annotations(cache(store={"managed": {"eviction": "LeastRecentlyUsed"}}))
    assert annotations(cache()) == annotations(cache(codec={"tier": "High"}))


def test_storage_becomes_a_volume_claim() -> None:
    subject = cache(store={"managed": {"storage": {"size": "20Gi", "storageClassName": "fast"}}})
    spec = of_kind(store_objects(subject, SETTINGS), "StatefulSet")["spec"]
    claim = spec["volumeClaimTemplates"][0]["spec"]
    assert (claim["resources"]["requests"]["storage"], claim["storageClassName"]) == ("20Gi", "fast")
    assert "data" not in {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert "appendonly yes" in configuration_text(subject, managed_store(subject))
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Delete"}


def test_an_external_store_gets_no_objects() -> None:
    assert store_objects(cache(store=EXTERNAL), SETTINGS) == []


def test_secrets_that_exist_are_kept() -> None:
    shared, private = secret_manifests(cache(), VALUES)
    kept = SecretValues.read({**shared["data"], **private["data"]}, SecretValues("new", "new", b"new"))
    assert kept == VALUES
    half = SecretValues.read({"salt": b64encode(b"old").decode()}, VALUES)
    assert half == SecretValues("sidecar-password", "admin-password", b"old")


def test_the_access_list_holds_no_password_in_clear() -> None:
    text = b64decode(secret_manifests(cache(), VALUES)[1]["data"]["users.acl"]).decode()
    assert text == access_list(VALUES)
    assert "password" not in text
    assert "user default off" in text


def test_data_planes_run_where_cards_name_their_host_and_nowhere_without_cards() -> None:
    daemon_set = of_kind(dataplane_objects(cache(), SETTINGS), "DaemonSet")
    affinity = daemon_set["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [{"key": names.DEFAULT_HOST_LABEL, "operator": "Exists"}]}]
    assert dataplane_objects(cache(placement={"order": ["Host"]}), SETTINGS) == []


def test_a_data_plane_gets_what_was_asked_for_requests_equal_to_limits() -> None:
    dpu = {
        "resources": {"cpu": 8, "memory": "6Gi"},
        "extendedResources": {"nvidia.com/bf_sf": 1},
        "hugepages": {"pageSize": "2Mi", "size": "2Gi"},
        "rdma": {"mode": "SharedDevice", "resourceName": "rdma/shared_a"},
    }
    container = container_of(dataplane_objects(cache(placement={"dpu": dpu}), SETTINGS)[0])
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"] == {
        "cpu": "8",
        "memory": "6Gi",
        "nvidia.com/bf_sf": "1",
        "hugepages-2Mi": "2Gi",
        "rdma/shared_a": "1",
    }
    assert container["command"][:4] == ["shadowserve-dataplane", "serve", "--workers", "8"]


@pytest.mark.parametrize(
    ("spec", "topology", "user"),
    [
        ({"security": {"transport": "Plaintext"}}, Topology.CLUSTER, "shadowserve-sidecar"),
        ({"store": EXTERNAL}, Topology.CLUSTER, None),
        ({"store": {"managed": {"shards": 2}}}, Topology.CLUSTER, "shadowserve-sidecar"),
    ],
)
def test_the_store_client_understands_the_data_planes_url(
    spec: dict[str, Any], topology: Topology, user: str | None
) -> None:
    container = container_of(dataplane_objects(cache(**spec), SETTINGS)[0])
    variables = {variable["name"]: variable for variable in container["env"]}
    assert list(variables) == ["STORE_PASSWORD", "SHADOWSERVE_STORE"], "a variable refers to those before it"
    url = variables["SHADOWSERVE_STORE"]["value"].replace("$(STORE_PASSWORD)", "secret")
    settings = StoreSettings.parse_url(url)
    assert (settings.topology, settings.username, settings.password) == (topology, user, "secret")
    assert settings.endpoints


def test_pods_of_ours_keep_the_restricted_pod_security_standard() -> None:
    for workload in (*store_objects(cache(), SETTINGS), *dataplane_objects(cache(), SETTINGS)):
        if "template" in workload.get("spec", {}):
            security = container_of(workload)["securityContext"]
            assert (security["runAsNonRoot"], security["allowPrivilegeEscalation"]) == (True, False)
            assert json.dumps(workload).count("hostPath") == 0

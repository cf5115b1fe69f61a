"""Injection: a stock pod gets exactly what the cache needs; what the user wrote stays; refusals say what to do."""

import copy
import json
from typing import Any

import pytest

from shadowserve_crds import names
from shadowserve_crds.quantities import Quantity
from shadowserve_dataplane.connector.settings import ConnectorSettings
from shadowserve_operator.desired.sidecar import Injected, SidecarTerms, Unchanged, inject

TERMS = SidecarTerms(
    version="1",
    image="registry.example.org/shadowserve-dataplane:1",
    cache="shared",
    config_map="shared-config",
    secret="shared-secrets",
    tls_secret="shared-sidecar-tls",
    cpu=Quantity("1"),
    memory=Quantity("1Gi"),
    landing_bytes=512 << 20,
    staging_bytes=128 << 20,
)


def pod(**engine: Any) -> dict[str, Any]:
    container = {"name": "vllm", "image": "vllm/vllm-openai:v0.32.0", "args": ["--model", "/model"], **engine}
    return {"metadata": {"name": "p", "labels": {"app": "x"}}, "spec": {"containers": [container]}}


def injected(body: dict[str, Any], terms: SidecarTerms = TERMS) -> dict[str, Any]:
    result = inject(body, terms)
    assert isinstance(result, Injected), result
    return result.pod


def refused(body: dict[str, Any]) -> str:
    before = copy.deepcopy(body)
    result = inject(body, TERMS)
    assert isinstance(result, Unchanged)
    assert not result.settled
    assert body == before
    return result.reason


def named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


def test_the_engine_gets_the_connector_and_keeps_its_own_arguments() -> None:
    engine = injected(pod())["spec"]["containers"][0]
    assert engine["args"][:3] == ["--model", "/model", "--kv-transfer-config"]
    config = json.loads(engine["args"][3])
    assert config["kv_load_failure_policy"] == "recompute"
    assert ConnectorSettings.parse(config["kv_connector_extra_config"]) == ConnectorSettings()
    assert named(engine["env"], "PYTHONPATH")["value"] == names.CONNECTOR_FOLDER
    assert named(engine["env"], "PYTHONHASHSEED")["value"] == "0"


def test_what_the_user_set_stays() -> None:
    variables = [{"name": "PYTHONPATH", "value": "/opt/engine"}, {"name": "PYTHONHASHSEED", "value": "7"}]
    mounts = [{"name": "mine", "mountPath": "/dev/shm/"}]
    body = pod(env=variables, volumeMounts=mounts)
    body["spec"]["volumes"] = [{"name": "mine", "emptyDir": {"medium": "Memory"}}]
    spec = injected(body)["spec"]
    engine = spec["containers"][0]
    assert named(engine["env"], "PYTHONPATH")["value"] == f"{names.CONNECTOR_FOLDER}:/opt/engine"
    assert named(engine["env"], "PYTHONHASHSEED")["value"] == "7"
    assert [mount["name"] for mount in engine["volumeMounts"] if mount["mountPath"].startswith("/dev/shm")] == ["mine"]
    assert "shadowserve-shm" not in {volume["name"] for volume in spec["volumes"]}


def test_the_sidecar_is_native_and_comes_before_other_init_containers() -> None:
    body = pod()
    body["spec"]["initContainers"] = [{"name": "theirs", "image": "i"}]
    containers = injected(body)["spec"]["initContainers"]
    assert [each["name"] for each in containers] == [names.CONNECTOR_CONTAINER, names.SIDECAR_CONTAINER, "theirs"]
    assert containers[1]["restartPolicy"] == "Always"
    assert containers[1]["startupProbe"]["httpGet"]["port"] == "metrics"


def test_the_buffers_are_counted_in_the_sidecars_memory() -> None:
    spec = injected(pod())["spec"]
    resources = named(spec["initContainers"], names.SIDECAR_CONTAINER)["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["memory"]) == (1 << 30) + (640 << 20)
    landing = named(spec["volumes"], "shadowserve-landing")["emptyDir"]
    assert landing == {"medium": "Memory", "sizeLimit": str(640 << 20)}


def test_the_connector_starts_as_fast_as_the_sidecar_and_the_pod_is_asked_for_no_more() -> None:
    connector, sidecar = injected(pod())["spec"]["initContainers"][:2]
    assert connector["resources"]["limits"]["cpu"] == sidecar["resources"]["limits"]["cpu"]
    assert Quantity(connector["resources"]["requests"]["memory"]) < Quantity(sidecar["resources"]["requests"]["memory"])


def test_every_mount_has_its_volume_and_every_volume_is_used() -> None:
    spec = injected(pod())["spec"]
    containers = [*spec["containers"], *spec["initContainers"]]
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", ())}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_what_is_added_keeps_the_restricted_pod_security_standard() -> None:
    for container in injected(pod())["spec"]["initContainers"]:
        security = container["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_a_second_pass_changes_nothing() -> None:
    once = injected(pod())
    again = inject(once, TERMS)
    assert isinstance(again, Unchanged)
    assert again.settled
    assert once["metadata"]["annotations"][names.INJECTED_ANNOTATION] == "1"
    assert once["metadata"]["labels"] == {"app": "x", names.CACHE_LABEL: "shared"}


def test_plaintext_needs_no_certificate() -> None:
    from dataclasses import replace

    spec = injected(pod(), replace(TERMS, tls_secret=None))["spec"]
    assert "shadowserve-tls" not in {volume["name"] for volume in spec["volumes"]}


def test_of_several_containers_the_annotated_one_is_the_engine() -> None:
    body = pod()
    body["spec"]["containers"].insert(0, {"name": "proxy", "image": "p"})
    assert "annotation shadowserve.io/engine-container" in refused(body)
    body["metadata"]["annotations"] = {names.ENGINE_CONTAINER_ANNOTATION: "vllm"}
    containers = injected(body)["spec"]["containers"]
    assert "args" not in containers[0]
    assert "--kv-transfer-config" in containers[1]["args"]
    body["metadata"]["annotations"] = {names.ENGINE_CONTAINER_ANNOTATION: "absent"}
    assert "names 'absent'; the containers are proxy, vllm" in refused(body)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"args": ["--kv-transfer-config={}"]}, "sets --kv-transfer-config itself"),
        ({"args": ["--kv-transfer-config", "{}"]}, "sets --kv-transfer-config itself"),
        ({"command": ["/bin/sh", "-c", "vllm serve x"]}, "runs a shell"),
        ({"env": [{"name": "PYTHONPATH", "valueFrom": {}}]}, "set it to a plain value"),
        ({"name": "shadowserve-sidecar"}, "rename it"),
    ],
)
def test_what_collides_is_left_alone_and_said_in_words(engine: dict[str, Any], said: str) -> None:
    assert said in refused(pod(**engine))


def test_a_volume_of_our_name_is_refused() -> None:
    body = pod()
    body["spec"]["volumes"] = [{"name": "shadowserve-run", "emptyDir": {}}]
    assert "volume shadowserve-run of its own: rename it" in refused(body)

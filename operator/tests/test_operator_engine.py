"""The engines of a pool: what vLLM is started with, how pods come and go, and the user's fragment over it."""

from typing import Any

import pytest

from shadowserve_crds import names
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_crds.quantities import Quantity
from shadowserve_operator.desired.engine import engine_objects, pod_selector, refused_flags
from shadowserve_operator.desired.generation import cache_generation
from shadowserve_operator.desired.merge import merged
from shadowserve_operator.desired.sidecar import SidecarTerms

CLAIM = {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "models", "path": "/smol/"}}
TERMS = SidecarTerms("1", "i", "shared", "c", "s", None, Quantity("1"), Quantity("1Gi"), 512 << 20, 128 << 20)


def pool(source: dict[str, Any] = CLAIM, revision: str = "main", **spec: Any) -> InferencePool:
    engine = {"image": "vllm/vllm-openai:v0.32.0", **spec.pop("engine", {})}
    model = {"name": "smol", "source": source, "revision": revision}
    metadata = {"name": "chat", "namespace": "llm", "uid": "9"}
    return InferencePool.parse({"metadata": metadata, "spec": {"model": model, "engine": engine, **spec}})


def of_kind(subject: InferencePool, kind: str, terms: SidecarTerms | None = None) -> dict[str, Any]:
    return next(each for each in engine_objects(subject, terms).objects if each["kind"] == kind)


def pod_of(subject: InferencePool, terms: SidecarTerms | None = None) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(subject, "Deployment", terms)["spec"]["template"]["spec"]
    return found


def test_a_model_in_a_volume_is_mounted_and_served_under_its_name() -> None:
    spec = pod_of(pool())
    engine = spec["containers"][0]
    assert engine["command"] == ["vllm", "serve"]
    assert engine["args"] == ["/model/smol", "--served-model-name", "smol", "--port", "8000"]
    assert spec["volumes"] == [{"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}]
    assert engine["volumeMounts"] == [{"name": "model", "mountPath": "/model", "readOnly": True}]


def test_a_model_of_hugging_face_is_downloaded_at_its_revision_with_the_token() -> None:
    source = {"type": "HuggingFace", "huggingFace": {"repository": "a/b", "tokenSecretRef": {"name": "hf"}}}
    engine = pod_of(pool(source, "v2"))["containers"][0]
    assert engine["args"][0] == "a/b"
    assert engine["args"][-2:] == ["--revision", "v2"]
    token = next(variable for variable in engine["env"] if variable["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hf", "key": "token"}


def test_a_model_in_an_image_is_an_image_volume() -> None:
    source = {"type": "Image", "image": {"reference": "registry.example.org/m@sha256:0"}}
    assert pod_of(pool(source))["volumes"][0]["image"] == {"reference": "registry.example.org/m@sha256:0"}


def test_a_model_may_take_ten_minutes_to_load() -> None:
    probe = pod_of(pool())["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 600
    assert of_kind(pool(), "Deployment")["spec"]["progressDeadlineSeconds"] > 600


def test_requests_under_way_may_finish_before_a_pod_goes() -> None:
    spec = pod_of(pool(rollout={"drain": "1m"}))
    assert spec["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 60}}
    assert spec["terminationGracePeriodSeconds"] > 60


def test_pods_roll_as_was_asked() -> None:
    rolling = of_kind(pool(rollout={"maxSurge": 0, "maxUnavailable": 2}), "Deployment")["spec"]["strategy"]
    assert rolling["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 2}


def test_only_several_replicas_have_a_disruption_budget() -> None:
    assert [each["kind"] for each in engine_objects(pool(replicas=1), None).objects] == ["Deployment", "Service"]
    assert of_kind(pool(replicas=2), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_service_and_selector_find_the_pods() -> None:
    template = of_kind(pool(), "Deployment")["spec"]["template"]
    selector = of_kind(pool(), "Service")["spec"]["selector"]
    assert selector == pod_selector(pool())
    assert selector.items() <= template["metadata"]["labels"].items()


def test_with_a_cache_the_sidecar_is_in_the_pods() -> None:
    found = engine_objects(pool(), TERMS)
    assert found.detached == ""
    spec = pod_of(pool(), TERMS)
    assert names.SIDECAR_CONTAINER in {each["name"] for each in spec["initContainers"]}
    assert "--kv-transfer-config" in spec["containers"][0]["args"]


def test_a_pool_that_cannot_have_the_sidecar_still_runs_and_says_why() -> None:
    found = engine_objects(pool(engine={"args": ["--kv-transfer-config={}"]}), TERMS)
    assert "sets --kv-transfer-config itself" in found.detached
    assert found.objects[0]["kind"] == "Deployment"


def test_arguments_that_fields_of_the_resource_set_are_named() -> None:
    assert refused_flags(pool(engine={"args": ["--port=1", "--max-model-len", "4096"]})) == ["--port=1"]
    assert refused_flags(pool()) == []


def test_the_users_fragment_wins_and_named_things_merge() -> None:
    fragment = {
        "metadata": {"labels": {"team": "search"}},
        "spec": {
            "nodeSelector": {"gpu": "true"},
            "containers": [
                {"name": "engine", "command": ["python3", "-m", "vllm.entrypoints.cli.main", "serve"]},
                {"name": "proxy", "image": "p"},
            ],
            "volumes": [{"name": "extra", "emptyDir": {}}],
        },
    }
    template = of_kind(pool(engine={"podTemplate": fragment}), "Deployment", TERMS)["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "search"
    engine, proxy = template["spec"]["containers"]
    assert engine["command"][0] == "python3"
    assert engine["image"] == "vllm/vllm-openai:v0.32.0"
    assert "--kv-transfer-config" in engine["args"], "of several containers the engine is known"
    assert "args" not in proxy
    assert {"extra", "model"} <= {volume["name"] for volume in template["spec"]["volumes"]}


@pytest.mark.parametrize(
    ("base", "fragment", "result"),
    [
        ({"a": 1}, {"a": None}, {}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"args": [1, 2]}, {"args": [3]}, {"args": [3]}),
        ({"env": [{"name": "A", "x": 1}]}, {"env": [{"name": "A", "y": 2}]}, {"env": [{"name": "A", "x": 1, "y": 2}]}),
        ({}, {"volumeMounts": [{"mountPath": "/x"}]}, {"volumeMounts": [{"mountPath": "/x"}]}),
    ],
)
def test_a_merge_is_strategic(base: dict[str, Any], fragment: dict[str, Any], result: dict[str, Any]) -> None:
    assert merged(base, fragment) == result


def test_another_model_revision_or_tenancy_is_another_generation() -> None:
    def cache(isolation: str) -> PrefixCache:
        return PrefixCache.parse({"metadata": {"name": "c"}, "spec": {"tenancy": {"isolation": isolation}}})

    generations = [
        cache_generation(pool(), cache("PerPool")),
        cache_generation(pool(revision="v2"), cache("PerPool")),
        cache_generation(pool(), cache("PerTenant")),
        cache_generation(pool(), cache("Shared")),
    ]
    assert len(set(generations)) == 4
    assert cache_generation(pool(replicas=5), cache("PerPool")) == generations[0]
    assert cache_generation(pool(), None) == ""

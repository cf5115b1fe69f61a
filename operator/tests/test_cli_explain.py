"""What `shadowserve explain` says of one pod."""

from typing import Any

import pytest
from cli_pictures import NOW, cache, condition, data_plane, hook, picture, pod, pool

from shadowserve_cli.explain_report import Finding, explanation, unselected
from shadowserve_cli.picture import Picture
from shadowserve_crds import names
from shadowserve_operator.kinds import Json

SELECTOR = {
    "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]
}


def findings(body: Json, seen: Picture, namespace: str = "default") -> dict[str, Finding]:
    labels = {"kubernetes.io/metadata.name": namespace}
    return {each.question: each for each in explanation(seen, body, labels, NOW).findings}


def test_a_pod_on_a_card() -> None:
    body = pod("a", told="10.1.0.9:9464")
    body["status"]["initContainerStatuses"] = [{"name": names.SIDECAR_CONTAINER, "state": {"running": {}}}]
    found = findings(body, picture(pods=(body, data_plane())))
    assert found["Where does it restore?"].answer == "card (10.1.0.9:9464): the data plane on card-0 serves"
    assert found["Has it the sidecar?"].answer == "yes: version 0.1.0, by the admission webhook"
    assert all(each.good for each in found.values())


def test_a_sidecar_that_does_not_come_up_is_named() -> None:
    body = pod("a", told="")
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    body["status"]["initContainerStatuses"] = [
        {"name": names.SIDECAR_CONTAINER, "state": waiting, "restartCount": 2},
    ]
    found = findings(body, picture(pods=(body,)))["Does the sidecar run?"]
    assert found == Finding("Does the sidecar run?", "no: ImagePullBackOff no such image, after 2 restarts", False)


def _shell() -> Json:
    body = pod("a", injected=False)
    body["spec"]["containers"][0]["command"] = ["sh", "-c", "vllm serve"]
    return body


def _skipped() -> Json:
    body = pod("a", injected=False)
    body["metadata"]["annotations"][names.SKIPPED_ANNOTATION] = "there is no PrefixCache kv in namespace default"
    return body


@pytest.mark.parametrize(
    ("body", "changes", "reason"),
    [
        (pod("a", injected=False), {"caches": ()}, "there is no PrefixCache kv in namespace default: create it"),
        (_shell(), {}, "runs a shell, to which no argument can be added"),
        (_skipped(), {}, "That does not hold any more: delete the pod"),
        (pod("a", injected=False), {"hook": None}, "the webhook is not installed"),
        (pod("a", injected=False), {"hook": hook(clientConfig={})}, "never told the webhook's authority"),
        (pod("a", injected=False), {}, "the webhook did not answer when the pod was made"),
    ],
)
def test_why_a_pod_has_no_sidecar(body: Json, changes: dict[str, Any], reason: str) -> None:
    found = findings(body, picture(pods=(body,), **changes))["Has it the sidecar?"]
    assert reason in found.answer
    assert not found.good


def test_a_namespace_that_the_webhook_leaves_alone_is_named() -> None:
    body = pod("a", injected=False)
    seen = picture(pods=(body,), hook=hook(namespaceSelector=SELECTOR))
    assert "pods of this namespace are left alone" in findings(body, seen, "kube-system")["Has it the sidecar?"].answer


def test_a_pod_that_asks_for_nothing() -> None:
    body = pod("a", injected=False)
    body["metadata"]["labels"] = {}
    (found,) = findings(body, picture(pods=(body,))).values()
    assert found.good
    assert found.answer.endswith("PrefixCaches of its namespace: kv")


def test_a_pools_pod_repeats_what_the_operator_said_of_the_pool() -> None:
    body = pod("a", injected=False)
    body["metadata"]["labels"] = {names.POOL_LABEL: "chat"}
    said = condition("CacheAttached", "False", "PodsWithoutSidecar", "container engine sets --kv-transfer-config")
    seen = picture(pods=(body,), pools=(pool(said, cacheRef={"name": "kv"}),))
    found = findings(body, seen)
    assert found["Does it ask for a cache?"].answer == "yes: InferencePool chat uses PrefixCache kv"
    assert "sets --kv-transfer-config" in found["Has it the sidecar?"].answer


def test_trouble_of_the_cache_is_told_with_the_pod() -> None:
    body = pod("a", told="")
    said = condition("StoreReady", "False", "Pending", "0 of 1 store servers are ready")
    found = findings(body, picture(pods=(body,), caches=(cache(said),)))["Is PrefixCache kv well?"]
    assert "0 of 1 store servers are ready" in found.answer
    assert not found.good


@pytest.mark.parametrize(
    ("expression", "labels", "selected"),
    [
        ({"key": "a", "operator": "Exists"}, {"a": ""}, True),
        ({"key": "a", "operator": "Exists"}, {}, False),
        ({"key": "a", "operator": "DoesNotExist"}, {"a": ""}, False),
        ({"key": "a", "operator": "In", "values": ["x", "y"]}, {"a": "y"}, True),
        ({"key": "a", "operator": "In", "values": ["x"]}, {}, False),
        ({"key": "a", "operator": "NotIn", "values": ["x"]}, {}, True),
        ({"key": "a", "operator": "NotIn", "values": ["x"]}, {"a": "x"}, False),
    ],
)
def test_label_selectors_as_the_api_server_reads_them(
    expression: dict[str, Any], labels: dict[str, str], selected: bool
) -> None:
    assert (unselected({"matchExpressions": [expression]}, labels) == "") is selected


def test_a_pod_with_older_settings_is_named_until_it_is_made_anew() -> None:
    question, body = "Has it its cache's settings?", pod("a", told="")
    assert findings(body, picture(pods=(body,)))[question].good
    body["metadata"]["annotations"][names.CONFIG_ANNOTATION] = ""
    assert findings(body, picture(pods=(body,)))[question].good, "the operator finds out what it read"
    body["metadata"]["annotations"][names.CONFIG_ANNOTATION] = "of then"
    edited = picture(pods=(body,), caches=(cache(codec={"tier": "High"}),))
    found = findings(body, edited)[question]
    assert (found.good, "Delete the pod" in found.answer) == (False, True)
    body["metadata"]["labels"][names.POOL_LABEL] = "chat"
    assert "its InferencePool is replacing it" in findings(body, edited)[question].answer


@pytest.mark.parametrize("order", [["Host"], ["Host", "DPU"]])
def test_an_edit_that_reaches_a_running_pod_makes_it_no_older(order: list[str]) -> None:
    body = pod("a", told="")
    edited = picture(pods=(body,), caches=(cache(placement={"order": order}),))
    assert findings(body, edited)["Has it its cache's settings?"].good

"""Install, cache and webhook on a cluster with nodes; no engine runs."""

import json
from datetime import timedelta
from typing import Any

import pytest

from cluster_story import Bed, asking_pod
from shadowserve_crds import names
from shadowserve_operator.desired.assignment import RETURN_AFTER
from shadowserve_testbed import scenario
from shadowserve_testbed.installation import SYSTEM, remove
from shadowserve_testbed.waiting import unavailable

pytestmark = pytest.mark.timeout(600)


_CACHE = f"pfc/{scenario.CACHE}"


def _about(events: list[dict[str, Any]]) -> set[str]:
    return {each["involvedObject"]["name"] for each in events}


def _get(bed: Bed, name: str) -> dict[str, Any]:
    return bed.kubectl.get("pod", name, "--namespace", scenario.NAMESPACE) or {"metadata": {}, "spec": {}, "status": {}}


def _is_injected(bed: Bed) -> bool:
    """Whether a pod that is only tried gets the sidecar."""
    tried = bed.kubectl.run("create", "--dry-run=server", "-o", "json", "-f", "-", manifest=asking_pod("tried"))
    return names.INJECTED_ANNOTATION in json.loads(tried)["metadata"].get("annotations", {})


def test_a_cache_becomes_ready_with_its_data_plane_on_the_card(bed: Bed) -> None:
    bed.apply(scenario.cache_manifest())
    bed.wait("the cache is ready", lambda: bed.ready(f"pfc/{scenario.CACHE}"))
    assert [plane.node for plane in bed.planes()] == ["card-0"]
    bed.wait("a chunk came back", lambda: bed.condition(_CACHE, "RoundTripVerified") == "True")  # Ready waits for none
    [binding] = bed.kubectl.items("dpubindings")
    assert (binding["spec"]["hostNode"], binding["spec"]["dpuNode"]) == ("host-0", "card-0")


def test_a_pod_that_asks_gets_the_sidecar_and_its_card(bed: Bed) -> None:
    bed.wait("the cache is ready", lambda: bed.ready(f"pfc/{scenario.CACHE}"))
    bed.kubectl.run("create", "-f", "-", manifest=asking_pod("asks"))
    bed.wait("it runs", lambda: bed.phase("asks") == "Running")
    body = _get(bed, "asks")
    assert names.SIDECAR_CONTAINER in {each["name"] for each in body["spec"]["initContainers"]}
    bed.wait("it is on the card", lambda: bed.place("asks") == "dpu")
    assert _get(bed, "asks")["metadata"]["annotations"][names.DATA_PLANE_ANNOTATION].endswith(
        f":{names.DATA_PLANE_PORT}"
    )
    bed.kubectl.run("delete", "pod", "asks", "--namespace", scenario.NAMESPACE)


def test_without_the_webhook_pods_start_as_they_are(bed: Bed) -> None:
    bed.kubectl.run("scale", "deployment", "shadowserve-webhook", "--replicas=0", "--namespace", SYSTEM)
    try:
        selector = ("--namespace", SYSTEM, "--selector", "app.kubernetes.io/name=shadowserve-webhook")
        bed.wait("the webhook is down", lambda: not bed.kubectl.items("pods", *selector))
        bed.kubectl.run("create", "-f", "-", manifest=asking_pod("unheard"))
        bed.wait("it runs", lambda: bed.phase("unheard") == "Running")
        assert "initContainers" not in _get(bed, "unheard")["spec"]
        about = ("--namespace", scenario.NAMESPACE, "--field-selector", "reason=WithoutSidecar")
        bed.wait("an event says so", lambda: _about(bed.kubectl.items("events", *about)) == {"unheard"})
        bed.wait("the cache names it", lambda: bed.condition(_CACHE, "PodsInjected") == "False")
        assert "unheard: the admission webhook did not see it" in bed.condition(_CACHE, "PodsInjected", "message")
        assert bed.ready(_CACHE), "the cache serves all the same"
        bed.kubectl.run("delete", "pod", "unheard", "--namespace", scenario.NAMESPACE)
        bed.wait("it is forgotten", lambda: bed.condition(_CACHE, "PodsInjected") == "True")
    finally:
        bed.kubectl.run("scale", "deployment", "shadowserve-webhook", "--replicas=2", "--namespace", SYSTEM)
        bed.wait("the webhook is back", lambda: not unavailable(bed.kubectl, SYSTEM))
        # its Service may lead to it a moment later
        bed.wait("the API server reaches it", lambda: _is_injected(bed))


def test_a_dead_card_is_left_at_once_and_taken_back(bed: Bed) -> None:
    bed.kubectl.run("create", "-f", "-", manifest=asking_pod("leaves"))
    bed.wait("it runs", lambda: bed.phase("leaves") == "Running")
    bed.wait("it is on the card", lambda: bed.place("leaves") == "dpu")
    bed.provider.lose("card-0")
    bed.wait("it is on the host", lambda: bed.place("leaves") == "host")
    assert bed.told("leaves"), "long before Kubernetes notices: nobody tells it"
    bed.wait("Kubernetes has noticed, and it is told", lambda: bed.told("leaves") == "")
    bed.provider.restore("card-0")
    bed.wait("it is back on the card", lambda: bed.place("leaves") == "dpu")
    [plane], back = bed.planes(), bed.told_at("leaves")
    assert plane.ready is not None
    # the times of both are whole seconds
    assert back - plane.ready >= RETURN_AFTER - timedelta(seconds=1), "the card has to serve for a while first"


def test_a_card_whose_node_is_deleted_is_unpaired_until_it_joins_again(bed: Bed) -> None:
    bed.provider.lose("card-0")
    bed.kubectl.run("delete", "node", "card-0")
    bed.wait("no binding is left", lambda: not bed.kubectl.items("dpubindings"))
    bed.wait("its pod is told", lambda: bed.told("leaves") == "")
    bed.provider.restore("card-0")
    bed.wait("the cache is ready again", lambda: bed.ready(f"pfc/{scenario.CACHE}") and len(bed.planes()) == 1)
    [binding] = bed.kubectl.items("dpubindings")
    assert binding["spec"]["hostNode"] == "host-0"
    bed.kubectl.run("delete", "pod", "leaves", "--namespace", scenario.NAMESPACE)


def test_deleting_the_cache_leaves_nothing_behind(bed: Bed) -> None:
    remove(bed.kubectl, scenario.NAMESPACE, 90.0, lambda _: None)
    assert bed.remaining() == []

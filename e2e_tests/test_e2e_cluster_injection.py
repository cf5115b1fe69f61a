"""Install, cache and webhook on a cluster with nodes; no engine runs."""

from typing import Any

import pytest

from cluster_story import Bed
from shadowserve_crds import names
from shadowserve_testbed import scenario
from shadowserve_testbed.images.catalogue import ENGINE
from shadowserve_testbed.installation import SYSTEM, remove

pytestmark = pytest.mark.timeout(600)
_WAITS = ["python3", "-c", "import signal; signal.sigwait({signal.SIGTERM})"]


def _pod(name: str) -> dict[str, Any]:
    """Return a pod that asks for the cache and does nothing."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    container = {"name": "engine", "image": ENGINE, "command": _WAITS, "securityContext": security}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": scenario.NAMESPACE,
            "labels": {names.CACHE_LABEL: scenario.CACHE},
        },
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }


def _get(bed: Bed, name: str) -> dict[str, Any]:
    return bed.kubectl.get("pod", name, "--namespace", scenario.NAMESPACE) or {"metadata": {}, "spec": {}, "status": {}}


def _phase(bed: Bed, name: str) -> str:
    return str(_get(bed, name)["status"].get("phase", ""))


def test_a_cache_becomes_ready_with_its_data_plane_on_the_card(bed: Bed) -> None:
    bed.apply(scenario.cache_manifest())
    bed.wait("the cache is ready", lambda: bed.ready(f"pfc/{scenario.CACHE}"))
    assert [plane.node for plane in bed.planes()] == ["card-0"]
    assert bed.condition(f"pfc/{scenario.CACHE}", "RoundTripVerified") == "True"
    [binding] = bed.kubectl.items("dpubindings")
    assert (binding["spec"]["hostNode"], binding["spec"]["dpuNode"]) == ("host-0", "card-0")


def test_a_pod_that_asks_gets_the_sidecar_and_its_card(bed: Bed) -> None:
    bed.wait("the cache is ready", lambda: bed.ready(f"pfc/{scenario.CACHE}"))
    bed.kubectl.run("create", "-f", "-", manifest=_pod("asks"))
    bed.wait("it runs", lambda: _phase(bed, "asks") == "Running")
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
        bed.kubectl.run("create", "-f", "-", manifest=_pod("unheard"))
        bed.wait("it runs", lambda: _phase(bed, "unheard") == "Running")
        assert "initContainers" not in _get(bed, "unheard")["spec"]
        bed.kubectl.run("delete", "pod", "unheard", "--namespace", scenario.NAMESPACE)
    finally:
        bed.kubectl.run("scale", "deployment", "shadowserve-webhook", "--replicas=2", "--namespace", SYSTEM)


def test_deleting_the_cache_leaves_nothing_behind(bed: Bed) -> None:
    remove(bed.kubectl, scenario.NAMESPACE, 90.0, lambda _: None)
    assert bed.remaining() == []

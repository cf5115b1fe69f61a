"""A pool is scaled by its scale subresource: by hand, and by Kubernetes' own autoscaler with a metric of somebody's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metrics_api import METRIC, metrics_api
from operator_story import condition, controller_running, create, get, operator_running, patch_status, pool, wait
from shadowserve_crds import names
from shadowserve_testbed.api_server import ApiServer

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server and the controller manager are built
_POOL = "inferencepools.shadowserve.io/scaled"
_OURS = ("-l", f"{names.POOL_LABEL}=scaled")
_DEADLINE = 300.0
_AUTOSCALER = "horizontal-pod-autoscaler-controller"


@pytest.fixture
def operator(api: ApiServer, tmp_path: Path) -> Iterator[Path]:
    log = tmp_path / "operator.log"
    with operator_running(api, log):
        create(api, pool("scaled", replicas=1))
        try:
            wait(log, "engines made", lambda: get(api, "deployment/scaled"))
            yield log
        finally:
            api.kubectl("delete", _POOL, "--timeout=90s")
            api.kubectl("delete", "deployment,service,pdb", *_OURS)  # nothing collects garbage here


def scale(api: ApiServer) -> dict[str, Any]:
    """Return the pool's scale subresource, as autoscalers read it."""
    found: dict[str, Any] = json.loads(api.kubectl("get", _POOL, "--subresource=scale", "-o", "json"))
    return found


def wanted(api: ApiServer) -> int:
    """Return how many engines the operator has asked for."""
    return int((get(api, "deployment/scaled") or {})["spec"]["replicas"])


def test_what_scale_tells_is_what_runs_and_setting_it_scales(api: ApiServer, operator: Path) -> None:
    patch_status(api, "deployment/scaled", replicas=1, readyReplicas=1, updatedReplicas=1)
    wait(operator, "replicas told", lambda: scale(api)["status"]["replicas"] == 1)
    deployment = get(api, "deployment/scaled")
    assert deployment is not None
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert dict(each.split("=") for each in scale(api)["status"]["selector"].split(",")) == labels
    assert scale(api)["spec"]["replicas"] == 1
    api.kubectl("scale", _POOL, "--current-replicas=1", "--replicas=3")
    wait(operator, "engines scaled", lambda: wanted(api) == 3)
    patch_status(api, "deployment/scaled", replicas=3, readyReplicas=3, updatedReplicas=3)
    wait(operator, "replicas told", lambda: scale(api)["status"]["replicas"] == 3)


def _autoscaler() -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": "10"}
    metric = {"type": "External", "external": {"metric": {"name": METRIC}, "target": target}}
    spec = {
        "scaleTargetRef": {"apiVersion": names.API_VERSION, "kind": "InferencePool", "name": "scaled"},
        "minReplicas": 1,
        "maxReplicas": 4,
        "metrics": [metric],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    }
    metadata = {"name": "scaled", "namespace": "default"}
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}


def _counted(api: ApiServer) -> int:
    """Return how many replicas the autoscaler sees."""
    status = (get(api, "hpa/scaled") or {}).get("status") or {}  # none until the autoscaler has looked
    return int(status.get("currentReplicas", 0))


def test_kubernetes_autoscaler_scales_it_up_and_down(api: ApiServer, operator: Path, tmp_path: Path) -> None:
    log = tmp_path / "controller-manager.log"
    with metrics_api(tmp_path / "metrics") as metrics:
        metrics.value = 25
        create(api, *metrics.objects(), _autoscaler())
        try:
            with controller_running(api, log, _AUTOSCALER, **{"horizontal-pod-autoscaler-sync-period": "1s"}):
                wait(log, "scaled up", lambda: wanted(api) == 3, _DEADLINE)
                patch_status(api, "deployment/scaled", replicas=3, readyReplicas=3, updatedReplicas=3)
                wait(log, "seen", lambda: condition(api, "hpa/scaled", "ScalingActive", "status") == "True", _DEADLINE)
                assert condition(api, "hpa/scaled", "AbleToScale", "status") == "True"
                wait(log, "all counted", lambda: _counted(api) == 3, _DEADLINE)
                metrics.value = 4
                wait(log, "scaled down", lambda: wanted(api) == 1, _DEADLINE)
        finally:
            for each in reversed([*metrics.objects(), _autoscaler()]):
                api.kubectl("delete", "-f", "-", "--ignore-not-found", manifest=each)

"""What stories on a cluster with nodes share: one test bed, what runs on it, and waiting on what is."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from shadowserve_crds import names
from shadowserve_lab.engine_client import EngineClient
from shadowserve_lab.home import say
from shadowserve_testbed import scenario
from shadowserve_testbed.access import Access
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.images.catalogue import ENGINE
from shadowserve_testbed.installation import apply, remaining
from shadowserve_testbed.kubectl import Kubectl
from shadowserve_testbed.pods import Pod, data_planes, engines
from shadowserve_testbed.provider import Provider
from shadowserve_testbed.waiting import wait_for

SECONDS = 240.0
"""How long anything may take that is not an engine's start."""


_WAITS = ["python3", "-c", "import signal; signal.sigwait({signal.SIGTERM})"]


def asking_pod(name: str) -> dict[str, Any]:
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


class Bed:
    """A cluster with the operator installed."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.kubectl: Kubectl = provider.kubectl()
        self.access = Access(self.kubectl)

    def wait(self, what: str, holds: Callable[[], object], seconds: float = SECONDS) -> None:
        """Return once it holds; raises `TestbedError` with what there is."""
        try:
            wait_for(lambda: [] if holds() else ["not yet"], what, seconds, say)
        except TestbedError as error:
            listed = self.kubectl.run("get", "pods,pfc,sspool,dpub", "--all-namespaces", "-o", "wide")
            raise TestbedError(f"{error}\n{listed}") from error

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Apply objects."""
        apply(self.kubectl, *manifests)

    def ready(self, what: str) -> bool:
        """Whether a resource (as "pfc/demo") says that it is, of its current generation."""
        return self.condition(what, "Ready") == "True"

    def condition(self, what: str, kind: str, part: str = "status") -> str:
        """Return a part of a condition, "" while it does not say it of the current generation."""
        body = self.kubectl.get(what) or {"metadata": {"generation": 1}}
        status = body.get("status", {})
        if status.get("observedGeneration", 0) != body["metadata"]["generation"]:
            return ""
        return next((str(each[part]) for each in status.get("conditions", ()) if each["type"] == kind), "")

    def engines(self) -> list[Pod]:
        """Return the pool's pods."""
        return engines(self.kubectl, scenario.NAMESPACE, scenario.POOL)

    def planes(self) -> list[Pod]:
        """Return the cache's data planes."""
        return data_planes(self.kubectl, scenario.NAMESPACE, scenario.CACHE)

    def client(self, pod: Pod) -> EngineClient:
        """Return a client of an engine."""
        return self.access.engine(scenario.NAMESPACE, pod.name, scenario.MODEL)

    def place(self, pod: str) -> str:
        """Return where a pod's sidecar restores chunks, as it says itself; "" while it cannot be asked."""
        try:
            metrics = self.access.sidecar(scenario.NAMESPACE, pod)
        except OSError:
            return ""
        named = ("dpu", "host", "none")
        return next((place for place in named if metrics.total("shadowserve_placement_info", place=place)), "")

    def phase(self, pod: str) -> str:
        """Return a pod's phase, "" if it does not exist."""
        body = self.kubectl.get("pod", pod, "--namespace", scenario.NAMESPACE) or {"status": {}}
        return str(body["status"].get("phase", ""))

    def told(self, pod: str) -> str | None:
        """Return the endpoint that the operator named to a pod, None while it has not."""
        body = self.kubectl.get("pod", pod, "--namespace", scenario.NAMESPACE) or {"metadata": {}}
        annotations: Mapping[str, str] = body["metadata"].get("annotations") or {}
        return annotations.get(names.DATA_PLANE_ANNOTATION)

    def told_at(self, pod: str) -> datetime:
        """Return when the operator named that endpoint, by the API server's own record of who wrote what."""
        body = self.kubectl.get("pod", pod, "--namespace", scenario.NAMESPACE, "--show-managed-fields") or {}
        key = f"f:{names.DATA_PLANE_ANNOTATION}"
        written = [
            datetime.fromisoformat(each["time"])
            for each in body["metadata"]["managedFields"]
            if key in each["fieldsV1"].get("f:metadata", {}).get("f:annotations", {})
        ]
        return max(written)

    def restored(self, plane: Pod) -> float:
        """Return how many chunks a data plane has restored."""
        metrics = self.access.data_plane(scenario.NAMESPACE, plane.name)
        return metrics.total("shadowserve_chunks_total", result="landed")

    def remaining(self) -> list[str]:
        """Return what our resources left behind."""
        return remaining(self.kubectl, scenario.NAMESPACE)

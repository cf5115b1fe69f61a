"""Waits on conditions of resources, and says in words what is still missing."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.kubectl import Kubectl

_POLL_SECONDS = 0.3
_TELL_SECONDS = 15.0


def unmet(body: Mapping[str, Any] | None) -> list[str]:
    """Return, in words, which conditions of an object do not hold; nothing once it is ready as it is now."""
    if body is None:
        return ["it does not exist"]
    status = body.get("status", {})
    if status.get("observedGeneration", 0) < body["metadata"].get("generation", 0):
        return ["the operator has not looked at it yet"]
    conditions = status.get("conditions", ())
    if any(each["type"] == "Ready" and each["status"] == "True" for each in conditions):
        return []
    parts = [each for each in conditions if each["type"] != "Ready" and each["status"] != "True"]
    return [f"{each['type']}: {each.get('message') or each['reason']}" for each in parts] or ["not ready"]


def wait_ready(kubectl: Kubectl, what: str, seconds: float, say: Callable[[str], None]) -> None:
    """Return once `what` (as "pfc/demo") is ready. Raises `TestbedError` with what is missing."""
    wait_for(lambda: unmet(kubectl.get(what)), what, seconds, say)


def wait_for(missing: Callable[[], list[str]], what: str, seconds: float, say: Callable[[str], None]) -> None:
    """Return once nothing is missing; says what is, when that changes, and that it is still so.

    Raises `TestbedError`.
    """
    start = time.monotonic()
    told, told_at = None, start
    while lacking := missing():
        now, text = time.monotonic(), "; ".join(lacking)
        if now - start > seconds:
            raise TestbedError(f"{what}: not within {seconds:g} s: {text}")
        if text != told or now - told_at > _TELL_SECONDS:
            say(f"{what}: {text} ({now - start:.0f} s)")
            told, told_at = text, now
        time.sleep(_POLL_SECONDS)


def unavailable(kubectl: Kubectl, namespace: str) -> list[str]:
    """Return, in words, which Deployments of a namespace have not all of their pods."""
    found = []
    for body in kubectl.items("deployments", "--namespace", namespace):
        wanted, status = body["spec"]["replicas"], body.get("status", {})
        current = status.get("observedGeneration", 0) >= body["metadata"]["generation"]
        ready = min(status.get("availableReplicas", 0), status.get("updatedReplicas", 0)) if current else 0
        if ready < wanted or status.get("replicas", 0) > wanted:
            found.append(f"{body['metadata']['name']}: {ready} of {wanted} pods are there")
    return found

"""Puts a test bed in order: our images, volumes, operator and webhook."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shadowserve_lab.home import REPOSITORY, Home
from shadowserve_lab.setup import Setup
from shadowserve_testbed.images.catalogue import Images
from shadowserve_testbed.images.volumes import EngineFiles, volume_manifests
from shadowserve_testbed.kubectl import Kubectl
from shadowserve_testbed.provider import Provider
from shadowserve_testbed.waiting import unavailable, wait_for

SYSTEM = "shadowserve-system"
_INSTALL_SECONDS = 180.0


def install(provider: Provider, home: Home, overlay: Path, namespace: str) -> list[str]:
    """Return once operator and webhook run, with the code as it is; which images the nodes did not have before.

    Raises `TestbedError`, `ImageError`, `KubectlError`.
    """
    kubectl = provider.kubectl()
    with home.locked():
        archives = Images(home).archives()
        setup = Setup(home)
        files = EngineFiles.of(setup.engine(), setup.model())
    changed = provider.load(archives)
    hosts = [node.name for node in provider.nodes() if not node.host]
    apply(kubectl, *volume_manifests(files, hosts, namespace))
    upgraded = bool(kubectl.items("deployments", "--namespace", SYSTEM))
    kubectl.run("apply", "--server-side", "--force-conflicts", "-k", str(overlay))
    if upgraded and any("operator" in reference for reference in changed):  # pods that run keep the code they have
        kubectl.run("rollout", "restart", "deployment", "--namespace", SYSTEM)
    wait_for(lambda: unavailable(kubectl, SYSTEM), "operator and webhook", _INSTALL_SECONDS, home.say)
    return changed


def apply(kubectl: Kubectl, *manifests: Mapping[str, Any]) -> None:
    """Apply objects together. Raises `KubectlError`."""
    kubectl.run("apply", "--server-side", "-f", "-", manifest={"apiVersion": "v1", "kind": "List", "items": manifests})


def overlay_of(provider: str) -> Path:
    """Return the manifests for a kind of test bed."""
    return REPOSITORY / "manifests/overlays" / provider


def remaining(kubectl: Kubectl, namespace: str) -> list[str]:
    """Return what our resources left behind in a namespace, as kind/name."""
    kinds = "pods,services,configmaps,secrets,statefulsets,daemonsets,deployments,poddisruptionbudgets"
    selector = "app.kubernetes.io/managed-by=shadowserve-operator"
    mine = kubectl.items(kinds, "--namespace", namespace, "--selector", selector)
    cards = kubectl.items("dpubindings")
    return [f"{body['kind']}/{body['metadata']['name']}" for body in [*mine, *cards]]


def remove(kubectl: Kubectl, namespace: str, seconds: float, say: Callable[[str], None]) -> None:
    """Delete every PrefixCache and InferencePool, and wait until nothing of them is left. Raises `TestbedError`.

    Harmless where our resources are not installed.
    """
    if kubectl.get("crd", "prefixcaches.shadowserve.io") is None:
        return
    for kind in ("inferencepools.shadowserve.io", "prefixcaches.shadowserve.io"):
        kubectl.run("delete", kind, "--all", "--namespace", namespace, f"--timeout={seconds:.0f}s", seconds=seconds + 5)
    wait_for(lambda: remaining(kubectl, namespace), "what is still to go", seconds, say)

"""What is installed, judged by a real API server; install.yaml against what kustomize makes of its parts."""

import json
from typing import Any

import pytest
import yaml

from shadowserve_lab.home import REPOSITORY
from shadowserve_testbed.api_server import ApiServer

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built

MANIFESTS = REPOSITORY / "manifests"


def _by_name(text: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = [each for each in yaml.safe_load_all(text) if each]
    return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each for each in found}


def test_install_yaml_is_taken_whole_and_twice(api: ApiServer) -> None:
    install = str(MANIFESTS / "install.yaml")
    api.kubectl("apply", "--server-side", "--force-conflicts", "-f", install)
    hook = json.loads(api.kubectl("get", "mutatingwebhookconfiguration", "shadowserve", "-o", "json"))
    assert hook["webhooks"][0]["failurePolicy"] == "Ignore"
    again = api.kubectl("apply", "--server-side", "--force-conflicts", "-f", install)
    assert "created" not in again
    api.kubectl("delete", "mutatingwebhookconfiguration", "shadowserve")


def test_install_yaml_is_what_kustomize_makes_of_the_base(api: ApiServer) -> None:
    made = _by_name(api.kubectl("kustomize", str(MANIFESTS / "base")))
    assert made == _by_name((MANIFESTS / "install.yaml").read_text())


@pytest.mark.parametrize("overlay", ["kind", "namespaces", "native", "own-registry", "production"])
def test_every_overlay_builds_and_its_objects_are_valid(api: ApiServer, overlay: str) -> None:
    made = _by_name(api.kubectl("kustomize", str(MANIFESTS / "overlays" / overlay)))
    deployments = [body for (kind, _, _), body in made.items() if kind == "Deployment"]
    images = {body["spec"]["template"]["spec"]["containers"][0]["image"].rsplit(":", 1)[1] for body in deployments}
    assert images == ({"dev"} if overlay in ("kind", "native") else {"0.1.0"})
    for (kind, _, _), body in made.items():
        if kind in ("ClusterRole", "MutatingWebhookConfiguration", "ClusterRoleBinding"):
            api.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", manifest=body)


def test_test_beds_differ_only_in_how_soon_the_operator_looks_again(api: ApiServer) -> None:
    folders = [str(MANIFESTS / "overlays" / each) for each in ("native", "kind")]
    native, kind = (_by_name(api.kubectl("kustomize", folder)) for folder in folders)
    operator = ("Deployment", "shadowserve-system", "shadowserve-operator")
    (container,) = native[operator]["spec"]["template"]["spec"]["containers"]
    sooner = {"name": "SHADOWSERVE_DRIFT_SECONDS", "value": "10"}
    assert sooner in container["env"]
    container["env"].remove(sooner)
    assert native == kind

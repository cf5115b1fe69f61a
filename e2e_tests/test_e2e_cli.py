"""`shadowserve status`, `explain` and `doctor` on a real API server, about objects that the real operator made."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operator_story import (
    COMMAND_SECONDS,
    access_of,
    cache,
    condition,
    create,
    get,
    node,
    operator_running,
    own_environment,
    pool,
    run,
    shell,
    told,
    wait,
)
from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY, default_home
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.binaries import Binaries

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built
_SYSTEM = "shadowserve-system"


def _without_sidecar(api: ApiServer) -> list[str]:
    events = get(api, "events", "--field-selector=reason=WithoutSidecar") or {"items": []}
    return [each["involvedObject"]["name"] for each in events["items"]]


def verdicts(diagnosis: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["verdict"] for each in diagnosis["checks"]}


@pytest.fixture
def installed(api: ApiServer) -> Iterator[ApiServer]:
    api.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "manifests/install.yaml"))
    yield api
    api.kubectl("delete", "mutatingwebhookconfiguration", "shadowserve")


@pytest.fixture(scope="module")
def bare(api: ApiServer) -> Iterator[ApiServer]:
    """A second API server that knows nothing of us; `api` has seen to it that it can be had."""
    home = default_home()
    with ApiServer(Binaries(home), home.say) as server:
        yield server


def test_before_install(bare: ApiServer) -> None:
    found = told(bare, "doctor")
    assert not found["installed"]
    assert verdicts(found)["API server"] == "ok"
    assert verdicts(found)["custom resources"] == "not installed"
    assert "fit for ShadowServe" in run(bare, "doctor")
    assert "custom resources installed?" in run(bare, "status", code=2)


def test_from_install_to_a_pod_on_its_way(installed: ApiServer, tmp_path: Path) -> None:
    api, log = installed, tmp_path / "operator.log"
    assert verdicts(told(api, "doctor", code=1))["operator acts"] == "wrong"
    labels = {names.CACHE_LABEL: "kv"}
    engine = {"nodeName": "host-0", "containers": [{"name": "engine", "image": "vllm:1"}]}
    own: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "spec": engine}
    injected = {"name": "injected", "namespace": "default", "labels": labels}
    injected["annotations"] = {names.INJECTED_ANNOTATION: "0.1.0"}
    create(api, node("host-0"), node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))
    create(api, {**own, "metadata": {"name": "own", "namespace": "default", "labels": labels}})
    create(api, {**own, "metadata": injected})
    create(api, cache("kv"), pool("chat", cacheRef={"name": "kv"}))
    with operator_running(api, log, _SYSTEM):
        wait(log, "pod told", lambda: _told(api, "injected") == "")
        wait(log, "both told", lambda: condition(api, "pfc/kv", "Ready") and condition(api, "sspool/chat", "Ready"))
        shown = {"NAME": "kv", "READY": "False", "STORE": "0/1", "PLANES": "0/0", "TIER": "Balanced"}
        assert _columns(api, "pfc", "kv") == shown
        shown = {"NAME": "chat", "READY": "0/0", "MODEL": "m", "CACHE": "kv", "PLANES": ""}
        assert _columns(api, "sspool", "chat") == shown
        found = told(api, "status")
        assert [each["name"] for each in found["caches"]] == ["kv"]
        assert [each["name"] for each in found["pools"]] == ["chat"]
        (pod,) = found["pods"]
        assert (pod["name"], pod["place"], pod["why"]) == ("injected", "host", "no data plane serves on card-0")
        wait(log, "left out told", lambda: condition(api, "pfc/kv", "PodsInjected") == "PodsWithoutSidecar")
        troubles = {each["about"]: each["problem"] for each in told(api, "status")["troubles"]}
        assert {"pfc default/kv StoreReady", "pod default/own"} <= set(troubles)
        assert "run without the sidecar: own" in troubles["pfc default/kv PodsInjected"]

        assert "no data plane serves on card-0" in run(api, "explain", "injected")
        assert "no: the webhook did not answer" in run(api, "explain", "own")
        assert "PodsInjected: these pods ask for it by a label" in " ".join(run(api, "explain", "own").split())
        wait(log, "it is recorded", lambda: _without_sidecar(api) == ["own"])
        assert "there is no pod nobody" in run(api, "explain", "nobody", code=1)

        found = told(api, "doctor", code=1)
        said = verdicts(found)
        good = ("custom resources", "operator acts", "operator's rights", "our pods are admitted", "certificates")
        for each in (*good, "network policies"):
            assert said[each] == "ok", found
        assert said["pairing"] == "ok"
        assert said["webhook answers"] == "wrong", "no webhook runs here"
        assert all(each["fix"] for each in found["checks"] if each["verdict"] == "wrong")
        before = get(api, "pods", "-n", "default")
        assert before is not None
        assert {each["metadata"]["name"] for each in before["items"]} == {"own", "injected"}, "dry runs leave nothing"
        api.kubectl("delete", "pod", "own", "--force")
        wait(log, "forgotten", lambda: condition(api, "pfc/kv", "PodsInjected") == "Succeeded")
        api.kubectl("delete", "sspool", "chat", "--timeout=90s")
        api.kubectl("delete", "pfc", "kv", "--timeout=90s")
    api.kubectl("delete", "pod", "injected", "--force")
    api.kubectl("delete", "node", "host-0", "card-0")


def test_a_namespace_without_network_policies_is_found_and_the_fix_that_is_told_mends_it(
    installed: ApiServer, tmp_path: Path
) -> None:
    api = installed
    create(api, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "chat"}})
    elsewhere = cache("kv")
    elsewhere["metadata"]["namespace"] = "chat"
    create(api, elsewhere, cache("kv"))
    try:
        (found,) = [each for each in told(api, "doctor", code=1)["checks"] if each["name"] == "network policies"]
        assert found["verdict"] == "warning"
        assert found["found"] == "every pod may try to reach the data planes of chat, stores of chat"
        shell(api, found["fix"], tmp_path)
        assert verdicts(told(api, "doctor", code=1))["network policies"] == "ok"
    finally:
        for namespace in ("chat", "default"):
            api.kubectl("delete", "pfc", "kv", "-n", namespace)
        api.kubectl("delete", "networkpolicy", "--all", "-n", "chat")
        api.kubectl("delete", "namespace", "chat", "--wait=false")


def test_old_custom_resources_and_lost_rights_are_found(installed: ApiServer) -> None:
    change = '[{"op": "replace", "path": "/spec/names/shortNames", "value": ["old"]}]'
    installed.kubectl("patch", "crd", "prefixcaches.shadowserve.io", "--type=json", "-p", change)
    installed.kubectl("delete", "role", "shadowserve-operator", "-n", "default")
    found = {each["name"]: each for each in told(installed, "doctor", code=1)["checks"]}
    assert "spec.names.shortNames" in found["custom resources"]["found"]
    assert "in default" in found["operator's rights"]["found"]
    installed.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "manifests/install.yaml"))
    assert verdicts(told(installed, "doctor", code=1))["custom resources"] == "ok"


def test_whoever_may_read_little_is_told_what_was_not_looked_at(installed: ApiServer, tmp_path: Path) -> None:
    api = installed
    api.kubectl("create", "serviceaccount", "viewer", "-n", "default")
    verbs = ("--verb=get,list", "--resource=prefixcaches.shadowserve.io,inferencepools.shadowserve.io,pods")
    api.kubectl("create", "role", "viewer", "-n", "default", *verbs)
    api.kubectl("create", "rolebinding", "viewer", "-n", "default", "--role=viewer", "--serviceaccount=default:viewer")
    limited = access_of(api, "viewer", "default", tmp_path)
    found = json.loads(_run_as(limited, "status", "-n", "default", "-o", "json"))
    assert "nodes: you have no right to list them" in found["unreadable"]
    assert found["operator"].startswith("unknown")


def _columns(api: ApiServer, kind: str, name: str) -> dict[str, str]:
    """Return what `kubectl get` shows of a resource, without its age."""
    head, line = api.kubectl("get", kind, name).rstrip().splitlines()
    begins = [match.span() for match in re.finditer(r"\S+\s*", head)]
    shown = {head[start:end].strip(): line[start:end].strip() for start, end in begins}
    shown.pop("AGE")
    return shown


def _told(api: ApiServer, pod: str) -> str | None:
    body = get(api, "pod", pod) or {"metadata": {}}
    told: str | None = body["metadata"].get("annotations", {}).get(names.DATA_PLANE_ANNOTATION)
    return told


def _run_as(kubeconfig: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "shadowserve_cli.main", *arguments, "--kubeconfig", str(kubeconfig)]
    environment = own_environment(kubeconfig)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

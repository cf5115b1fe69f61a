"""Another namespace, upgrades and leaving, done as the pages say, word for word, on an API server of their own."""

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from operator_story import (
    access_of,
    cache,
    controller_running,
    create,
    get,
    node,
    operator_running,
    pool,
    shell,
    told,
    wait,
)
from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY, default_home
from shadowserve_testbed.api_server import ESTABLISHED, ApiServer
from shadowserve_testbed.binaries import Binaries

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server and the controller manager are built
_SYSTEM, _ACCOUNT, _VARIABLE = "shadowserve-system", "shadowserve-operator", "SHADOWSERVE_WATCH_NAMESPACES"
_OVERLAY = "manifests/overlays/namespaces"
_UPGRADE = f"kubectl apply --server-side -k {_OVERLAY}"
_KINDS = ("prefixcaches.shadowserve.io", "inferencepools.shadowserve.io", "dpubindings.shadowserve.io")


@pytest.fixture
def server(api_server: ApiServer) -> Iterator[ApiServer]:
    """An API server that knows nothing of us; `api_server` has seen to it that it can be had."""
    home = default_home()
    with ApiServer(Binaries(home), home.say) as own:
        yield own


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository as a user has it, who changes overlays."""
    for part in ("manifests", "crds"):
        shutil.copytree(REPOSITORY / part, tmp_path / part)
    return tmp_path


def page(name: str, heading: str) -> list[str]:
    """Return the commands below a heading of a page, up to the next heading."""
    text = (REPOSITORY / "docs" / name).read_text()
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    commands: list[str] = re.findall(r"^\$ (.*)$", section, re.MULTILINE)
    assert commands, f"{name} has no commands below {heading!r}"
    return commands


def edit(clone: Path, *changes: tuple[str, str]) -> None:
    """Edit the overlay as the page says in words."""
    file = clone / _OVERLAY / "kustomization.yaml"
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def watched(api: ApiServer) -> str:
    """Return what the operator's Deployment says."""
    body = get(api, "deployment", _ACCOUNT, "-n", _SYSTEM) or {}
    (container,) = body["spec"]["template"]["spec"]["containers"]
    (value,) = [each["value"] for each in container["env"] if each["name"] == _VARIABLE]
    return str(value)


def missing(api: ApiServer) -> str:
    """Return what the doctor says that the operator may not do."""
    (found,) = [each for each in told(api, "doctor", code=1)["checks"] if each["name"] == "operator's rights"]
    return "" if found["verdict"] == "ok" else str(found["found"])


def policies(api: ApiServer, namespace: str) -> int:
    return len((get(api, "networkpolicy", "-n", namespace) or {})["items"])


def test_namespaces_are_added_as_the_page_says_and_upgrades_keep_them(server: ApiServer, clone: Path) -> None:
    shell(server, "kubectl apply --server-side -k manifests/overlays/own-registry", clone)
    assert (watched(server), missing(server)) == ("default", "")
    for command in page("namespaces.md", "Another namespace"):
        shell(server, command, clone)
    assert (watched(server), missing(server), policies(server, "chat")) == ("default,chat", "", 2)

    base = clone / "manifests/base/operator.yaml"  # of the next release
    base.write_text(base.read_text().replace("cpu: 100m", "cpu: 150m"))
    shell(server, _UPGRADE, clone)
    assert "150m" in str(get(server, "deployment", _ACCOUNT, "-n", _SYSTEM))
    assert watched(server) == "default,chat"

    *before, apply = page("namespaces.md", "One more")
    for command in before:
        shell(server, command, clone)
    edit(clone, ("- chat\n", "- chat\n- prod\n"), ("default,chat", "default,chat,prod"))
    shell(server, apply, clone)
    assert (watched(server), missing(server), policies(server, "prod")) == ("default,chat,prod", "", 2)


@pytest.mark.parametrize("by_hand", ["default,chat", "default,other"], ids=["as in the overlay", "otherwise"])
def test_a_variable_that_was_set_by_hand_gives_way_once(server: ApiServer, clone: Path, by_hand: str) -> None:
    shell(server, "kubectl apply --server-side -k manifests/overlays/own-registry", clone)
    roles = "sed 's/namespace: default/namespace: chat/' manifests/components/watch-namespace/roles.yaml"
    less = "sed 's/, delete]/]/'"  # of an older release
    shell(server, f"kubectl create namespace chat; {roles} | {less} | kubectl apply -f -", clone)
    shell(server, f"kubectl -n {_SYSTEM} set env deployment/{_ACCOUNT} {_VARIABLE}={by_hand}", clone)
    if by_hand == "default,chat":
        shell(server, _UPGRADE, clone)
        edit(clone, ("default,chat", "default,chat,default"))
    webhook = clone / "manifests/base/webhook.yaml"  # of the next release
    webhook.write_text(webhook.read_text().replace("cpu: 50m", "cpu: 60m"))
    said = shell(server, _UPGRADE, clone, code=1)
    assert 'conflict with "kubectl-set"' in said
    assert "1 conflict" in said
    assert watched(server) == by_hand, "nothing is changed silently"
    assert "60m" in str(get(server, "deployment", "shadowserve-webhook", "-n", _SYSTEM)), "the others are upgraded"

    (force,) = page("namespaces.md", "If you have set the variable by hand")
    shell(server, force, clone)
    assert watched(server).startswith("default,chat")
    assert missing(server) == "", "roles that were applied by hand are those of now"
    edit(clone, ('value: "default,chat', 'value: "chat,default'))
    shell(server, _UPGRADE, clone)
    assert watched(server).startswith("chat,default")


def _resources(namespace: str) -> list[dict[str, Any]]:
    made = [cache("kv"), pool("p", cacheRef={"name": "kv"})]
    return [{**body, "metadata": {**body["metadata"], "namespace": namespace}} for body in made]


def _engine(namespace: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "engine", "namespace": namespace, "labels": {names.CACHE_LABEL: "kv"}}
    metadata["annotations"] = {names.INJECTED_ANNOTATION: "1"}
    spec = {"nodeName": "host-0", "containers": [{"name": "c", "image": "i"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _annotations(api: ApiServer, namespace: str) -> set[str]:
    return set((get(api, "pod", "engine", "-n", namespace) or {})["metadata"].get("annotations") or {})


def _in_use(api: ApiServer, log: Path) -> None:
    """Wait until resources of both namespaces are made."""
    spaces = ("default", "chat")
    for namespace in spaces:
        create(api, *_resources(namespace), _engine(namespace))
    wait(log, "made", lambda: all(get(api, "deployment", "p", "-n", each) for each in spaces))
    wait(log, "told", lambda: all(names.DATA_PLANE_ANNOTATION in _annotations(api, each) for each in spaces))
    wait(log, "paired", lambda: get(api, "dpub", "card-0"))


def _installed(api: ApiServer, clone: Path) -> None:
    for command in page("namespaces.md", "Another namespace"):
        shell(api, command, clone)
    api.kubectl(*ESTABLISHED, *_KINDS)
    create(api, node("host-0"), node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))


def _left(api: ApiServer) -> list[str]:
    """Return what is installed, in all of the cluster."""
    kinds = "crd,clusterrole,clusterrolebinding,role,rolebinding,networkpolicy,mutatingwebhookconfiguration,namespace"
    listed = api.kubectl("get", kinds, "--all-namespaces", "-o", "name").split()
    return [each for each in listed if "shadowserve" in each]


def test_a_namespace_and_then_all_is_left_as_the_pages_say(server: ApiServer, clone: Path, tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    _installed(server, clone)
    access = access_of(server, _ACCOUNT, _SYSTEM, tmp_path)
    with operator_running(server, log, _SYSTEM, access=access, watched="default,chat"):
        _in_use(server, log)
        delete, *after = page("namespaces.md", "Leaving it")[:3]
        shell(server, delete, clone)
        assert _annotations(server, "chat") == {names.INJECTED_ANNOTATION}
        assert get(server, "dpub", "card-0"), "the other namespace's cache uses it"
    edit(clone, ("- chat\n", ""), ("default,chat", "default"))
    for command in after:
        shell(server, command, clone)
    assert (watched(server), policies(server, "chat")) == ("default", 0)
    with operator_running(server, log, _SYSTEM, access=access, watched="default"):
        resources, overlay = page("install.md", "Leave")
        shell(server, resources, clone)
        assert _annotations(server, "default") == {names.INJECTED_ANNOTATION}
        wait(log, "binding removed", lambda: get(server, "dpub", "card-0") is None)
    with controller_running(server, tmp_path / "controllers.log", "namespace-controller"):
        shell(server, overlay, clone)
    assert _left(server) == []


def test_whoever_deleted_the_operator_first_gets_away_as_the_page_says(
    server: ApiServer, clone: Path, tmp_path: Path
) -> None:
    log = tmp_path / "operator.log"
    _installed(server, clone)
    with operator_running(server, log, _SYSTEM, watched="default,chat"):
        _in_use(server, log)
    _, overlay = page("install.md", "Leave")
    with (
        ThreadPoolExecutor(1) as executor,
        controller_running(server, tmp_path / "controllers.log", "namespace-controller"),
    ):
        leaving = executor.submit(shell, server, overlay, clone)
        wait(log, "it hangs", lambda: all(_being_deleted(server, each) for each in _KINDS[:2]))
        look, mend = page("install.md", "If the operator went first")
        assert len(re.findall("^default ", shell(server, look, clone), re.MULTILINE)) == 2
        shell(server, mend, clone)
        shell(server, mend.replace("-n default", "-n chat"), clone)
        assert "deleted" in leaving.result()
    assert [each for each in _left(server) if each.startswith("customresourcedefinition")] == []


def _being_deleted(api: ApiServer, kind: str) -> bool:
    body = get(api, "crd", kind)
    return body is not None and "deletionTimestamp" in body["metadata"]

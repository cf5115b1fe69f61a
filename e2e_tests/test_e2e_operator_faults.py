"""The operator's process on a real API server while things are missing, edited, deleted, upgraded, or it is killed."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from operator_story import cache, condition, create, get, node, operator_running, patch_status, pool, wait
from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY
from shadowserve_testbed.api_server import ApiServer

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built
_OURS = ("-l", f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}")
_MADE = "configmap,secret,service,statefulset,daemonset,deployment,pdb"
_CRDS = REPOSITORY / "crds/generated"
_HEALED = 75.0
"""A little more than the operator lets drift last: nothing tells it when a claim or a Secret of the user appears."""


@pytest.fixture(scope="module")
def operator(api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with operator_running(api, log):
        yield log


@pytest.fixture(autouse=True)
def _tidy(api: ApiServer) -> Iterator[None]:
    yield
    api.kubectl("delete", "inferencepools.shadowserve.io,pfc", "--all", "--timeout=90s")
    api.kubectl("delete", f"{_MADE},pod", *_OURS, "--force")  # nothing collects garbage here
    api.kubectl("delete", "node", "--all")


def secret(name: str, **values: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}


def claim(name: str) -> dict[str, Any]:
    spec = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def model(kind: str, **source: Any) -> dict[str, Any]:
    field = kind[0].lower() + kind[1:]
    return {"name": "m", "source": {"type": kind, field: source}}


def external(name: str) -> dict[str, Any]:
    login = {"endpoints": ["127.0.0.1:1"], "topology": "Standalone", "credentialsSecretRef": {"name": "login"}}
    return cache(name, store={"type": "External", "external": login}, security={"transport": "Plaintext"})


MISSING = {
    "PrefixCache": (pool("p", cacheRef={"name": "kv"}), "CacheAttached", "CacheNotFound", "kv", cache("kv")),
    "claim": (
        pool("p", model=model("PersistentVolumeClaim", claimName="models", path="a")),
        "EnginesReady",
        "ModelNotFound",
        "PersistentVolumeClaim models does not exist",
        claim("models"),
    ),
    "token": (
        pool("p", model=model("HuggingFace", repository="a/b", tokenSecretRef={"name": "hf"})),
        "EnginesReady",
        "ModelNotFound",
        "Secret hf does not exist",
        secret("hf", token="t"),
    ),
    "login": (external("ext"), "StoreReady", "SecretNotFound", "login", secret("login", password="p")),
    "cards": (
        cache("kv", placement={"order": ["DPU"]}),
        "DataPlaneReady",
        "NoDpuNodeMatches",
        "label the cards' nodes",
        node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}),
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_told_with_the_fix_and_heals(api: ApiServer, operator: Path, what: str) -> None:
    resource, kind, reason, says, thing = MISSING[what]
    short = "pfc" if resource["kind"] == "PrefixCache" else "inferencepool.shadowserve.io"
    name = f"{short}/{resource['metadata']['name']}"
    create(api, resource)
    wait(operator, f"{reason} told", lambda: condition(api, name, kind) == reason)
    message = condition(api, name, kind, "message")
    assert says in message
    assert condition(api, name, "Ready", "status") == "False"
    create(api, thing)
    wait(operator, "healed", lambda: condition(api, name, kind) not in ("", reason), _HEALED)
    name = f"{thing['kind']}/{thing['metadata']['name']}"
    api.kubectl("patch", name, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')  # a claim is protected
    api.kubectl("delete", name, "--timeout=90s")


_LONG = "host-" + "x" * 60
_PAIRINGS = {
    "a label that names no node": ("card-0", "HostNotFound", "names host-9, which is no node; correct it"),
    "a label that names its card": ("card-1", "SelfPair", "names the card itself"),
    "a label that names another card": ("card-2", "AmbiguousHost", "names card-0, which is a card itself"),
    "a label that cuts a name off": ("card-3", "NameTooLong", f"the node is called {_LONG}"),
    "a binding by hand without a card": ("by-hand", "CardNotFound", "spec.dpuNode card-9 is no node"),
    "one of two that contradict": ("here", "AmbiguousHost", "DPUBindings here, there name the hosts host-0, host-1"),
    "the other": ("there", "AmbiguousHost", "keep one"),
}
"""By what is wrong: a DPUBinding, and the reason and the words of its PairingValid."""


def test_every_pairing_that_cannot_be_says_what_is_wrong_with_it_and_heals(api: ApiServer, operator: Path) -> None:
    create(api, node("host-0"), node("host-1"), node(_LONG), cache("kv"))
    labels = {"card-0": "host-9", "card-1": "card-1", "card-2": "card-0", "card-3": _LONG[:63], "card-4": "host-0"}
    create(api, *(node(name, **{names.DEFAULT_HOST_LABEL: host}) for name, host in labels.items()))
    create(api, _binding("by-hand", "host-0", "card-9"))
    create(api, _binding("here", "host-0", "card-4"), _binding("there", "host-1", "card-4"))
    for wrong, (name, reason, words) in _PAIRINGS.items():
        wait(operator, wrong, _says(api, name, reason))
        assert words in condition(api, f"dpub/{name}", "PairingValid", "message")
        assert reason in api.kubectl("get", "dpub", name)
    api.kubectl("label", "node", "card-0", "card-1", "card-2", f"{names.DEFAULT_HOST_LABEL}=host-0", "--overwrite")
    create(api, _binding("long", _LONG, "card-3"), node("card-9", **{names.DEFAULT_HOST_LABEL: ""}))
    api.kubectl("delete", "dpub", "there")
    for name in ("card-0", "card-1", "card-2", "long", "by-hand", "here"):
        wait(operator, f"{name} healed", _says(api, name, "Succeeded"))
    api.kubectl("delete", "dpub", "by-hand", "here", "long")


def _says(api: ApiServer, binding: str, reason: str) -> Callable[[], bool]:
    return lambda: condition(api, f"dpub/{binding}", "PairingValid") == reason


def _binding(name: str, host: str, card: str) -> dict[str, Any]:
    spec = {"hostNode": host, "dpuNode": card, "source": "Manual"}
    return {"apiVersion": names.API_VERSION, "kind": "DPUBinding", "metadata": {"name": name}, "spec": spec}


def test_whatever_is_deleted_or_edited_by_hand_is_repaired(api: ApiServer, operator: Path) -> None:
    create(api, node("host-0"), node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))
    create(api, cache("kv"), pool("p", replicas=2, cacheRef={"name": "kv"}))
    wait(operator, "all made", lambda: get(api, "deployment", "p") and get(api, "daemonset", "kv-data-plane"))
    wait(operator, "binding made", lambda: get(api, "dpub", "card-0"))
    made = _made(api)
    assert len(made) >= 14, made
    for each in made:
        before = get(api, each)
        assert before is not None
        api.kubectl("delete", each, "--wait=false")
        wait(operator, f"{each} made anew", lambda each=each, uid=_uid(before): _uid(get(api, each)) not in ("", uid))  # type: ignore[misc]
    for each, (field, change) in _EDITS.items():
        healthy = get(api, each)
        assert healthy is not None
        api.kubectl("patch", each, "--type=json", "-p", json.dumps([change]))
        wait(operator, f"{each} repaired", _as_before(api, each, field, healthy))
    healthy = get(api, "deployment/p")
    assert healthy is not None
    api.kubectl("set", "env", "deployment/p", "SOMEBODY=added")
    wait(operator, "variable removed", _as_before(api, "deployment/p", "template", healthy))
    wait(operator, "no more writes", lambda: _quiet(api, operator))


def _quiet(api: ApiServer, log: Path) -> bool:
    """Return whether the operator does nothing more while it is poked once more."""
    length = len(log.read_text())
    api.kubectl("annotate", "pfc/kv", "sspool/p", f"poked=at-{length}", "--overwrite")
    time.sleep(2.0)
    return len(log.read_text()) == length


def test_a_label_that_was_taken_off_is_put_back(api: ApiServer, operator: Path) -> None:
    create(api, cache("kv", placement={"order": ["Host"]}))
    wait(operator, "made", lambda: get(api, "service", "kv-store"))
    api.kubectl("label", "service", "kv-store", f"{names.MANAGED_BY_LABEL}-", f"{names.CACHE_LABEL}-")
    api.kubectl("annotate", "pfc", "kv", "somebody=looks")
    wait(operator, "label put back", lambda: _labels(api, "service/kv-store").get(names.CACHE_LABEL) == "kv")


_EDITS: dict[str, tuple[str, dict[str, Any]]] = {
    "deployment/p": ("replicas", {"op": "replace", "path": "/spec/replicas", "value": 7}),
    "statefulset/kv-store": ("replicas", {"op": "replace", "path": "/spec/replicas", "value": 0}),
    "daemonset/kv-data-plane": (
        "template",
        {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil:1"},
    ),
    "service/kv-store": ("ports", {"op": "replace", "path": "/spec/ports/0/port", "value": 1}),
    "configmap/kv-config": ("config.json", {"op": "replace", "path": "/data/config.json", "value": "{}"}),
    "service/p": (
        "ports",
        {
            "op": "add",
            "path": "/spec/ports/-",
            "value": {"name": "more", "port": 1, "protocol": "TCP", "targetPort": 1},
        },
    ),
    "pdb/p": ("maxUnavailable", {"op": "replace", "path": "/spec/maxUnavailable", "value": 2}),
    "secret/kv-store-users": ("users.acl", {"op": "replace", "path": "/data/users.acl", "value": "dXNlcg=="}),
    "dpub/card-0": ("hostNode", {"op": "replace", "path": "/spec/hostNode", "value": "elsewhere"}),
}
"""By object: a field, and a change of it by hand."""


def _as_before(api: ApiServer, what: str, field: str, before: dict[str, Any]) -> Callable[[], bool]:
    def holds() -> bool:
        now = get(api, what) or {}
        parts = [part for part in ("spec", "data") if part in before]
        return all(now.get(part, {}).get(field) == before[part].get(field) for part in parts)

    assert any(field in before.get(part, {}) for part in ("spec", "data"))
    return holds


def test_pods_are_told_when_their_card_goes(api: ApiServer, operator: Path) -> None:
    create(api, node("host-0"), node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    patch_status(api, "node/card-0", conditions=[ready])
    create(api, cache("kv"))
    wait(operator, "data planes made", lambda: get(api, "daemonset", "kv-data-plane"))
    labels = {names.CACHE_LABEL: "kv", names.COMPONENT_LABEL: "data-plane", names.MANAGED_BY_LABEL: names.MANAGED_BY}
    create(api, _pod("plane", "card-0", labels), _pod("engine", "host-0", {names.CACHE_LABEL: "kv"}, injected="1"))
    patch_status(api, "pod/plane", phase="Running", podIP="127.0.0.9", podIPs=[{"ip": "127.0.0.9"}], conditions=[ready])
    patch_status(api, "statefulset/kv-store", replicas=1, readyReplicas=1)
    wait(operator, "told the card", lambda: _told(api) == "127.0.0.9:9464", 60.0)
    api.kubectl("delete", "node", "card-0")
    wait(operator, "told none", lambda: _told(api) == "")
    wait(operator, "binding removed", lambda: get(api, "dpub", "card-0") is None)
    api.kubectl("delete", "pod", "engine", "plane", "--force")


def test_custom_resources_are_upgraded_under_a_running_operator(api: ApiServer, operator: Path) -> None:
    create(api, cache("kv", placement={"order": ["Host"]}), pool("p", cacheRef={"name": "kv"}))
    wait(operator, "made", lambda: get(api, "statefulset", "kv-store") and get(api, "deployment", "p"))
    for file in sorted(_CRDS.glob("shadowserve.io_*.yaml")):
        newer = yaml.safe_load(file.read_text())
        spec = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        spec["properties"]["comesLater"] = {"type": "string", "default": "soon"}
        api.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", manifest=newer)
    wait(operator, "new default shows", lambda: (get(api, "pfc/kv") or {})["spec"].get("comesLater") == "soon")
    api.kubectl("patch", "pfc", "kv", "--type=merge", "-p", '{"spec": {"codec": {"tier": "High"}}}')
    api.kubectl("scale", "inferencepools.shadowserve.io/p", "--replicas=2")
    wait(
        operator,
        "edit of the cache done",
        lambda: "High" in (get(api, "configmap/kv-config") or {})["data"]["config.json"],
    )
    wait(operator, "pool scaled", lambda: (get(api, "deployment/p") or {})["spec"]["replicas"] == 2)
    assert condition(api, "pfc/kv", "Ready") != "Failed"
    api.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(_CRDS))
    wait(operator, "old again", lambda: "comesLater" not in (get(api, "pfc/kv") or {})["spec"])
    api.kubectl("patch", "pfc", "kv", "--type=merge", "-p", '{"spec": {"codec": {"tier": "Compact"}}}')
    wait(operator, "edit done", lambda: "Compact" in (get(api, "configmap/kv-config") or {})["data"]["config.json"])


@pytest.mark.parametrize("order", [("pfc", "sspool"), ("sspool", "pfc")], ids="-".join)
@pytest.mark.parametrize("half", [True, False], ids=["half made", "made"])
def test_both_deleted_in_any_order_leave_nothing(
    api: ApiServer, operator: Path, order: tuple[str, str], half: bool
) -> None:
    create(api, node("host-0"), node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))
    create(api, _pod("engine", "host-0", {names.CACHE_LABEL: "kv"}, injected="1"))
    create(api, cache("kv"), pool("p", cacheRef={"name": "kv"}))
    owners = {_uid(get(api, "pfc/kv")), _uid(get(api, "sspool/p"))}
    if not half:
        wait(operator, "made", lambda: get(api, "deployment/p") and get(api, "dpub/card-0") and _told(api) == "")
    for kind in order:
        api.kubectl("delete", kind, "--all", "--timeout=90s")
    wait(operator, "binding removed", lambda: get(api, "dpub/card-0") is None)
    wait(operator, "annotation removed", lambda: _told(api) is None)
    left = json.loads(api.kubectl("get", _MADE, *_OURS, "-o", "json"))["items"]
    for body in left:  # a garbage collector takes what has no owner any more
        assert {each["uid"] for each in body["metadata"]["ownerReferences"]} <= owners, body["metadata"]["name"]
    time.sleep(2.0)  # nobody makes it again
    assert get(api, "dpub/card-0") is None
    api.kubectl("delete", "pod", "engine", "--force")


def _made(api: ApiServer) -> list[str]:
    listed = json.loads(api.kubectl("get", f"{_MADE},dpub", *_OURS, "-o", "json"))["items"]
    return [f"{body['kind'].lower()}/{body['metadata']['name']}" for body in listed]


def _uid(body: dict[str, Any] | None) -> str:
    return str(body["metadata"]["uid"]) if body else ""


def _labels(api: ApiServer, what: str) -> dict[str, str]:
    body = get(api, what) or {"metadata": {}}
    return dict(body["metadata"].get("labels") or {})


def _told(api: ApiServer) -> str | None:
    body = get(api, "pod/engine") or {"metadata": {}}
    told: str | None = body["metadata"].get("annotations", {}).get(names.DATA_PLANE_ANNOTATION)
    return told


def _pod(name: str, where: str, labels: dict[str, str], injected: str = "") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "default", "labels": labels}
    if injected:
        metadata["annotations"] = {names.INJECTED_ANNOTATION: injected}
    spec = {"nodeName": where, "containers": [{"name": "c", "image": "i"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

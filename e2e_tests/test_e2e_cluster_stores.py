"""Stores in pods: shards that come and go while everything is served, and a store that somebody else runs."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from cluster_story import SECONDS, Bed
from shadowserve_crds import names
from shadowserve_testbed import scenario
from shadowserve_testbed.images.catalogue import ENGINE, STORE
from shadowserve_testbed.installation import remove

pytestmark = pytest.mark.timeout(900)
_CACHE = f"pfc/{scenario.CACHE}"
_POOL = f"sspool/{scenario.POOL}"
_ELSEWHERE = "elsewhere"
_RIGHTS = ("+get", "+set", "+exists", "+ping", "+hello", "+auth")
_KEYS = [f"story:{number}" for number in range(300)]
_FILES = f"--cert {names.TLS_FOLDER}/tls.crt --key {names.TLS_FOLDER}/tls.key --cacert {names.TLS_FOLDER}/ca.crt"
_AS_ADMINISTRATOR = (
    "export REDISCLI_AUTH=$(cat /etc/valkey/secrets/admin-password); "
    f'ask() {{ valkey-cli -h localhost --tls {_FILES} --user shadowserve-operator --raw "$@"; }}; '
)


@pytest.fixture(autouse=True)
def _none_before(bed: Bed) -> Iterator[None]:
    remove(bed.kubectl, scenario.NAMESPACE, SECONDS, lambda _: None)
    yield
    remove(bed.kubectl, scenario.NAMESPACE, SECONDS, lambda _: None)


def _sharded(shards: int) -> dict[str, Any]:
    manifest = deepcopy(scenario.cache_manifest())
    manifest["spec"]["store"]["managed"]["shards"] = shards
    return manifest


def _servers(bed: Bed) -> list[str]:
    selector = f"{names.CACHE_LABEL}={scenario.CACHE},{names.COMPONENT_LABEL}=store"
    pods = bed.kubectl.items("pods", "--namespace", scenario.NAMESPACE, "--selector", selector)
    return sorted(pod["metadata"]["name"] for pod in pods)


def _asked(bed: Bed, pod: str, script: str) -> list[str]:
    """Return the lines that a script prints, which may `ask` the server in that pod anything."""
    inside = ("exec", pod, "--namespace", scenario.NAMESPACE, "--container", "valkey", "--")
    return bed.kubectl.run(*inside, "sh", "-c", _AS_ADMINISTRATOR + script, seconds=SECONDS).split()


def _answered(bed: Bed, pod: str, commands: list[str]) -> list[str]:
    """Return the server's answer to each command."""
    listed = " ".join(f"'{command}'" for command in commands)
    return _asked(bed, pod, f'for each in {listed}; do echo "$each"; done | ask')


def _keys_by_server(bed: Bed) -> dict[str, set[str]]:
    return {pod: set(_asked(bed, pod, "ask KEYS 'story:*'")) for pod in _servers(bed)}


def _ready_since(bed: Bed) -> tuple[str, str]:
    return bed.condition(_CACHE, "Ready"), bed.condition(_CACHE, "Ready", "lastTransitionTime")


def _reshape(bed: Bed, shards: int) -> None:
    bed.apply(_sharded(shards))
    done = f"{shards} of {shards} shards serve"
    bed.wait(done, lambda: bed.condition(_CACHE, "StoreReady", "message") == done)
    bed.wait("pods are as many", lambda: len(_servers(bed)) == shards)
    bed.wait("a chunk came back", lambda: bed.condition(_CACHE, "RoundTripVerified") == "True")


def test_shards_come_and_go_without_losing_a_key_and_the_cache_stays_ready(bed: Bed) -> None:
    bed.apply(_sharded(1))
    bed.wait("the cache is ready", lambda: bed.ready(_CACHE) and bed.condition(_CACHE, "RoundTripVerified") == "True")
    first, *_ = _servers(bed)
    assert _answered(bed, first, [f"SET {key} value-of-{key}" for key in _KEYS]) == ["OK"] * len(_KEYS)
    ready = _ready_since(bed)
    assert ready[0] == "True"

    _reshape(bed, 3)
    held = _keys_by_server(bed)
    assert all(held.values()), "every shard has some of the keys"
    assert sorted(key for keys in held.values() for key in keys) == sorted(_KEYS)

    _reshape(bed, 1)
    assert _keys_by_server(bed) == {first: set(_KEYS)}
    assert _answered(bed, first, [f"GET {key}" for key in _KEYS]) == [f"value-of-{key}" for key in _KEYS]
    assert _ready_since(bed) == ready, "it was ready all the time"


def _external(topology: str, **more: Any) -> dict[str, Any]:
    manifest = deepcopy(scenario.cache_manifest())
    endpoints = [f"{_ELSEWHERE}.{scenario.NAMESPACE}.svc:{names.STORE_PORT}"]
    manifest["spec"]["store"] = {"type": "External", "external": {"endpoints": endpoints, "topology": topology, **more}}
    return manifest


def _somebody_elses(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": _ELSEWHERE, "namespace": scenario.NAMESPACE, "labels": {"app": _ELSEWHERE}}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}


def _server(*more: str) -> dict[str, Any]:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    options = ["--port", str(names.STORE_PORT), "--protected-mode", "no", "--save", "", "--dir", "/tmp", *more]
    container = {"name": "valkey", "image": STORE, "command": ["valkey-server", *options], "securityContext": security}
    return _somebody_elses("Pod", {"containers": [container], "terminationGracePeriodSeconds": 1})


@pytest.fixture
def elsewhere(bed: Bed) -> Iterator[None]:
    """A Service that is not ours; the server behind it comes later."""
    bed.apply(_somebody_elses("Service", {"selector": {"app": _ELSEWHERE}, "ports": [{"port": names.STORE_PORT}]}))
    yield
    there = (f"service/{_ELSEWHERE}", f"pod/{_ELSEWHERE}", f"secret/{_ELSEWHERE}")
    bed.kubectl.run("delete", *there, "--ignore-not-found", "--namespace", scenario.NAMESPACE)


def _commanded(bed: Bed, *command: str) -> str:
    """Return what the store says to its owner."""
    inside = ("exec", _ELSEWHERE, "--namespace", scenario.NAMESPACE, "--")
    return bed.kubectl.run(*inside, "valkey-cli", *command).strip()


def _calls(bed: Bed, command: str) -> int:
    told = _commanded(bed, "INFO", "commandstats").splitlines()
    found = [line for line in told if line.startswith(f"cmdstat_{command}:")]
    return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0


@pytest.mark.usefixtures("elsewhere")
def test_a_store_that_somebody_else_runs_is_waited_for_used_and_told_of(bed: Bed) -> None:
    bed.apply(_external("Standalone"))
    bed.wait("it is missed", lambda: bed.condition(_CACHE, "StoreReady", "reason") == "Unreachable")
    assert f"{_ELSEWHERE}.{scenario.NAMESPACE}.svc" in bed.condition(_CACHE, "StoreReady", "message")
    assert not bed.ready(_CACHE)

    bed.apply(_server())
    bed.wait("the cache is ready", lambda: bed.ready(_CACHE))
    assert "is one server" in bed.condition(_CACHE, "StoreReady", "message")
    bed.wait("a chunk came back", lambda: bed.condition(_CACHE, "RoundTripVerified") == "True")
    assert [plane.node for plane in bed.planes()] == ["card-0"]
    assert _calls(bed, "set") > 0
    assert _calls(bed, "get") > 0
    status = (bed.kubectl.get(_CACHE) or {})["status"]
    assert (status["store"]["shards"], status["store"]["readyShards"]) == (1, 1)
    assert not _servers(bed), "the operator runs none"

    bed.apply(_external("Cluster"))
    bed.wait("it is refused", lambda: bed.condition(_CACHE, "StoreReady", "reason") == "TopologyMismatch")
    assert "set spec.store.external.topology to Standalone" in bed.condition(_CACHE, "StoreReady", "message")


_ANSWERS = """
import http.server, os, signal

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container ignores it otherwise

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("", 8000), Healthy).serve_forever()
"""


def _pool() -> dict[str, Any]:
    """Return a pool of one engine; a small server stands for it, the sidecar beside it is ours."""
    manifest = scenario.pool_manifest(1)
    server = {"name": "engine", "command": ["python3", "-c", _ANSWERS]}
    manifest["spec"]["engine"] = {
        "image": ENGINE,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "podTemplate": {"spec": {"containers": [server]}},
    }
    manifest["spec"]["rollout"] = {"drain": "1s", "maxSurge": 0, "maxUnavailable": 1}
    return manifest


def _login(password: str) -> dict[str, Any]:
    metadata = {"name": _ELSEWHERE, "namespace": scenario.NAMESPACE}
    data = {"username": "shared", "password": password}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


def _settled(bed: Bed) -> bool:
    """Whether pool and cache are as they should be, and a chunk came back."""
    return bed.ready(_POOL) and bed.ready(_CACHE) and bed.condition(_CACHE, "RoundTripVerified") == "True"


@pytest.mark.usefixtures("elsewhere")
def test_a_login_that_comes_late_is_waited_for_and_one_that_is_rotated_reaches_who_runs(bed: Bed) -> None:
    bed.apply(_server("--user", "shared", "on", ">old", "~shadowserve:*", "-@all", *_RIGHTS))
    cache = _external("Standalone", credentialsSecretRef={"name": _ELSEWHERE})
    # a pod that starts before its card serves would restore at the host for half a minute, where without an engine no
    # round trip is made
    cache["spec"]["placement"]["order"] = ["DPU"]
    bed.apply(cache, _pool())
    bed.wait("the Secret is missed", lambda: _ELSEWHERE in bed.condition(_POOL, "EnginesReady", "message"))
    assert bed.condition(_CACHE, "StoreReady", "reason") == "SecretNotFound"
    assert not bed.engines(), "they would start without a user name"
    assert not bed.planes()

    bed.apply(_login("old"))
    bed.wait("all of it is ready", lambda: _settled(bed))
    before = {pod.name for pod in (*bed.engines(), *bed.planes())}
    assert len(before) == 2

    assert _commanded(bed, "ACL", "SETUSER", "shared", ">new") == "OK"
    bed.apply(_login("new"))
    bed.wait("others run", lambda: before.isdisjoint(pod.name for pod in (*bed.engines(), *bed.planes())))
    assert _commanded(bed, "ACL", "SETUSER", "shared", "<old") == "OK"
    bed.wait("all of it is ready again", lambda: _settled(bed))
    assert len({pod.name for pod in (*bed.engines(), *bed.planes())}) == 2

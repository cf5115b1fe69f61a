"""A pool's pods are replaced and taken away while requests are under way: not one of them fails.

Engines are not the point, so a small server stands for them; the sidecar beside it is ours.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cluster_story import SECONDS, Bed
from shadowserve_crds import names
from shadowserve_testbed import scenario
from shadowserve_testbed.images.catalogue import ENGINE
from shadowserve_testbed.images.volumes import model_source
from shadowserve_testbed.installation import remove

pytestmark = pytest.mark.timeout(900)
_POOL, _CLIENT = f"sspool/{scenario.POOL}", "asker"
_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
_SERVER = """
import http.server, os, signal, time

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container ignores it otherwise

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/health":
            time.sleep(1)
        body = os.environ["STORY_VERSION"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer.request_queue_size = 64
http.server.ThreadingHTTPServer(("", 8000), Answers).serve_forever()
"""
"""Ends at once when it is told to, whatever is under way: only the drain before that protects requests."""
_ASKS = f"""
import socket, threading, urllib.request

address = socket.gethostbyname("{scenario.POOL}.{scenario.NAMESPACE}.svc")

def ask():
    while True:
        try:
            with urllib.request.urlopen(f"http://{{address}}:8000/answer", timeout=120) as reply:
                print("version", reply.read().decode(), flush=True)
        except Exception as error:  # whatever it is, an answer did not come
            print("failed", repr(error), flush=True)

for _ in range(4):
    threading.Thread(target=ask).start()
"""


def _pool(version: int, replicas: int) -> dict[str, Any]:
    manifest = scenario.pool_manifest(replicas)
    server = {"name": "engine", "command": ["python3", "-c", _SERVER]}
    manifest["spec"]["model"]["source"] = model_source()
    manifest["spec"]["engine"] = {
        "image": ENGINE,
        "env": [{"name": "STORY_VERSION", "value": str(version)}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "podTemplate": {"spec": {"containers": [server]}},
    }
    manifest["spec"]["rollout"] = {"drain": "20s"}
    return manifest


def _client() -> dict[str, Any]:
    container = {"name": "asks", "image": ENGINE, "command": ["python3", "-c", _ASKS], "securityContext": _SECURITY}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _CLIENT, "namespace": scenario.NAMESPACE},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }


@pytest.fixture
def asked(bed: Bed) -> Iterator[None]:
    """Two pods of a pool, and a client in the cluster that asks them all the time, four requests at once."""
    cache = scenario.cache_manifest()
    cache["spec"]["placement"]["host"]["resources"]["cpu"] = "250m"  # there are three pods for a while
    try:
        bed.apply(cache, _pool(1, 2))
        bed.wait("the pool is ready", lambda: bed.ready(_POOL))
        bed.kubectl.run("create", "-f", "-", manifest=_client())
        bed.wait("answers come", lambda: _answers(bed)["version 1"] >= 8)
        yield
    finally:
        try:
            bed.kubectl.run("delete", "pod", _CLIENT, "--ignore-not-found", "--namespace", scenario.NAMESPACE)
        finally:
            remove(bed.kubectl, scenario.NAMESPACE, SECONDS, lambda _: None)


def _answers(bed: Bed) -> Counter[str]:
    """Return how often the client was told what."""
    if bed.phase(_CLIENT) != "Running":
        return Counter()
    return Counter(bed.kubectl.run("logs", _CLIENT, "--namespace", scenario.NAMESPACE).splitlines())


def _pods(bed: Bed) -> int:
    """Return how many pods of the pool are there, those that end included."""
    selector = f"{names.POOL_LABEL}={scenario.POOL}"
    return len(bed.kubectl.items("pods", "--namespace", scenario.NAMESPACE, "--selector", selector))


def _go_on(bed: Bed) -> None:
    before = _answers(bed).total()
    bed.wait("requests go on", lambda: _answers(bed).total() >= before + 12)


@pytest.mark.usefixtures("asked")
def test_no_request_fails_while_pods_are_replaced_and_while_one_goes(bed: Bed) -> None:
    old = {pod.name for pod in bed.engines()}
    bed.apply(_pool(2, 2))
    bed.wait("both pods are new", lambda: bed.ready(_POOL) and not old & {pod.name for pod in bed.engines()})
    assert bed.condition(_POOL, "RolloutComplete") == "True"
    bed.wait("the old ones are gone", lambda: _pods(bed) == 2)
    _go_on(bed)

    bed.kubectl.run("scale", _POOL, "--replicas=1", "--namespace", scenario.NAMESPACE)
    bed.wait("one goes", lambda: _pods(bed) == 1)
    _go_on(bed)

    answers = _answers(bed)
    assert set(answers) == {"version 1", "version 2"}, answers

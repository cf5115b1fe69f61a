"""The store as the operator renders it, run: configuration, users and certificates let sidecars in, and no more.

What a pod would mount is written to files; the server is a real one, the client is the sidecar's own.
"""

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeCluster

from shadowserve_crds import names
from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import StoreRefused
from shadowserve_dataplane.fetch.remote import PlacementAddress, RemoteDataPlane
from shadowserve_dataplane.sidecar.remote import channel_credentials
from shadowserve_dataplane.sidecar.settings import parse_config, store_settings
from shadowserve_dataplane.store.client import PutOutcome, StoreClient
from shadowserve_operator import pki
from shadowserve_operator.desired.certificates import Wanted, files_of
from shadowserve_operator.desired.store import renewal_script
from shadowserve_operator.kinds import CONFIG_MAP, DAEMON_SET, SECRET, Ref
from shadowserve_operator.reconcile import reconcile_prefixcache
from shadowserve_operator.settings import OperatorSettings

_SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
_CLIENT = shutil.which("valkey-cli") or shutil.which("redis-cli")
pytestmark = pytest.mark.skipif(_SERVER is None or _CLIENT is None, reason="no valkey-server or redis-server on PATH")
_KEY = ChunkKey(bytes(range(32)))


@dataclass(frozen=True, slots=True)
class Rendered:
    """The files of a store and of an injected pod, and the port that stands for the store's."""

    folder: Path
    port: int
    transport: str

    def text(self, content: str) -> str:
        """Return a rendered text with the paths and addresses of this machine."""
        moved = content.replace("/etc/valkey/secrets", str(self.folder / "kv-store-users"))
        moved = moved.replace("/etc/shadowserve/secrets", str(self.folder / "kv-secrets"))
        return moved.replace(f"kv-store.default.svc:{names.STORE_PORT}", f"localhost:{self.port}")


def _free_port() -> int:
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        if port < 50_000:  # the servers' own port is 10000 above
            return port


@pytest.fixture(params=["MutualTLS", "Plaintext"])
def rendered(request: pytest.FixtureRequest, tmp_path: Path) -> Rendered:
    cluster = FakeCluster("default")
    metadata = {"name": "kv", "namespace": "default", "generation": 1}
    spec: dict[str, Any] = {"security": {"transport": request.param}}
    cluster.put({"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": spec})
    asyncio.run(reconcile_prefixcache(cluster, "default", "kv", OperatorSettings(), lambda: datetime.now(UTC)))
    found = Rendered(tmp_path, _free_port(), request.param)
    for ref, body in cluster.objects.items():
        if ref.kind == SECRET:
            (tmp_path / ref.name).mkdir()
            for key, value in body["data"].items():
                (tmp_path / ref.name / key).write_bytes(b64decode(value))
    for name, key, tls in (
        ("kv-store-config", "valkey.conf", "kv-store-tls"),
        ("kv-config", "config.json", "kv-sidecar-tls"),
    ):
        content = found.text(cluster.objects[Ref(CONFIG_MAP, "default", name)]["data"][key])
        (tmp_path / key).write_text(content.replace(names.TLS_FOLDER, str(tmp_path / tls)))
    (tmp_path / "data").mkdir()
    daemon_set = cluster.objects[Ref(DAEMON_SET, "default", "kv-data-plane")]
    (tmp_path / "data-plane.json").write_text(json.dumps(daemon_set["spec"]["template"]["spec"]["containers"][0]))
    return found


@pytest.fixture
def store(rendered: Rendered) -> Iterator[Rendered]:
    lines = (rendered.folder / "valkey.conf").read_text().replace("dir /data", f"dir {rendered.folder / 'data'}")
    lines = lines.replace(f"port {names.STORE_PORT}", f"port {rendered.port}")
    (rendered.folder / "valkey.conf").write_text(lines)
    assert _SERVER is not None
    process = subprocess.Popen([_SERVER, str(rendered.folder / "valkey.conf")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        else:
            pytest.fail("the store does not take what was rendered")
        _form(rendered)
        yield rendered
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _form(store: Rendered) -> None:
    """Give the server all slots, as the operator does."""
    password = (store.folder / "kv-store-users/admin-password").read_text()
    assert "OK" in _run(store, "shadowserve-operator", password, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    end = time.monotonic() + 20
    while "cluster_state:ok" not in _run(store, "shadowserve-operator", password, "CLUSTER", "INFO"):
        assert time.monotonic() < end, "the cluster is not formed"
        time.sleep(0.05)


async def test_a_sidecar_stores_and_finds(store: Rendered) -> None:
    config = parse_config((store.folder / "config.json").read_bytes())
    client = StoreClient(store_settings(config))
    try:
        deadline = Deadline.after(10, time.monotonic)
        assert await client.put(_KEY, b"chunk", deadline) is PutOutcome.STORED
        assert await client.present(_KEY, deadline)
        await client.ping(deadline)
    finally:
        await client.close()


async def test_nobody_gets_in_without_the_password(store: Rendered) -> None:
    (store.folder / "kv-secrets/store-password").write_text("wrong")
    client = StoreClient(store_settings(parse_config((store.folder / "config.json").read_bytes())))
    try:
        with pytest.raises(StoreRefused, match="check username and password"):
            await client.put(_KEY, b"chunk", Deadline.after(10, time.monotonic))
    finally:
        await client.close()


@pytest.mark.parametrize("command", [["CONFIG", "GET", "*"], ["FLUSHALL"]])
def test_a_sidecar_may_not_rule_the_store(store: Rendered, command: list[str]) -> None:
    assert "NOPERM" in _as_sidecar(store, *command)


def test_a_data_plane_serves_as_its_container_says(store: Rendered) -> None:
    """The command and the variables of the DaemonSet, in a process: it reaches the store and opens its ports."""
    container = json.loads((store.folder / "data-plane.json").read_text())
    assert container["command"][:2] == ["shadowserve-dataplane", "serve"]
    tls = str(store.folder / "kv-data-plane-tls")
    words = [word.replace(names.TLS_FOLDER, tls) for word in container["command"][1:]]
    password = (store.folder / "kv-secrets/store-password").read_text()
    values = {each["name"]: store.text(each.get("value", "")) for each in container["env"]}
    values = {name: value.replace("$(STORE_PASSWORD)", password) for name, value in values.items()}
    ports = {"SHADOWSERVE_PORT": "0", "SHADOWSERVE_METRICS_PORT": "0"}
    told = store.folder / "ports"
    command = [sys.executable, "-m", "shadowserve_dataplane.service", *words, "--port-file", str(told)]
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(command, env={**os.environ, **values, **ports, "PYTHONPATH": paths})
    try:
        end = time.monotonic() + 30
        while not told.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert process.poll() is None, "the data plane does not take its command line"
        port = int(told.read_text().split()[0])
        asyncio.run(_attach(store, port))
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


async def _attach(store: Rendered, port: int) -> None:
    """Attach as the sidecar does: by address, with its certificate, to the name in the data plane's."""
    placement = parse_config((store.folder / "config.json").read_bytes()).placement
    credentials = channel_credentials(placement.tls) if placement.tls else None
    assert (credentials is None) == (store.transport == "Plaintext")
    plane = RemoteDataPlane(f"127.0.0.1:{port}", credentials, server_name=placement.server_name)
    try:
        await plane.attach("sidecar", PlacementAddress("127.0.0.1", 9, bytes(32)))
    finally:
        await plane.close()


def test_a_renewed_certificate_counts_without_a_restart(store: Rendered) -> None:
    if store.transport == "Plaintext":
        return
    tls, other = store.folder / "kv-store-tls", store.folder / "kv-data-plane-tls"
    assert _CLIENT is not None
    script = store.text(renewal_script(_CLIENT, 1)).replace(names.TLS_FOLDER, str(tls))
    script = script.replace(f"-p {names.STORE_PORT}", f"-p {store.port}")
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            end = time.monotonic() + 20
            assert process.stdout.readline() == "watching the certificate\n"
            # another certificate of the same authority, for the same name: signed for the store anew
            authority = pki.read(files_of({"data": _encoded(store.folder / "kv-authority")}))
            assert authority is not None
            wanted = Wanted("kv-store-tls", ("kv-store.default.svc", "localhost"))
            fresh = pki.issue(wanted, authority, datetime.now(UTC))
            (tls / "tls.key").write_bytes(fresh.key)
            (tls / "tls.crt").write_bytes(fresh.certificate)
            while fresh.certificate != _shown(store, other) and time.monotonic() < end:
                time.sleep(0.2)
            assert _shown(store, other) == fresh.certificate
        finally:
            process.terminate()


def _encoded(folder: Path) -> dict[str, str]:
    return {file.name: b64encode(file.read_bytes()).decode() for file in folder.iterdir()}


def _shown(store: Rendered, own: Path) -> bytes:
    """Return the certificate that the store shows."""
    context = ssl.create_default_context(cafile=str(own / "ca.crt"))
    context.load_cert_chain(own / "tls.crt", own / "tls.key")
    with (
        socket.create_connection(("127.0.0.1", store.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as encrypted,
    ):
        shown = encrypted.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown).encode()


def test_the_operator_may(store: Rendered) -> None:
    password = (store.folder / "kv-store-users/admin-password").read_text()
    assert "maxmemory-policy" in _run(store, "shadowserve-operator", password, "CONFIG", "GET", "maxmemory-policy")


def _as_sidecar(store: Rendered, *command: str) -> str:
    return _run(store, "shadowserve-sidecar", (store.folder / "kv-secrets/store-password").read_text(), *command)


def _run(store: Rendered, user: str, password: str, *command: str) -> str:
    assert _CLIENT is not None
    tls = store.folder / "kv-sidecar-tls"
    files = ["--tls", "--cacert", str(tls / "ca.crt"), "--cert", str(tls / "tls.crt"), "--key", str(tls / "tls.key")]
    where = [_CLIENT, "-h", "localhost", "-p", str(store.port), *(files if store.transport == "MutualTLS" else [])]
    login = ["--user", user, "--pass", password, "--no-auth-warning"]
    done = subprocess.run([*where, *login, *command], capture_output=True, text=True, check=False, timeout=10)
    return done.stdout + done.stderr

"""The store as the operator renders it, run: configuration, users and certificates let sidecars in, and no more.

What a pod would mount is written to files; the server is a real one, the client is the sidecar's own.
"""

import asyncio
import socket
import ssl
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rendered_store import CLIENT, SERVER, START_SECONDS, Rendered, data_plane_running, store_running

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

pytestmark = pytest.mark.skipif(SERVER is None or CLIENT is None, reason="no valkey-server or redis-server on PATH")
_KEY = ChunkKey(bytes(range(32)))


@pytest.fixture(scope="module", params=["MutualTLS", "Plaintext"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rendered]:
    rendered = Rendered.make(tmp_path_factory.mktemp(request.param), request.param, datetime.now(UTC))
    with store_running(rendered):
        yield rendered


async def test_a_sidecar_stores_and_finds(store: Rendered) -> None:
    config = parse_config((store.folder / "config.json").read_bytes())
    client = StoreClient(store_settings(config))
    try:
        deadline = Deadline.after(START_SECONDS, time.monotonic)
        assert await client.put(_KEY, b"chunk", deadline) is PutOutcome.STORED
        assert await client.present(_KEY, deadline)
        await client.ping(deadline)
    finally:
        await client.close()


async def test_nobody_gets_in_without_the_password(store: Rendered) -> None:
    settings = store_settings(parse_config((store.folder / "config.json").read_bytes()))
    client = StoreClient(replace(settings, password="wrong"))
    try:
        with pytest.raises(StoreRefused, match="check username and password"):
            await client.put(_KEY, b"chunk", Deadline.after(START_SECONDS, time.monotonic))
    finally:
        await client.close()


@pytest.mark.parametrize("command", [["CONFIG", "GET", "*"], ["FLUSHALL"]])
def test_a_sidecar_may_not_rule_the_store(store: Rendered, command: list[str]) -> None:
    assert "NOPERM" in _as_sidecar(store, *command)


def test_a_data_plane_serves_as_its_container_says(store: Rendered) -> None:
    """In a process: it reaches the store and opens its ports."""
    with data_plane_running(store) as (port, _):
        asyncio.run(_attach(store, port))


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
    assert CLIENT is not None
    script = store.text(renewal_script(CLIENT, 1)).replace(names.TLS_FOLDER, str(tls))
    script = script.replace(f"-p {names.STORE_PORT}", f"-p {store.port}")
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            end = time.monotonic() + START_SECONDS
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
        socket.create_connection(("127.0.0.1", store.port), timeout=START_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as encrypted,
    ):
        shown = encrypted.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown).encode()


def test_the_operator_may(store: Rendered) -> None:
    password = (store.folder / "kv-store-users/admin-password").read_text()
    assert "maxmemory-policy" in store.run("shadowserve-operator", password, "CONFIG", "GET", "maxmemory-policy")


def _as_sidecar(store: Rendered, *command: str) -> str:
    return store.run("shadowserve-sidecar", (store.folder / "kv-secrets/store-password").read_text(), *command)

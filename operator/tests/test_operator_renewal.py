"""Certificates, and their authority, are renewed while engines fetch: real store, data plane and sidecar, no restart.

The operator makes the Secrets, and every part sees a change of its own at another moment, as on nodes. Chunks are
fetched all the time, and at every step new connections are made between all of them: none fails.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rendered_store import CLIENT, SERVER, START_SECONDS, Rendered, data_plane_running, store_running
from sidecar_chunks import SHAPE, Chunk, make_chunks, values_of
from sidecar_client import Client
from sidecar_process import SidecarProcess

from shadowserve_crds import names
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.sidecar.settings import parse_config, store_settings
from shadowserve_dataplane.store.client import StoreClient
from shadowserve_operator.desired.certificates import AUTHORITY_LIFE
from shadowserve_operator.desired.store import renewal_script

pytestmark = [
    pytest.mark.skipif(SERVER is None or CLIENT is None, reason="no valkey-server or redis-server on PATH"),
    pytest.mark.timeout(300),
]
NOW = datetime.now(UTC)
"""TLS looks at the clock: all that is told happened shortly before now."""
MADE = NOW - AUTHORITY_LIFE * 2 / 3 - timedelta(days=5)
BEFORE = NOW - timedelta(days=30)
STAGES = {
    "a new authority is announced": NOW - timedelta(days=4),
    "it signs everything": NOW - timedelta(days=2),
    "the old one is forgotten": NOW - timedelta(hours=12),
}
PARTS = ("kv-sidecar-tls", "kv-store-tls", "kv-data-plane-tls")
SMALL = {"landingBufferBytes": 4 << 20, "stagingBufferBytes": 2 << 20, "metricsPort": 0, "isolation": "Shared"}
CHANGED_SECONDS = 60.0


@dataclass
class Load:
    """Fetches the same chunks again and again, over one session; `wrong` is what did not come as it was stored."""

    chunks: list[Chunk]
    rounds: int = 0
    wrong: list[Any] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, address: Path) -> Iterator[None]:
        """Fetch on a thread of its own."""
        thread = threading.Thread(target=self._fetch, args=(address,))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(START_SECONDS)

    def _fetch(self, address: Path) -> None:
        with Client(address, SHAPE) as client:
            client.say_hello()
            while not self._stop.is_set():
                restored = client.restore(self.rounds + 1, self.chunks)
                if restored.failed or restored.values != values_of(self.chunks):
                    self.wrong.append(restored.failed or "other values")
                self.rounds += 1

    def goes_on(self) -> None:
        """Return when it has fetched some more; fails when something was wrong."""
        wanted = self.rounds + 3
        wait(lambda: self.rounds >= wanted or bool(self.wrong), "more fetches")
        assert not self.wrong


def wait(holds: Any, what: str) -> None:
    end = time.monotonic() + CHANGED_SECONDS
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@contextmanager
def certificates_watched(store: Rendered) -> Iterator["subprocess.Popen[str]"]:
    """Run what has the store read its certificate again, as the container beside it does."""
    assert CLIENT is not None
    script = store.text(renewal_script(CLIENT, 1)).replace(names.TLS_FOLDER, str(store.folder / "kv-store-tls"))
    script = script.replace(f"-p {names.STORE_PORT}", f"-p {store.port}")
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "watching the certificate\n"
            yield process
        finally:
            process.terminate()


async def stored(config: dict[str, Any], chunks: list[Chunk]) -> None:
    """Put chunks over connections of their own."""
    client = StoreClient(store_settings(parse_config(json.dumps(config).encode())))
    try:
        for chunk in chunks:
            await client.put(chunk.key, chunk.encoded(), Deadline.after(START_SECONDS))
    finally:
        await client.close()


def shown(port: int, files: Path, protocols: list[str]) -> str:
    """Return the certificate that is shown to who comes with these files."""
    context = ssl.create_default_context(cafile=str(files / "ca.crt"))
    context.load_cert_chain(files / "tls.crt", files / "tls.key")
    context.check_hostname = False
    context.set_alpn_protocols(protocols)
    with (
        contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)) as plain,
        context.wrap_socket(plain) as encrypted,
    ):
        return ssl.DER_cert_to_PEM_cert(encrypted.getpeercert(binary_form=True) or b"")


def verified(metrics_port: int, change: str) -> bool:
    """Return whether a chunk makes the round trip through the data plane, after a change."""
    url = f"http://127.0.0.1:{metrics_port}/round-trip?change={change}"
    with urllib.request.urlopen(url, timeout=START_SECONDS) as reply:
        answer = json.loads(reply.read())
    return bool(answer["change"] == change and answer["verdict"] == "Verified")


def test_no_fetch_fails_while_authority_and_certificates_are_renewed(tmp_path: Path) -> None:
    store = Rendered.make(tmp_path, "MutualTLS", MADE)
    store.reconcile(BEFORE)
    for part in PARTS:
        store.mount(part)
    config = json.loads((tmp_path / "config.json").read_text()) | SMALL
    config["placement"]["receiverHost"] = "127.0.0.1"
    chunks = make_chunks(3)
    with store_running(store), certificates_watched(store) as watcher, data_plane_running(store) as (jobs, metrics):
        asyncio.run(stored(config, chunks))
        sidecar = SidecarProcess(tmp_path / "sidecar", config=config)
        sidecar.folder.mkdir()
        sidecar.endpoint_file.write_text(f"127.0.0.1:{jobs}")
        load = Load(chunks)
        with sidecar, load.running(sidecar.socket):
            first = _shown_by_all(store, jobs)
            for number, (stage, when) in enumerate(STAGES.items()):
                store.reconcile(when)
                for part in PARTS[number:] + PARTS[:number]:
                    store.mount(part)
                    if part == "kv-store-tls":
                        assert watcher.stdout is not None
                        assert watcher.stdout.readline() == "certificate read again\n"
                    _connect_anew(sidecar, jobs, load)
                    asyncio.run(stored(config, chunks))
                    wait(lambda change=f"{number}-{part}": verified(metrics, change), f"{stage}: a round trip")
            assert not set(first) & set(_shown_by_all(store, jobs)), "both show new certificates"
            load.goes_on()
            fetched = load.rounds  # it goes on while the sidecar is asked
            landed = 'shadowserve_fetches_total{result="landed"}'
            wait(lambda: sidecar.metrics()[landed] >= fetched, "every fetch has landed")


def _shown_by_all(store: Rendered, jobs: int) -> list[str]:
    files = store.folder / "kv-sidecar-tls"
    return [shown(store.port, files, []), shown(jobs, files, ["h2"])]


def _connect_anew(sidecar: SidecarProcess, jobs: int, load: Load) -> None:
    """Have the sidecar leave the data plane and come back to it, by connections of both to one another."""
    load.goes_on()
    for content, place in (("", "host"), (f"127.0.0.1:{jobs}", "dpu")):
        fresh = sidecar.endpoint_file.with_suffix(".new")
        fresh.write_text(content)
        fresh.rename(sidecar.endpoint_file)
        name = f'shadowserve_placement_info{{place="{place}"}}'
        wait(lambda name=name: sidecar.metrics().get(name), f"{place}: {sidecar.log}")
        load.goes_on()

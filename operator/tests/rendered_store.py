"""A store, a data plane and a pod's settings as the operator renders them, run on this machine.

What a pod would mount is written to files, a Secret as the kubelet does: all of its files change in one moment.
"""

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fakes import FakeCluster, FakeNetwork

from shadowserve_crds import names
from shadowserve_lab.processes import free_port
from shadowserve_operator.kinds import CONFIG_MAP, DAEMON_SET, SECRET, Ref
from shadowserve_operator.reconcile import reconcile_prefixcache
from shadowserve_operator.settings import OperatorSettings

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
CLIENT = shutil.which("valkey-cli") or shutil.which("redis-cli")
START_SECONDS = 60.0


@dataclass
class Rendered:
    """The files of a store and of an injected pod, and the port that stands for the store's."""

    folder: Path
    port: int
    transport: str
    cluster: FakeCluster = field(default_factory=lambda: FakeCluster("default"))
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def make(cls, folder: Path, transport: str, now: datetime, **spec: Any) -> "Rendered":
        """Return what the operator makes of a PrefixCache, `spec` beside its transport, as files."""
        found = cls(folder, free_port(), transport)
        metadata = {"name": "kv", "namespace": "default", "generation": 1}
        body = {"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata}
        found.cluster.put({**body, "spec": {"security": {"transport": transport}, **spec}})
        found.reconcile(now)
        for name in found.secrets():
            found.mount(name)
        for name, key, tls in (
            ("kv-store-config", "valkey.conf", "kv-store-tls"),
            ("kv-config", "config.json", "kv-sidecar-tls"),
        ):
            content = found.text(found.cluster.objects[Ref(CONFIG_MAP, "default", name)]["data"][key])
            (folder / key).write_text(content.replace(names.TLS_FOLDER, str(folder / tls)))
        (folder / "data").mkdir()
        return found

    def reconcile(self, now: datetime) -> None:
        """Have the operator look, as of a moment, until it writes nothing more."""

        async def settle() -> None:
            for _ in range(10):
                arguments = (self.cluster, "default", "kv", OperatorSettings(), lambda: now, FakeNetwork())
                if not (await reconcile_prefixcache(*arguments)).writes:
                    return

        asyncio.run(settle())

    def secrets(self) -> list[str]:
        """Return the names of the Secrets there are."""
        return [ref.name for ref in self.cluster.objects if ref.kind == SECRET]

    def mount(self, secret: str) -> None:
        """Write a Secret as it is now where its pods see it."""
        version = self.folder / f"..{secret}-{next(self._numbers)}"
        version.mkdir()
        for key, value in self.cluster.objects[Ref(SECRET, "default", secret)]["data"].items():
            (version / key).write_bytes(b64decode(value))
        fresh = self.folder / f"..{secret}"
        fresh.symlink_to(version)
        fresh.rename(self.folder / secret)

    def text(self, content: str) -> str:
        """Return a rendered text with the paths and addresses of this machine."""
        moved = content.replace("/etc/valkey/secrets", str(self.folder / "kv-store-users"))
        moved = moved.replace("/etc/shadowserve/secrets", str(self.folder / "kv-secrets"))
        return moved.replace(f"kv-store.default.svc:{names.STORE_PORT}", f"localhost:{self.port}")

    def run(self, user: str, password: str, *command: str) -> str:
        """Return what the store answers a user."""
        assert CLIENT is not None
        ca, certificate, key = (str(self.folder / "kv-sidecar-tls" / name) for name in ("ca.crt", "tls.crt", "tls.key"))
        files = ["--tls", "--cacert", ca, "--cert", certificate, "--key", key]
        where = [CLIENT, "-h", "localhost", "-p", str(self.port), *(files if self.transport == "MutualTLS" else [])]
        login = ["--user", user, "--pass", password, "--no-auth-warning"]
        done = subprocess.run(
            [*where, *login, *command], capture_output=True, text=True, check=False, timeout=START_SECONDS
        )
        return done.stdout + done.stderr


@contextmanager
def store_running(rendered: Rendered) -> Iterator[None]:
    """Run the store as it is rendered, with all slots."""
    lines = (rendered.folder / "valkey.conf").read_text().replace("dir /data", f"dir {rendered.folder / 'data'}")
    lines = lines.replace(f"port {names.STORE_PORT}", f"port {rendered.port}")
    (rendered.folder / "valkey.conf").write_text(lines)
    assert SERVER is not None
    process = subprocess.Popen([SERVER, str(rendered.folder / "valkey.conf")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        else:
            raise AssertionError("the store does not take what was rendered")
        _form(rendered)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=START_SECONDS)


def _form(store: Rendered) -> None:
    """Give the server all slots, as the operator does."""
    password = (store.folder / "kv-store-users/admin-password").read_text()
    assert "OK" in store.run("shadowserve-operator", password, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    end = time.monotonic() + START_SECONDS
    while "cluster_state:ok" not in store.run("shadowserve-operator", password, "CLUSTER", "INFO"):
        assert time.monotonic() < end, "the cluster is not formed"
        time.sleep(0.05)


@contextmanager
def data_plane_running(store: Rendered) -> Iterator[tuple[int, int]]:
    """Run the command and the variables of the DaemonSet's container; yields its ports of jobs and of metrics."""
    daemon_set = store.cluster.objects[Ref(DAEMON_SET, "default", "kv-data-plane")]
    container = json.loads(json.dumps(daemon_set["spec"]["template"]["spec"]["containers"][0]))
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
        end = time.monotonic() + START_SECONDS
        while not told.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert process.poll() is None, "the data plane does not take its command line"
        jobs, metrics, *_ = map(int, told.read_text().split())
        yield jobs, metrics
    finally:
        process.terminate()
        assert process.wait(timeout=START_SECONDS) == 0

"""Real store servers that stand for the pods of a StatefulSet: one address of the loopback network each.

They run with the configuration, users and certificates that the operator renders.
"""

import asyncio
import shutil
import subprocess
from base64 import b64decode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_lab.processes import free_port
from shadowserve_operator import pki
from shadowserve_operator.desired.certificates import wanted_certificates
from shadowserve_operator.desired.secrets import ADMIN_USER, SecretValues, secret_manifests
from shadowserve_operator.desired.shard_views import Member
from shadowserve_operator.desired.store import configuration_text, managed_store, member_host
from shadowserve_operator.store_admin import Access

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
_NETWORK = "127.0.{}.{}"


def a_cache(shards: int = 1, replicas: int = 0, transport: str = "MutualTLS") -> PrefixCache:
    """Return a cache called kv."""
    spec: dict[str, Any] = {
        "security": {"transport": transport},
        "store": {"managed": {"shards": shards, "replicasPerShard": replicas, "memoryPerShard": "64Mi"}},
    }
    metadata = {"name": "kv", "namespace": "default", "uid": "0-1", "generation": 1}
    return PrefixCache.parse({"metadata": metadata, "spec": spec})


@dataclass
class StorePods:
    """The servers of one store; `stop` them at the end."""

    folder: Path
    transport: str = "MutualTLS"
    port: int = field(default_factory=free_port)
    network: int = 7
    running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    births: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cache = a_cache(transport=self.transport)
        self.values = SecretValues("sidecar-secret", "admin-secret", b"salt")
        for manifest in secret_manifests(cache, self.values):
            for key, value in manifest["data"].items():
                self._write(f"{manifest['metadata']['name']}/{key}", b64decode(value))
        self.files = None
        if wanted := wanted_certificates(cache):
            now = datetime.now(UTC)
            authority = pki.make_authority("test", now)
            for each in wanted:
                made = pki.issue(each, authority, now)
                parts = (("tls.crt", made.certificate), ("tls.key", made.key), ("ca.crt", made.authority))
                for key, content in parts:
                    self._write(f"{each.secret}/{key}", content)
                if each.secret == "kv-store-tls":
                    self.files = (made.certificate, made.key, made.authority)
        text = configuration_text(cache, managed_store(cache))
        text = text.replace("/etc/valkey/secrets", str(self.folder / "kv-store-users"))
        text = text.replace(names.TLS_FOLDER, str(self.folder / "kv-store-tls"))
        text = text.replace(f"port {names.STORE_PORT}", f"port {self.port}")
        self.configuration = "\n".join(line for line in text.splitlines() if not line.startswith("dir "))
        self.network = 2 + self.port % 200

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    @property
    def access(self) -> Access:
        """How the operator speaks to them."""
        return Access(ADMIN_USER, "admin-secret", self.files)

    def member(self, number: int) -> Member:
        """Return one server as the operator knows it; born anew it has another address."""
        pod = f"kv-store-{number}"
        address = _NETWORK.format(self.network, 10 * number + self.births.get(number, 0) + 1)
        return Member(pod, number, address, member_host(a_cache(), pod), self.port)

    def members(self) -> list[Member]:
        """Return those that run."""
        return [self.member(number) for number in sorted(self.running)]

    async def start(self, *numbers: int) -> None:
        """Start these servers with what is in their folders, which is nothing for new ones."""
        for number in numbers:
            self._spawn(number)
        await asyncio.gather(*(self._accepts(number) for number in numbers))

    def _spawn(self, number: int) -> None:
        assert SERVER is not None
        member = self.member(number)
        data = self.folder / f"data-{number}-{self.births.get(number, 0)}"
        data.mkdir(parents=True, exist_ok=True)
        (data / "valkey.conf").write_text(f"{self.configuration}\ndir {data}\nbind {member.address}\n")
        announced = ["--cluster-announce-ip", member.address, "--cluster-announce-hostname", member.host]
        with (data / "log").open("ab") as log:
            command = [SERVER, str(data / "valkey.conf"), *announced]
            self.running[number] = subprocess.Popen(command, stdout=log, stderr=log)

    async def _accepts(self, number: int) -> None:
        for _ in range(3000):
            assert self.running[number].poll() is None, f"server {number} ended: see {self.folder}"
            try:
                _, writer = await asyncio.open_connection(self.member(number).address, self.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
        raise AssertionError(f"server {number} does not listen")

    async def replace(self, number: int) -> None:
        """Delete a pod, and have its StatefulSet make it anew: at another address, without what it knew."""
        self.end(number)
        self.births[number] = self.births.get(number, 0) + 1
        await self.start(number)

    def end(self, *numbers: int) -> None:
        """Kill these servers."""
        for number in numbers:
            process = self.running.pop(number)
            process.kill()
            process.wait(60)

    def stop(self) -> None:
        """Kill all servers."""
        self.end(*list(self.running))

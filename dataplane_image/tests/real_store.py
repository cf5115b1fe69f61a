"""Real store processes for tests: a Redis or Valkey server, whichever is on PATH, alone or as a cluster."""

import datetime
import ipaddress
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import valkey
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import SLOTS, Address, Topology
from shadowserve_lab.processes import free_port

START_SECONDS = 60.0


def server_binary() -> str | None:
    """Return the server on PATH, or None."""
    return shutil.which("valkey-server") or shutil.which("redis-server")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Return when `condition()` holds; fails the test when it does not within `seconds`."""
    limit = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > limit:
            raise AssertionError(f"not within {seconds} s: {what}")
        pause.wait(0.01)


@dataclass(frozen=True)
class Certificate:
    """A certificate authority and a server certificate for 127.0.0.1, as files."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> "Certificate":
        """Make both, valid for a day."""
        directory.mkdir(parents=True, exist_ok=True)
        authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        authority = (
            _certificate(name, name, authority_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
        certificate = (
            _certificate(server, name, server_key.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False)
            .sign(authority_key, hashes.SHA256())
        )
        files = cls(directory / "ca.pem", directory / "server.pem", directory / "server.key")
        files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            server_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts this authority only."""
        return ssl.create_default_context(cafile=str(self.authority))

    def server_options(self) -> list[str]:
        """Return the server's options, beside its `--tls-port`."""
        return [
            *("--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)),
            *("--tls-ca-cert-file", str(self.authority), "--tls-auth-clients", "no"),
        ]


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


@dataclass
class RedisServer:
    """One server process on a free port of the loopback interface, without persistence.

    `options` are appended to its command line. It keeps its port when it is started again.
    """

    directory: Path
    options: Sequence[str] = ()
    tls: Certificate | None = None
    password: str | None = None
    port: int = field(default_factory=free_port)
    log: list[str] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def start(self) -> "RedisServer":
        """Start, and return when the server accepts connections."""
        binary = server_binary()
        assert binary is not None, "no redis-server or valkey-server on PATH"
        self.directory.mkdir(parents=True, exist_ok=True)
        where = ["--port", "0", "--tls-port", str(self.port)] if self.tls else ["--port", str(self.port)]
        secret = ["--requirepass", self.password] if self.password else []
        encrypted = self.tls.server_options() if self.tls else []
        command = [binary, *where, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *secret, *encrypted]
        command += ["--dir", str(self.directory), "--daemonize", "no", *self.options]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._follow_log, args=(self._process, ready), daemon=True)
        self._reader.start()
        if not ready.wait(START_SECONDS) or self._process.poll() is not None:
            self.kill()
            raise AssertionError("the store did not start:\n" + "".join(self.log))
        return self

    def stop(self) -> None:
        """End the server and wait until it is gone; harmless when it is gone already."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server as a crash would, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the process: the kernel still accepts connections and takes bytes, but nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether the process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        """The URL that `StoreSettings.parse_url` and other clients understand."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis{'s' if self.tls else ''}://{secret}127.0.0.1:{self.port}"

    def settings(self, **changes: Any) -> StoreSettings:
        """Return how our store client reaches it."""
        tls = self.tls.client_context() if self.tls else None
        return StoreSettings(**{"endpoints": (self.address,), "password": self.password, "tls": tls, **changes})

    def admin(self, *command: str | bytes | int) -> Any:
        """Return the reply to `command`, sent on a connection of its own."""
        extra: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(self.tls.authority)} if self.tls else {}
        client = valkey.Valkey(
            port=self.port, host="127.0.0.1", password=self.password, socket_timeout=START_SECONDS, **extra
        )
        try:
            return client.execute_command(*command)
        finally:
            client.close()

    def __enter__(self) -> "RedisServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _follow_log(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.log.append(line)
            if "ready to accept" in line.lower():
                ready.set()
        ready.set()  # it ended: nobody need wait any longer

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            os.kill(self.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self.running:
            self._signal(signal.SIGCONT)
            self._signal(number)
        self._process.wait(START_SECONDS)
        if self._reader is not None:
            self._reader.join(START_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None


class RedisCluster:
    """Three shards without replicas, each with a third of the slots."""

    SHARDS = 3

    def __init__(self, directory: Path) -> None:
        self.shards = [self._shard(directory / f"shard{number}") for number in range(self.SHARDS)]

    def start(self) -> "RedisCluster":
        """Start all shards and return when each of them serves its slots and knows the others."""
        for shard in self.shards:
            shard.start()
        for number, shard in enumerate(self.shards):
            shard.admin("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            shard.admin("CLUSTER", "ADDSLOTSRANGE", *self._slots(number))
        first = self.shards[0]
        for shard in self.shards[1:]:
            bus = shard.options[list(shard.options).index("--cluster-port") + 1]
            first.admin("CLUSTER", "MEET", "127.0.0.1", shard.port, bus)
        wait_until(lambda: all(map(self._settled, self.shards)), "the cluster is formed")
        return self

    def stop(self) -> None:
        """End all shards."""
        for shard in self.shards:
            shard.kill()

    @property
    def url(self) -> str:
        """The URL that names all shards."""
        return "redis://" + ",".join(str(shard.address) for shard in self.shards) + "?topology=Cluster"

    def settings(self, **changes: Any) -> StoreSettings:
        """Return how our store client reaches the cluster, by all of its nodes."""
        endpoints = tuple(shard.address for shard in self.shards)
        return StoreSettings(**{"endpoints": endpoints, "topology": Topology.CLUSTER, **changes})

    def owner(self, slot: int) -> RedisServer:
        """Return the shard that served `slot` when the cluster was made."""
        return next(shard for number, shard in enumerate(self.shards) if self._has(number, slot))

    def begin_migration(self, slot: int, target: RedisServer) -> None:
        """Bring `slot` into the state between: its shard answers ASK for what is not there any more."""
        source = self.owner(slot)
        target.admin("CLUSTER", "SETSLOT", slot, "IMPORTING", source.admin("CLUSTER", "MYID"))
        source.admin("CLUSTER", "SETSLOT", slot, "MIGRATING", target.admin("CLUSTER", "MYID"))

    def migrate_keys(self, slot: int, target: RedisServer, names: Sequence[bytes]) -> None:
        """Move the values of `names` to `target`."""
        self.owner(slot).admin("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)

    def end_migration(self, slot: int, target: RedisServer) -> None:
        """Give `slot` to `target` for good: from now on others answer MOVED."""
        identity = target.admin("CLUSTER", "MYID")
        for shard in (target, *(other for other in self.shards if other is not target)):
            shard.admin("CLUSTER", "SETSLOT", slot, "NODE", identity)

    def pristine(self) -> bool:
        """Make the cluster as new and return True; False when it cannot be used again."""
        for shard in self.shards:
            shard.resume()
        if not all(shard.running for shard in self.shards):
            return False
        if not all(self._settled(shard) for shard in self.shards):
            return False
        for shard in self.shards:
            shard.admin("FLUSHALL")
        return True

    def _shard(self, directory: Path) -> RedisServer:
        options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "60000"]
        return RedisServer(directory, [*options, "--cluster-require-full-coverage", "no"])

    def _slots(self, number: int) -> tuple[int, int]:
        return number * SLOTS // self.SHARDS, (number + 1) * SLOTS // self.SHARDS - 1

    def _has(self, number: int, slot: int) -> bool:
        first, last = self._slots(number)
        return first <= slot <= last

    def _settled(self, shard: RedisServer) -> bool:
        info = shard.admin("CLUSTER", "INFO")
        ranges = {(int(entry[0]), int(entry[1]), int(entry[2][1])) for entry in shard.admin("CLUSTER", "SLOTS")}
        wanted = {(*self._slots(number), other.port) for number, other in enumerate(self.shards)}
        return _state(info) == "ok" and ranges == wanted and "->" not in _text(shard.admin("CLUSTER", "NODES"))


def _state(info: Any) -> str:
    lines = info if isinstance(info, dict) else dict(line.split(":", 1) for line in _text(info).split() if ":" in line)
    return str(lines["cluster_state"])


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)

"""A real sidecar process for tests, and a small client that talks to it as the connector does."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import zmq
from real_store import RedisServer, wait_until
from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.buffers import MappedBuffer
from shadowserve_dataplane.connector.messages import (
    PROTOCOL,
    FromConnector,
    FromSidecar,
    Hello,
    Welcome,
    pack,
    unpack_from_sidecar,
)

ANSWER_SECONDS = 20.0
Message = TypeVar("Message")


def config_for(store: RedisServer, **changes: Any) -> dict[str, Any]:
    """Return the settings of a small sidecar that uses `store`; `changes` replace keys of the top level."""
    return {
        "store": {"endpoints": [str(store.address)]},
        "tier": "Lossless",
        "landingBufferBytes": 4 << 20,
        "stagingBufferBytes": 2 << 20,
        "limits": {"lookupDeadlineMs": 500, "fetchDeadlineMs": 10_000},
        "placement": {"receiverHost": "127.0.0.1"},
        "metricsPort": 0,
    } | changes


@dataclass
class SidecarProcess:
    """`shadowserve-sidecar` in a folder of its own; ends with the `with` block whatever happens."""

    folder: Path
    config: dict[str, Any]
    log: list[str] = field(default_factory=list)
    process: "subprocess.Popen[str] | None" = None
    readers: list[threading.Thread] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def socket(self) -> Path:
        return self.run / "sidecar.sock"

    @property
    def landing(self) -> Path:
        return self.folder / "landing"

    @property
    def endpoint_file(self) -> Path:
        return self.folder / "endpoint"

    def start(self) -> "SidecarProcess":
        """Start, and return when it says that it is ready."""
        self.folder.mkdir(exist_ok=True)
        ready = threading.Event()
        self.process = self.spawn()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.readers = [
            threading.Thread(target=self._follow, args=(self.process.stdout, ready.set), daemon=True),
            threading.Thread(target=self._follow, args=(self.process.stderr, lambda: None), daemon=True),
        ]
        for reader in self.readers:
            reader.start()
        assert ready.wait(ANSWER_SECONDS), "not ready:\n" + "".join(self.log)
        assert self.process.poll() is None, "".join(self.log)
        return self

    def spawn(self) -> "subprocess.Popen[str]":
        """Start another process with the same settings and folders, without waiting for anything."""
        settings = self.folder / "config.json"
        settings.write_text(json.dumps(self.config))
        arguments = ["--config", settings, "--run-dir", self.run, "--landing-dir", self.landing]
        arguments += ["--endpoint-file", self.endpoint_file, "--metrics-port-file", self.folder / "metrics-port"]
        return subprocess.Popen(
            [sys.executable, "-m", "shadowserve_dataplane.sidecar", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def stop(self) -> int:
        """End it by SIGTERM; returns its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self._end(signal.SIGKILL)

    def metrics(self) -> dict[str, float]:
        """Return every sample by its name and labels, as Prometheus writes them."""
        port = (self.folder / "metrics-port").read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def wait_for_metric(self, name: str, wanted: Callable[[float], bool] = bool) -> None:
        """Return when the sample has a wanted value; 0 counts for one that is not there."""
        wait_until(lambda: wanted(self.metrics().get(name, 0.0)), f"{name}: {self.log}")

    def resident_bytes(self) -> int:
        """Return how much memory the process has of its own (mapped files do not count)."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024

    def _follow(self, lines: Any, when_read: Callable[[], None]) -> None:
        for line in lines:
            self.log.append(line)
            when_read()
        when_read()

    def _end(self, number: signal.Signals) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        status = process.wait(ANSWER_SECONDS)
        for reader in self.readers:
            reader.join(ANSWER_SECONDS)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        return status

    def __enter__(self) -> "SidecarProcess":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class Client:
    """One connector half: says what it is told to, and waits for answers."""

    def __init__(self, socket: Path, shape: KvShape, **hello: Any) -> None:
        fields: dict[str, Any] = {"protocol": PROTOCOL, "role": "worker", "engine": "engine-a", "rank": 0, "world": 1}
        extents = (shape.layers, shape.kv_heads, shape.head_dim, shape.dtype.value, shape.tokens)
        names = ("layers", "kv_heads", "head_dim", "dtype", "chunk_tokens")
        self.hello = Hello(**(fields | dict(zip(names, extents, strict=True)) | hello))
        self.shape = shape
        self.session = 0
        self.welcome: Welcome | None = None
        self.landing: MappedBuffer | None = None
        self.staging: MappedBuffer | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.reconnect_ivl = 20
        self._socket.connect(f"ipc://{socket}")
        self._early: list[FromSidecar] = []

    def say_hello(self) -> Welcome:
        """Open a session and map its buffers."""
        self.send(self.hello)
        welcome = self.welcome = self.receive(Welcome)
        self.session = welcome.session
        self.landing = MappedBuffer.open(welcome.landing, 0) if welcome.landing else None
        self.staging = MappedBuffer.open(welcome.staging, 0) if welcome.staging else None
        return welcome

    def send(self, message: FromConnector) -> None:
        self._socket.send(pack(message))

    def send_frame(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self, *wanted: type[Message], seconds: float = ANSWER_SECONDS) -> Message:
        """Return the next message of one of these kinds; others are kept for later calls."""
        for message in self._early:
            if isinstance(message, wanted):
                self._early.remove(message)
                return message
        limit = time.monotonic() + seconds
        while self._socket.poll(max(0, round(1000 * (limit - time.monotonic())))):
            message = unpack_from_sidecar(self._socket.recv())
            if isinstance(message, wanted):
                return message
            self._early.append(message)
        raise AssertionError(f"no {wanted} within {seconds} s, but {self._early}")

    def silent(self, *unwanted: type) -> bool:
        """Return whether no message of these kinds has come so far."""
        while self._socket.poll(0):
            self._early.append(unpack_from_sidecar(self._socket.recv()))
        return not any(isinstance(message, unwanted) for message in self._early)

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

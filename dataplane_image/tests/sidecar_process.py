"""Real sidecar and data-plane processes for tests."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from real_store import Certificate, RedisServer, wait_until

from shadowserve_lab.processes import free_port

ANSWER_SECONDS = 60.0
IMPATIENT = {"lookupDeadlineMs": 500, "fetchDeadlineMs": 10_000}
"""Limits for tests that wait until a look-up is late; others must not depend on how fast the machine is."""


def config_for(server: RedisServer, /, **changes: Any) -> dict[str, Any]:
    """Return the settings of a small sidecar that uses `server` as store; `changes` replace keys of the top level."""
    return {
        "store": {"endpoints": [str(server.address)]},
        "tier": "Lossless",
        "landingBufferBytes": 4 << 20,
        "stagingBufferBytes": 2 << 20,
        "limits": {"lookupDeadlineMs": 30_000, "fetchDeadlineMs": 30_000},
        "placement": {"receiverHost": "127.0.0.1"},
        "metricsPort": 0,
    } | changes


@dataclass
class ServerProcess(ABC):
    """A server that says one line when it is ready; ends with the `with` block whatever happens."""

    folder: Path
    log: list[str] = field(default_factory=list)
    process: "subprocess.Popen[str] | None" = None
    readers: list[threading.Thread] = field(default_factory=list)

    @abstractmethod
    def command(self) -> list[str]:
        """Return the module and its arguments."""

    def start(self) -> Self:
        """Start, and return when it says that it is ready."""
        self.folder.mkdir(exist_ok=True)
        ready = threading.Event()
        process = self.process = self.spawn()
        self.readers = [
            threading.Thread(target=self._follow, args=(process.stdout, ready.set), daemon=True),
            threading.Thread(target=self._follow, args=(process.stderr, lambda: None), daemon=True),
        ]
        for reader in self.readers:
            reader.start()
        assert ready.wait(ANSWER_SECONDS), "not ready:\n" + "".join(self.log)
        assert process.poll() is None, "".join(self.log)
        return self

    def spawn(self) -> "subprocess.Popen[str]":
        """Start another process with the same settings and folders, without waiting for anything."""
        return subprocess.Popen(
            [sys.executable, "-m", *self.command()],
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

    def pause(self) -> None:
        """Stop it: its connections stay, but nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)

    def children(self) -> list[int]:
        """Return the ids of its child processes."""
        assert self.process is not None
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def resident_bytes(self) -> int:
        """Return how much memory the process and its children have of their own (mapped files do not count)."""
        assert self.process is not None
        return sum(map(_resident_bytes, [self.process.pid, *self.children()]))

    def _follow(self, lines: Any, when_read: Callable[[], None]) -> None:
        for line in lines:
            self.log.append(line)
            when_read()
        when_read()

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self._signal(signal.SIGCONT)
        self._signal(number)
        process, self.process = self.process, None
        status = process.wait(ANSWER_SECONDS)
        for reader in self.readers:
            reader.join(ANSWER_SECONDS)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@dataclass
class SidecarProcess(ServerProcess):
    """`shadowserve-sidecar`; all of its folders are in `folder`."""

    config: dict[str, Any] = field(default_factory=dict)

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

    def command(self) -> list[str]:
        settings = self.folder / "config.json"
        settings.write_text(json.dumps(self.config))
        arguments = ["--config", settings, "--run-dir", self.run, "--landing-dir", self.landing]
        arguments += ["--endpoint-file", self.endpoint_file, "--metrics-port-file", self.folder / "metrics-port"]
        return ["shadowserve_dataplane.sidecar", *map(str, arguments)]

    def files(self) -> list[str]:
        """Return the names of all files that it made and that are still there."""
        return sorted(path.name for folder in (self.run, self.landing) for path in folder.iterdir())

    def metrics(self) -> dict[str, float]:
        """Return every sample by its name and labels, as Prometheus writes them."""
        port = (self.folder / "metrics-port").read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=ANSWER_SECONDS) as reply:
            lines = reply.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def wait_for_metric(self, name: str, wanted: Callable[[float], bool] = bool) -> None:
        """Return when the sample has a wanted value; 0 counts for one that is not there."""
        wait_until(lambda: wanted(self.metrics().get(name, 0.0)), f"{name}: {self.log}")


@dataclass
class DataPlaneProcess(ServerProcess):
    """`shadowserve-dataplane serve` on a port of its own, which it keeps when it is started again."""

    store: str = ""
    port: int = field(default_factory=free_port)
    drain_seconds: int = 1

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Where it answers scrapes; it says so when it is ready."""
        found = re.search(r"metrics on (\d+)", "".join(self.log))
        assert found is not None, self.log
        return f"http://127.0.0.1:{found[1]}"

    def metric(self, name: str) -> float:
        """Return one sample."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=ANSWER_SECONDS) as reply:
            lines = reply.read().decode().splitlines()
        return next(float(value) for found, _, value in (line.rpartition(" ") for line in lines) if found == name)

    def command(self) -> list[str]:
        arguments = ["--store", self.store, "--host", "127.0.0.1", "--port", str(self.port), "--metrics-port", "0"]
        arguments += ["--workers", "1", "--drain-seconds", str(self.drain_seconds)]
        return ["shadowserve_dataplane.service", "serve", *arguments]


@dataclass
class SecureDataPlane(DataPlaneProcess):
    """A data plane that shows a certificate, and wants one of the same authority."""

    files: Certificate | None = None
    store_authority: Path | None = None

    def command(self) -> list[str]:
        assert self.files is not None
        names = ("certificate", "key", "authority")
        options = [f"--tls-{name}={getattr(self.files, name)}" for name in names]
        options += [] if self.store_authority is None else [f"--store-authority={self.store_authority}"]
        return [*super().command(), *options]


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024

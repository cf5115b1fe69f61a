"""A stack of real parts on one machine: store, data plane, and engines with their sidecars."""

import json
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import cast

import valkey

from shadowserve_lab.engine_client import EngineClient, Metrics
from shadowserve_lab.processes import Program, free_port, pin_tree
from shadowserve_lab.store_proxy import StoreProxy

HOST = "127.0.0.1"
MODEL = "smollm2"
_ENGINE_SECONDS = 300.0
_PART_SECONDS = 90.0
_SIDECAR_MAIN = ("-m", "shadowserve_dataplane.sidecar")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "PYTHONHASHSEED": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else a connector changes the number of threads, and with it the logits
}


@dataclass(frozen=True)
class Environments:
    """What set-up made: the engine's Python, the model, the store server."""

    engine_python: Path
    model: Path
    store_server: Path

    @classmethod
    def from_environment(cls) -> "Environments":
        """Return what `shadowserve_lab run --with engine --with model --with store` passes on."""
        found = {name: os.environ.get(f"SHADOWSERVE_LAB_{name}") for name in ("ENGINE", "MODEL", "STORE")}
        if missing := [name for name, path in found.items() if not path]:
            raise LookupError(f"not set up: {', '.join(missing)}; start through make")
        engine, model, store = (Path(str(path)) for path in found.values())
        return cls(engine / "bin/python", model, store)


@dataclass(frozen=True)
class StackOptions:
    """How the parts are set up; `sidecar` is merged into its config.json, section by section."""

    tier: str = "Balanced"
    landing: str = "Codes"
    dtype: str = "bfloat16"
    engines: tuple[str, ...] = ("a", "b")
    cached: bool = True
    data_plane: bool = True
    workers: int = 1
    threads: int = 1
    store_bytes: int = 0
    sidecar: dict[str, object] = field(default_factory=dict)


class Store:
    """A Valkey or Redis server without persistence."""

    def __init__(self, folder: Path, server: Path, max_bytes: int) -> None:
        self.port = free_port()
        self._folder, self._server, self._max_bytes = folder, server, max_bytes
        self.program = self._start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://{HOST}:{self.port}"

    def client(self) -> "valkey.Valkey":
        """Return a client for looking into it."""
        return valkey.Valkey(HOST, self.port, socket_timeout=60)

    def size(self) -> int:
        """Return how many keys it has."""
        return cast(int, self.client().dbsize())

    def evictions(self) -> int:
        """Return how many keys it had to give up for others."""
        return int(cast(dict[str, int], self.client().info("stats"))["evicted_keys"])

    def restart(self) -> None:
        """Start it again, empty, at the same port."""
        self.program.stop()
        self.program = self._start()

    def _start(self) -> Program:
        limit = ["--maxmemory", str(self._max_bytes), "--maxmemory-policy", "allkeys-lru"] if self._max_bytes else []
        command = [str(self._server), "--bind", HOST, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        program = Program("store", [*command, "--dir", str(self._folder), *limit], self._folder / "store.log")
        program.wait_ready(self._answers, _PART_SECONDS)
        return program

    def _answers(self) -> bool:
        with suppress(valkey.exceptions.ConnectionError):
            return bool(self.client().ping())
        return False


class DataPlaneProcess:
    """`shadowserve-dataplane serve`."""

    def __init__(self, folder: Path, python: Path, store_url: str, workers: int) -> None:
        self._folder, self._python, self._store_url, self._workers = folder, python, store_url, workers
        self._ports = folder / "dataplane.ports"
        self.program = self._start()

    @property
    def endpoint(self) -> str:
        """host:port of its gRPC service."""
        return f"{HOST}:{self._ports.read_text().split()[0]}"

    @property
    def metrics_url(self) -> str:
        """Where its metrics are."""
        return f"http://{HOST}:{self._ports.read_text().split()[1]}/metrics"

    def metrics(self) -> Metrics:
        """Return its metrics as they are now."""
        return Metrics.scrape(self.metrics_url)

    def restart(self, store_url: str | None = None) -> None:
        """Start it again, at another port; `store_url`: with another store."""
        self.program.stop()
        self._store_url = store_url or self._store_url
        self.program = self._start()

    def _start(self) -> Program:
        self._ports.unlink(missing_ok=True)
        command = [str(self._python), "-m", "shadowserve_dataplane.service", "serve", "--store", self._store_url]
        ports = ["--host", HOST, "--port", "0", "--metrics-port", "0", "--port-file", str(self._ports)]
        options = ["--workers", str(self._workers)]
        program = Program("data plane", [*command, *ports, *options], self._folder / "dataplane.log")
        program.wait_ready(self._ports.exists, _PART_SECONDS)
        return program


class SidecarProcess:
    """`shadowserve-sidecar` of one engine, with its configuration and endpoint file; socket and buffers in `shared`."""

    def __init__(self, folder: Path, shared: Path, python: Path, config: dict[str, object]) -> None:
        for made in (folder, shared):
            made.mkdir()
        self._folder, self._shared, self._python = folder, shared, python
        self.socket = self._shared / "sidecar.sock"
        self.endpoint_file = folder / "data-plane"
        self._config = config
        (folder / "config.json").write_text(json.dumps(config))
        self.program = self._start(_SIDECAR_MAIN)

    def use_data_plane(self, endpoint: str | None) -> None:
        """Name the data plane in the endpoint file; None: there is none."""
        fresh = self.endpoint_file.with_suffix(".new")
        fresh.write_text(endpoint or "")
        fresh.rename(self.endpoint_file)

    @property
    def metrics_url(self) -> str:
        """Where its metrics are."""
        return f"http://{HOST}:{(self._folder / 'metrics.port').read_text().strip()}/metrics"

    def metrics(self) -> Metrics:
        """Return its metrics as they are now."""
        return Metrics.scrape(self.metrics_url)

    def engine(self) -> dict[str, object]:
        """Return what it says of its engine."""
        with urllib.request.urlopen(self.metrics_url.replace("/metrics", "/attachment"), timeout=60) as reply:
            return dict(json.load(reply))

    def restart(self, changes: dict[str, object] | None = None, main: Sequence[str] | None = None) -> None:
        """Start it again; `changes` go into config.json first, `main` replaces the program (for tests)."""
        self.program.stop()
        (self._folder / "config.json").write_text(json.dumps({**self._config, **(changes or {})}))
        self.program = self._start(main or _SIDECAR_MAIN)

    def _start(self, main: Sequence[str]) -> Program:
        port = self._folder / "metrics.port"
        port.unlink(missing_ok=True)
        command = [str(self._python), *main, "--config", str(self._folder / "config.json")]
        places = ["--run-dir", str(self._shared), "--landing-dir", str(self._shared / "landing")]
        files = ["--endpoint-file", str(self.endpoint_file), "--metrics-port-file", str(port)]
        (self._shared / "landing").mkdir(exist_ok=True)
        program = Program(f"sidecar {self._folder.name}", [*command, *places, *files], self._folder / "sidecar.log")
        program.wait_ready(lambda: port.exists() and self.socket.exists(), _PART_SECONDS)
        return program


class Engine:
    """`vllm serve` of one name, with or without the connector."""

    def __init__(self, name: str, folder: Path, environments: Environments, options: StackOptions) -> None:
        self.name = name
        self._folder, self._environments, self._options = folder, environments, options
        self._port = free_port()
        self.client = EngineClient(f"http://{HOST}:{self._port}", MODEL)
        self.program: Program | None = None

    def start(self, socket: Path | None) -> None:
        """Start to load; `wait_ready` waits for it."""
        options = self._options
        command = [str(self._environments.engine_python), "-m", "vllm.entrypoints.cli.main", "serve"]
        command += [str(self._environments.model), "--served-model-name", MODEL, "--host", HOST]
        command += ["--port", str(self._port), "--dtype", options.dtype, "--max-model-len", "4096", "--enforce-eager"]
        command += ["--max-num-seqs", "8", "--max-num-batched-tokens", "4096"]
        if socket is not None:
            command += ["--kv-transfer-config", json.dumps(kv_transfer_config(socket))]
        environment = {
            **os.environ,
            **_OFFLINE,
            "OMP_NUM_THREADS": str(options.threads),
            "VLLM_CPU_KVCACHE_SPACE": "2",
        }
        self.program = Program(f"engine {self.name}", command, self._folder / f"engine-{self.name}.log", environment)

    def wait_ready(self) -> None:
        """Return once it answers."""
        assert self.program is not None
        self.program.wait_ready(self.client.healthy, _ENGINE_SECONDS)


def kv_transfer_config(socket: Path) -> dict[str, object]:
    """Return what `vllm serve --kv-transfer-config` needs to use the sidecar at `socket`."""
    return {
        "kv_connector": "ShadowServeConnector",
        "kv_connector_module_path": "shadowserve_dataplane.connector.connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"socket": str(socket)},
    }


class Stack:
    """Starts all parts in `__enter__`, stops them in `__exit__`; nothing outlives the process that made it.

    Logs and configurations are in `folder`, sockets and buffers in `shared`; both are removed, also if the start fails.
    """

    def __init__(self, options: StackOptions, environments: Environments, say: Callable[[str], None]) -> None:
        self.options = options
        self.folder: Path
        self.shared: Path
        self.engines: dict[str, Engine] = {}
        self.sidecars: dict[str, SidecarProcess] = {}
        self._environments = environments
        self._say = say
        self._cleanup = ExitStack()
        self.store: Store
        self.store_proxy: StoreProxy
        self.data_plane: DataPlaneProcess | None = None

    @property
    def model(self) -> Path:
        """Folder of the model that the engines serve."""
        return self._environments.model

    def use_store_proxy(self) -> None:
        """From now on the data plane reaches the store through `store_proxy`, which can hold, cut and slow it."""
        assert self.data_plane is not None
        self.data_plane.restart(f"redis://{HOST}:{self.store_proxy.port}")
        for sidecar in self.sidecars.values():
            sidecar.use_data_plane(self.data_plane.endpoint)

    def part_cores(self) -> None:
        """Give the engines one core, and everything else another, from now on."""
        engine_core, other_core = sorted(os.sched_getaffinity(0))[:2]
        engines = {engine.program for engine in self.engines.values()}
        for program in self._programs():
            pin_tree(program.pid, [engine_core if program in engines else other_core])

    def __enter__(self) -> "Stack":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything that was started, all at once, and remove the files."""
        with self._cleanup:
            programs = [*self._programs()]
            for program in programs:
                program.release()
            for program in programs:
                program.stop()

    def _programs(self) -> list[Program]:
        found = [engine.program for engine in self.engines.values() if engine.program is not None]
        found += [sidecar.program for sidecar in self.sidecars.values()]
        found += [self.data_plane.program] if self.data_plane is not None else []
        return [*found, self.store.program] if hasattr(self, "store") else found

    def _start(self) -> None:
        options, python = self.options, Path(sys.executable)
        self.folder = self._temporary("shadowserve-stack-", None)
        self.shared = self._temporary("shadowserve-", "/dev/shm")
        self._say("starting the store" + (", the data plane and sidecars" if options.cached else ""))
        self.store = Store(self.folder, self._environments.store_server, options.store_bytes)
        if options.cached and options.data_plane:
            self.store_proxy = StoreProxy(self.store.port)
            self._cleanup.callback(self.store_proxy.close)
            self.data_plane = DataPlaneProcess(self.folder, python, self.store.url, options.workers)
        for name in options.engines:
            engine = self.engines[name] = Engine(name, self.folder, self._environments, options)
            engine.start(self._sidecar(name).socket if options.cached else None)
        self._say(f"starting {len(options.engines)} vLLM engines, about half a minute each on its own core")
        for name, engine in self.engines.items():
            engine.wait_ready()
            self._say(f"engine {name} is ready at {engine.client.base}")

    def _temporary(self, prefix: str, parent: str | None) -> Path:
        """Return a new folder that `close` removes."""
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _sidecar(self, name: str) -> SidecarProcess:
        folder, shared = self.folder / f"sidecar-{name}", self.shared / name
        sidecar = SidecarProcess(folder, shared, Path(sys.executable), self._config())
        self.sidecars[name] = sidecar
        if self.data_plane is not None:
            sidecar.use_data_plane(self.data_plane.endpoint)
        return sidecar

    def _config(self) -> dict[str, object]:
        options = self.options
        config: dict[str, object] = {
            "store": {"endpoints": [f"{HOST}:{self.store.port}"]},
            "tier": options.tier,
            "landing": options.landing,
            "landingBufferBytes": 192 << 20,
            "stagingBufferBytes": 128 << 20,
            "metricsPort": 0,
            "placement": {"workers": options.workers, "receiverHost": HOST},
        }
        for section, value in options.sidecar.items():
            known = config.get(section)
            config[section] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
        return config

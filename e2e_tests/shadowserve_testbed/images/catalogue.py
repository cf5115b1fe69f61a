"""The images of the test bed: what is in them, and where they are.

Each is a few layers of its own: a Debian root file system, pinned wheels, and our code on top, so that a change of the
code costs a second and what is below is shared.
"""

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from shadowserve_lab.home import Artifact, Home
from shadowserve_lab.setup import Setup
from shadowserve_testbed.images import python
from shadowserve_testbed.images.architecture import Architecture, native
from shadowserve_testbed.images.commands import run
from shadowserve_testbed.images.debian import System, unpack
from shadowserve_testbed.images.errors import ImageError
from shadowserve_testbed.images.layers import Layers, Part
from shadowserve_testbed.images.oci import Configuration, Layer, write_archive
from shadowserve_testbed.images.python import Wheels

DATA_PLANE = "ghcr.io/shadowserve/dataplane:dev"
OPERATOR = "ghcr.io/shadowserve/operator:dev"
STORE = "testbed.local/valkey:dev"
ENGINE = "testbed.local/engine:dev"
PAUSE = "testbed.local/pause:dev"
PYTHON_BASE = "testbed.local/python:dev"
ENGINE_FOLDER = "/opt/engine"
"""Where the engine image expects the packages of the engine: a volume, since they are 6 GB."""
_SUITE = "trixie"
_SHELL = ("dash", "coreutils")
_TEST_TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "cryptography")
_KEPT_ARCHIVES = 4
_OUR_ENVIRONMENT = (
    ("PATH", f"/{python.HOME}/bin:/usr/local/bin:/usr/bin:/bin"),
    ("PYTHONUNBUFFERED", "1"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
)
_NONROOT = "65532:65532"


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its layers from below, and how it starts."""

    reference: str
    architecture: Architecture
    parts: tuple[Part, ...]
    start: Configuration

    @property
    def name(self) -> str:
        """Return the last part of the reference, without the tag."""
        return self.reference.rsplit("/", 1)[-1].split(":")[0]


@dataclass(frozen=True, slots=True)
class Archive:
    """An image as a file. Sizes in bytes; `layers` from below."""

    image: Image
    path: Path
    size: int
    layers: tuple[tuple[Part, int], ...]


class Images:
    """Makes the images of one home; whoever calls holds the home's lock."""

    def __init__(self, home: Home) -> None:
        self._home, self._layers = home, Layers(home)
        self._uv = Setup(home).uv

    def archives(self, architecture: Architecture | None = None) -> dict[str, Path]:
        """Return the archive of every image by its reference, making what is missing or old. Raises `ImageError`.

        Of another architecture than this machine's there is only the data plane: cards have their own.
        """
        return {image.reference: self.archive(image).path for image in self.images(architecture)}

    def images(self, architecture: Architecture | None = None) -> list[Image]:
        """Return what there is for an architecture, this machine's by default."""
        here = native()
        wanted = architecture or here
        if wanted is not here:
            return [self.data_plane(wanted)]
        return [self._pause(), self.data_plane(here), self._operator(), self._store(), self._engine()]

    def archive(self, image: Image) -> Archive:
        """Return the image's archive, making it first if need be. Raises `ImageError`."""
        layers = [self._layers.layer(part) for part in image.parts]
        ingredients = (image.reference, repr(image.start), *(layer.digest for layer in layers))
        artifact = Artifact(f"image-{image.name}-{image.architecture}", ingredients)

        def build(folder: Path) -> None:
            write_archive(folder / "image.tar", image.reference, image.architecture, layers, image.start)

        path = self._home.make(artifact, build) / "image.tar"
        self._home.keep_newest(artifact, _KEPT_ARCHIVES)
        self._home.keep_newest(self._code().artifact, _KEPT_ARCHIVES)
        sizes = tuple(zip(image.parts, (layer.size for layer in layers), strict=True))
        return Archive(image, path, path.stat().st_size, sizes)

    def pause_layer(self) -> Layer:
        """Return the layer of what keeps a pod's namespaces."""
        return self._layers.layer(self._pause().parts[0])

    def trees(self, image: Image) -> list[Path]:
        """Return the trees of the image's layers, from below."""
        return [self._layers.tree(part) for part in image.parts]

    def data_plane(self, architecture: Architecture) -> Image:
        """Return the image of data plane, sidecar and connector."""
        wheels = self._wheels("sidecar", Wheels(_SUITE, architecture, "sidecar"))
        parts = (self._python(architecture), wheels, self._code())
        start = Configuration(("shadowserve-dataplane", "serve"), _NONROOT, _OUR_ENVIRONMENT)
        return Image(DATA_PLANE, architecture, parts, start)

    def data_plane_under_test(self, architecture: Architecture) -> Image:
        """Return the data plane's image with pytest in it, and a store server of this machine's architecture."""
        plain = self.data_plane(architecture)
        tools = self._wheels("tests", Wheels(_SUITE, architecture, names=_TEST_TOOLS))
        return replace(plain, parts=(self._store().parts[0], *plain.parts, tools))

    def python_base(self, architecture: Architecture) -> Image:
        """Return an image that the Dockerfiles can be built on where no registry is: `PYTHON_IMAGE`."""
        packages = ("python3", "python3-venv", "python-is-python3", "libstdc++6", "libc-bin", *_SHELL)
        system = System(_SUITE, architecture, packages)
        part = Part(f"base-{architecture}", system.ingredients, lambda tree, work: unpack(system, tree, work))
        return Image(PYTHON_BASE, architecture, (part,), Configuration(("python3",)))

    def _operator(self) -> Image:
        wheels = self._wheels("operator", Wheels(_SUITE, native(), "operator"))
        parts = (self._python(native()), wheels, self._code())
        return Image(OPERATOR, native(), parts, Configuration(("shadowserve-operator",), _NONROOT, _OUR_ENVIRONMENT))

    def _store(self) -> Image:
        system = System(_SUITE, native(), ("valkey-server", "valkey-tools", *_SHELL))
        part = Part("valkey", system.ingredients, lambda tree, work: unpack(system, tree, work))
        return Image(STORE, native(), (part,), Configuration(("valkey-server",), "999:999"))

    def _engine(self) -> Image:
        suite = _suite_of_engine()
        packages = ("python3", "libgomp1", "libnuma1", "libstdc++6", "util-linux", *_SHELL)  # vLLM runs lscpu
        system = System(suite, native(), packages)
        ingredients = (*system.ingredients, ENGINE_FOLDER, "2")
        part = Part("engine", ingredients, lambda tree, work: _fill_engine(system, tree, work))
        return Image(ENGINE, native(), (part,), Configuration(("vllm", "serve"), "1000:1000", (("HOME", "/tmp"),)))

    def _pause(self) -> Image:
        source = Path(__file__).with_name("pause.go")
        part = Part("pause", (source.read_text(), native()), lambda tree, _: _fill_pause(source, tree))
        return Image(PAUSE, native(), (part,), Configuration(("/pause",), "65535:65535"))

    def _python(self, architecture: Architecture) -> Part:
        system = System(_SUITE, architecture, ("python3", "libstdc++6", *_SHELL))

        def fill(tree: Path, work: Path) -> None:
            unpack(system, tree, work)
            own = architecture is native()
            python.compile_all(tree, tree if own else self._layers.tree(self._python(native())))

        return Part(f"python-{architecture}", (*system.ingredients, "bytecode"), fill)

    def _wheels(self, name: str, wheels: Wheels) -> Part:
        def fill(tree: Path, _: Path) -> None:
            python.install_wheels(self._uv(), wheels, tree)
            python.compile_all(tree, self._layers.tree(self._python(native())))

        return Part(f"{name}-{wheels.architecture}", wheels.ingredients, fill)

    def _code(self) -> Part:
        def fill(tree: Path, _: Path) -> None:
            python.install_code(_SUITE, tree)
            python.compile_all(tree, self._layers.tree(self._python(native())))

        return Part("code", (python.code_digest(), _SUITE, "2"), fill)


def _suite_of_engine() -> str:
    """Return the Debian release whose Python runs the engine's packages: they were made for this machine's."""
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for suite, version in python.PYTHON_OF.items():
        if version == wanted:
            return suite
    known = ", ".join(python.PYTHON_OF.values())
    raise ImageError(f"engines in pods need the Python of a Debian release ({known}), this is {wanted}: set PYTHON")


def _fill_engine(system: System, tree: Path, work: Path) -> None:
    unpack(system, tree, work)
    packages = tree / "usr/lib/python3/dist-packages"
    # whatever PYTHONPATH says: the sidecar's injection sets it
    (packages / "engine.pth").write_text(f'import site; site.addsitedir("{ENGINE_FOLDER}")\n')
    (tree / ENGINE_FOLDER.lstrip("/")).mkdir()
    command = tree / "usr/local/bin/vllm"
    command.parent.mkdir(parents=True, exist_ok=True)
    python.write_command(command, "/usr/bin/python3", "from vllm.entrypoints.cli.main import main", "main()")
    python.compile_all(tree, tree)


def _fill_pause(source: Path, tree: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise ImageError("pause is built by Go, which is not installed: see https://go.dev/doc/install")
    quiet = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOWORK": "off", "GOFLAGS": ""}
    run([go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(tree / "pause"), str(source)], quiet)

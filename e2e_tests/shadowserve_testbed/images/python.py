"""The Python part of images: wheels for any architecture, our own packages, and bytecode.

Containers cannot write bytecode into their file systems. It is made here, by a Python of the same version, and marked
as never to be compared with its source: times do not survive in a layer.
"""

import hashlib
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowserve_lab.home import PINS, REPOSITORY
from shadowserve_testbed.images.architecture import Architecture
from shadowserve_testbed.images.commands import run
from shadowserve_testbed.images.errors import ImageError

PYTHON_OF = {"bookworm": "3.11", "trixie": "3.13"}
"""The Python of each Debian release."""
NOT_IN_IMAGES = ("shadowserve_lab", "shadowserve_testbed")
"""Packages of the wheel that the Dockerfiles leave out as well."""
HOME = "opt/shadowserve"
"""Where our environment is, as in the images of the Dockerfiles."""
_GLIBC = "manylinux_2_36"  # bookworm's
_COMPILE = """
set -e
mount --bind "$1" "$2/mnt"
cd "$1"
exec chroot "$2" /usr/bin/python3 -m compileall -q --invalidation-mode unchecked-hash -s /mnt -p / /mnt/usr /mnt/opt
"""


def compile_all(tree: Path, interpreter: Path) -> None:
    """Write the bytecode of all Python files under `usr` and `opt` in `tree`; the root `interpreter` has the Python."""
    for name in ("usr", "opt"):
        (tree / name).mkdir(exist_ok=True)
    run(["unshare", "--mount", "sh", "-c", _COMPILE, "sh", str(tree), str(interpreter)])


@dataclass(frozen=True, slots=True)
class Wheels:
    """Packages for one Python and architecture: what `shadowserve[extra]` requires, and others by name; all pinned."""

    suite: str
    architecture: Architecture
    extra: str = ""
    names: tuple[str, ...] = ()

    @property
    def ingredients(self) -> tuple[str, ...]:
        """Return what the installed packages depend on."""
        project = _project()
        wanted = repr((project["dependencies"], project["optional-dependencies"])) if self.extra else ""
        pins = (PINS / "dev.txt").read_text()
        return (self.extra, PYTHON_OF[self.suite], self.architecture, _GLIBC, wanted, pins, *self.names)


def install_wheels(uv: str, wheels: Wheels, tree: Path) -> None:
    """Install `wheels` into the environment of the image, without building anything. Raises `ImageError`."""
    packages = site_packages(tree, wheels.suite)
    links = [part for link in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", link)]
    machine = wheels.architecture.machine
    platform = ["--python-version", PYTHON_OF[wheels.suite], "--python-platform", f"{machine}-{_GLIBC}"]
    extra = ["-r", str(REPOSITORY / "pyproject.toml"), "--extra", wheels.extra] if wheels.extra else []
    wanted = [*extra, *wheels.names, "-c", str(PINS / "dev.txt")]
    only_wheels = ["--only-binary", ":all:", "--link-mode", "copy"]
    run([uv, "pip", "install", "--quiet", "--target", str(packages), *platform, *only_wheels, *links, *wanted])
    shutil.rmtree(packages / "bin", ignore_errors=True)  # they would start this machine's Python
    for tests in [*packages.glob("numpy/**/tests"), *packages.glob("scipy/**/tests")]:
        shutil.rmtree(tests)


def code_digest() -> str:
    """Return a digest of our packages and their commands."""
    digest = hashlib.sha256(repr(_project()["scripts"]).encode())
    for package in _packages():
        for path in _files(package):
            digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def install_code(suite: str, tree: Path) -> None:
    """Install our packages and commands, as their wheel would, into the environment of the image."""
    packages = site_packages(tree, suite)
    for package in _packages():
        for path in _files(package):
            target = packages / path.relative_to(package.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    commands = tree / HOME / "bin"
    commands.mkdir()
    (commands / "python").symlink_to("/usr/bin/python3")
    (tree / HOME / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {PYTHON_OF[suite]}\n")
    for name, target in _project()["scripts"].items():
        module, function = target.split(":")
        write_command(commands / name, f"/{HOME}/bin/python", f"from {module} import {function}", f"{function}()")


def write_command(path: Path, interpreter: str, statement: str, call: str) -> None:
    """Write an executable that ends with what `call` returns."""
    # guarded: multiprocessing's spawn runs it again in every process
    guarded = f'if __name__ == "__main__":\n    sys.exit({call})\n'
    path.write_text(f"#!{interpreter}\nimport sys\n\n{statement}\n\n{guarded}")
    path.chmod(0o755)


def site_packages(tree: Path, suite: str) -> Path:
    """Return the environment's folder of packages, which is there afterwards."""
    folder = tree / HOME / f"lib/python{PYTHON_OF[suite]}/site-packages"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _project() -> dict[str, Any]:
    project: dict[str, Any] = _pyproject()["project"]
    return project


def _packages() -> list[Path]:
    packages = [REPOSITORY / name for name in _pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    return [package for package in packages if package.name not in NOT_IN_IMAGES]


def _pyproject() -> dict[str, Any]:
    try:
        return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    except FileNotFoundError as error:
        raise ImageError(
            "our images are made from the sources, and this is an installed wheel: in a checkout of the repository, "
            "install with pip install -e '.[operator]'"
        ) from error


def _files(package: Path) -> Iterator[Path]:
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path

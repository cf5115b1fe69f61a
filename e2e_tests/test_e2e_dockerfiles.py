"""The Dockerfiles build, on a base image of our own: their commands start, pinned, as an unprivileged user."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowserve_lab.home import PINS, REPOSITORY, default_home
from shadowserve_testbed.images.architecture import native
from shadowserve_testbed.images.catalogue import PYTHON_BASE, Images
from shadowserve_testbed.images.enter import run_inside
from shadowserve_testbed.images.oci import Configuration
from shadowserve_testbed.images.python import NOT_IN_IMAGES

pytestmark = pytest.mark.timeout(900)  # wheels are downloaded
_SECONDS = 600.0
_CERTIFICATES = Path("/etc/ssl/certs")


class Buildah:
    """Buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self._storage = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str) -> str:
        command = ["buildah", *self._storage, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, cwd=REPOSITORY)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    if os.geteuid() != 0 or shutil.which("buildah") is None or shutil.which("apt-get") is None:
        pytest.skip("Dockerfiles are built here by root, with buildah, on a base image made of Debian packages")
    home = default_home()
    with home.locked():
        images = Images(home)
        base = images.archive(images.python_base(native())).path
    folder = tmp_path_factory.mktemp("buildah")
    run = Buildah(folder)
    run("pull", f"oci-archive:{base}")
    yield run
    run("rm", "--all")
    run("rmi", "--all", "--force")


def _pins() -> dict[str, str]:
    lines = (PINS / "dev.txt").read_text().split()
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize(
    ("dockerfile", "commands", "pinned"),
    [
        ("dataplane_image/Dockerfile", ["shadowserve-dataplane", "shadowserve-sidecar"], "grpcio"),
        ("operator/Dockerfile", ["shadowserve-operator", "shadowserve-webhook"], "kopf"),
    ],
)
def test_a_dockerfile_builds_and_its_commands_start(
    buildah: Buildah, dockerfile: str, commands: list[str], pinned: str
) -> None:
    network = ["--isolation", "chroot", "--network", "host"]
    trust = ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"] if _CERTIFICATES.is_dir() else []
    buildah("bud", *network, *trust, "--build-arg", f"PYTHON_IMAGE={PYTHON_BASE}", "-f", dockerfile, "-t", "built", ".")
    container = buildah("from", "--pull-never", "localhost/built").strip()

    # not `buildah run`, which loses output in chroots
    tree = Path(buildah("mount", container).strip())
    start = Configuration((), "65532:65532", (("PATH", "/opt/shadowserve/bin:/usr/bin:/bin"),))

    def inside(*command: str) -> str:
        done = run_inside([tree], start, command, 60.0)
        assert done.returncode == 0, done.stderr
        return done.stdout

    settings = json.loads(buildah("inspect", "--type", "image", "localhost/built"))["OCIv1"]["config"]
    assert settings["User"] == "65532:65532"
    assert settings["Cmd"][0] == commands[0]
    assert settings["Env"][0].startswith("PATH=/opt/shadowserve/bin:")
    for command in commands:
        assert "Usage" in inside(command, "--help")
    version = f"from importlib.metadata import version; print(version('{pinned}'))"
    assert inside("python", "-c", version).strip() == _pins()[pinned]
    for absent in ("torch", *NOT_IN_IMAGES):
        find = f"import importlib.util; print(importlib.util.find_spec('{absent}'))"
        assert inside("python", "-c", find).strip() == "None"

"""The data plane's arm64 image, emulated: its tests pass in it, and it makes the same bytes as this processor."""

import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shadowserve_lab.home import REPOSITORY, Home, default_home, say
from shadowserve_testbed.images.architecture import Architecture, native
from shadowserve_testbed.images.catalogue import Images
from shadowserve_testbed.images.emulation import Emulation, registration, serves
from shadowserve_testbed.images.enter import run_inside
from shadowserve_testbed.images.errors import ImageError

pytestmark = pytest.mark.timeout(900)  # emulated code takes 7 to 35 times as long
ARM64 = Architecture.ARM64
_SOURCES = "/tmp/repository"
_TESTS = f"{_SOURCES}/dataplane_image/tests"
_SECONDS = 400.0
_SEED_OF_ANOTHER_SIGMA = 3959741008
"""Of values whose squares, summed in arm64's order, once gave another step."""
_SLICES = {
    "codec": (f"{_TESTS}/test_dataplane_codec_fixtures.py", f"{_TESTS}/test_dataplane_codec_round_trip.py"),
    "pipeline": (f"{_TESTS}/test_dataplane_pipeline.py", "-k", "land or fails_alone or missing or cluster"),
}
"""What is run there: bytes, and real fetches; not what waits for deadlines, which emulation stretches."""


def _obstacle() -> str:
    if os.geteuid() != 0:
        return "only root can have the kernel run arm64 programs"
    missing = [tool for tool in ("apt-get", "dpkg-deb", "unshare") if shutil.which(tool) is None]
    return f"images are made with {', '.join(missing)}, which this machine lacks" if missing else ""


@pytest.fixture(scope="module")
def arm64() -> Iterator[Images]:
    """Images whose arm64 programs run here; what was registered for it is taken back."""
    if obstacle := _obstacle():
        pytest.skip(obstacle)
    home = default_home()
    emulation = Emulation(home, ARM64)
    with home.locked():
        images = Images(home)
        for architecture in (native(), ARM64):
            images.trees(images.data_plane_under_test(architecture))
        had = emulation.enabled
        try:
            emulation.enable()
        except ImageError as error:
            pytest.skip(f"arm64 cannot be emulated here: {error}")
    yield images
    if not had:
        emulation.disable()


def _inside(
    images: Images, architecture: Architecture, command: Sequence[str], folders: dict[str, Path] | None = None
) -> str:
    image = images.data_plane_under_test(architecture)
    shared = {_SOURCES: REPOSITORY, **(folders or {})}
    variables = {"HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis", "PYTHONPATH": f"{_TESTS}:{_SOURCES}/e2e_tests"}
    done = run_inside(images.trees(image), image.start, command, _SECONDS, shared, variables)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_commands_of_the_image_start(arm64: Images) -> None:
    assert _inside(arm64, ARM64, ["uname", "-m"]).strip() == "aarch64"
    assert "--tls-certificate" in _inside(arm64, ARM64, ["shadowserve-dataplane", "serve", "--help"])


@pytest.mark.parametrize("part", list(_SLICES))
def test_tests_of_the_data_plane_pass(arm64: Images, part: str) -> None:
    """The package that they test is the image's."""
    options = ["-o", "pythonpath=", "-p", "no:cacheprovider", "--timeout", "300", "-c", f"{_SOURCES}/pyproject.toml"]
    said = _inside(arm64, ARM64, ["python", "-m", "pytest", "-q", *options, *_SLICES[part]])
    say(f"arm64, {part}: {said.strip().splitlines()[-1]}")
    assert "skipped" not in said


@pytest.mark.parametrize("kind", ["values that once differed", "any values"])
def test_fixtures_and_values_give_the_same_bytes_as_here(arm64: Images, tmp_path: Path, kind: str) -> None:
    seed = random.SystemRandom().getrandbits(32) if kind == "any values" else _SEED_OF_ANOTHER_SIGMA
    tmp_path.chmod(0o777)  # the image has a user of its own
    values = {"/tmp/values": tmp_path}
    script = ["python", f"{_SOURCES}/e2e_tests/codec_digests.py"]
    _inside(arm64, native(), [*script, "make", "/tmp/values", str(seed)], values)
    here, there = (
        json.loads(_inside(arm64, each, [*script, "digest", "/tmp/values", f"{_TESTS}/fixtures"], values))
        for each in (native(), ARM64)
    )
    assert len(here) > 100
    different = [case for case in here if here[case] != there.get(case)]
    assert not different, f"{len(different)} of {len(here)} differ, with values of seed {seed}: {different[:10]}"


def test_emulation_is_registered_once_and_taken_back(arm64: Images, tmp_path: Path) -> None:
    """Whatever was there before: a second time changes nothing, and only what is ours goes."""
    emulation = Emulation(Home(tmp_path, say), ARM64)
    emulation.enable()
    assert emulation.enabled
    assert not list(tmp_path.iterdir()), "qemu was fetched although a handler is there"


def test_a_handler_that_containers_cannot_use_does_not_count() -> None:
    magic = registration("any", ARM64, Path("/qemu")).split(b":")[4].replace(b"\\x", b"").decode()
    described = f"enabled\ninterpreter /qemu\nflags: {{}}\noffset 0\nmagic {magic}\n"
    assert serves([described.format("F")], ARM64)
    assert serves([described.format("POCF")], ARM64)
    assert not serves([described.format("OC")], ARM64)
    assert not serves([described.format("F").replace("enabled", "disabled")], ARM64)
    assert not serves([described.format("F")], Architecture.AMD64)
    assert not serves(["enabled\ninterpreter /usr/bin/python3\nflags: \nextension .pyc\n"], ARM64)


def test_no_emulation_is_needed_for_this_processor(tmp_path: Path) -> None:
    emulation = Emulation(Home(tmp_path, say), native())
    emulation.enable()
    emulation.disable()
    assert emulation.enabled

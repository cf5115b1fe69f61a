"""The test bed's images: every command that our manifests name starts in them, as the user that they name."""

import json
import os
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from shadowserve_crds.inferencepool import InferencePool
from shadowserve_lab.home import REPOSITORY, Artifact, Home, default_home, say
from shadowserve_operator.desired.store import renewal_script
from shadowserve_testbed.images.architecture import Architecture, native
from shadowserve_testbed.images.catalogue import DATA_PLANE, ENGINE, OPERATOR, STORE, Images
from shadowserve_testbed.images.debian import System, unpack
from shadowserve_testbed.images.enter import run_inside
from shadowserve_testbed.images.errors import ImageError
from shadowserve_testbed.images.oci import Configuration, write_archive, write_layer
from shadowserve_testbed.images.python import NOT_IN_IMAGES
from shadowserve_testbed.images.volumes import (
    EngineFiles,
    engine_section,
    make_readable,
    model_source,
    volume_manifests,
)

pytestmark = pytest.mark.timeout(900)  # the first time, packages are downloaded
_SECONDS = 120.0


@pytest.fixture(scope="session")
def images() -> Images:
    if os.geteuid() != 0:
        pytest.skip("images are made as root: root file systems have more than one owner, and chroot is used")
    if missing := [tool for tool in ("apt-get", "dpkg-deb", "unshare", "go") if shutil.which(tool) is None]:
        pytest.skip(f"images are made with {', '.join(missing)}, which this machine lacks")
    home = default_home()
    with home.locked():
        Images(home).archives()
    return Images(home)


def _inside(images: Images, reference: str, command: str) -> str:
    image = next(each for each in images.images() if each.reference == reference)
    done = run_inside(images.trees(image), image.start, shlex.split(command), _SECONDS)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("reference", "command", "expected"),
    [
        (DATA_PLANE, "shadowserve-dataplane serve --help", "--tls-certificate"),
        (DATA_PLANE, "shadowserve-sidecar --help", "--endpoint-file"),
        (DATA_PLANE, "shadowserve-copy-connector /tmp/connector", "connector 0.1.0"),
        (OPERATOR, "shadowserve-operator --help", "--preview"),
        (OPERATOR, "shadowserve-webhook --help", "--certificates"),
        (STORE, "valkey-server --version", "Valkey server v=8"),
        (STORE, "valkey-cli --help", "--cacert"),
        (ENGINE, "python3 -c 'import sys, ctypes; ctypes.CDLL(\"libnuma.so.1\"); print(sys.path)'", "/opt/engine"),
        (DATA_PLANE, "id -u", "65532"),
        (STORE, "id -u", "999"),
        (ENGINE, "id -un", "user"),
    ],
)
def test_a_command_that_manifests_name_starts(images: Images, reference: str, command: str, expected: str) -> None:
    assert expected in _inside(images, reference, command)


def test_python_never_compiles_in_a_container(images: Images) -> None:
    script = "import sys, typer, shadowserve_dataplane; print(typer.__cached__, shadowserve_dataplane.__cached__)"
    for cached in _inside(images, DATA_PLANE, f"python -c '{script}'").split():
        _inside(images, DATA_PLANE, f"test -f {cached}")


@pytest.mark.parametrize("reference", [DATA_PLANE, OPERATOR])
@pytest.mark.parametrize("package", ["torch", *NOT_IN_IMAGES])
def test_an_image_lacks_what_it_does_not_run(images: Images, reference: str, package: str) -> None:
    script = f"import importlib.util; print(importlib.util.find_spec('{package}'))"
    assert _inside(images, reference, f'python -c "{script}"').strip() == "None"


def test_the_store_has_what_its_watcher_of_certificates_uses(images: Images) -> None:
    script = renewal_script("valkey-cli", 1).replace("/etc/shadowserve/tls/", "/etc/")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        script = script.replace(f"/etc/{name}", "/etc/passwd")
    # it is told to stop, while it waits for the next look
    stopped = f"(sleep 2; kill -TERM $$) & {script}"
    assert "watching the certificate" in _inside(images, STORE, f"sh -c {shlex.quote(stopped)}")


def test_overlays_name_the_images_that_are_made(images: Images) -> None:
    made = {image.reference for image in images.images()}
    text = (REPOSITORY / "manifests/overlays/kind/kustomization.yaml").read_text()  # native is made of it
    named = {f"{each['name']}:{each['newTag']}" for each in yaml.safe_load(text)["images"]}
    assert named <= made
    for image in (DATA_PLANE, STORE):
        assert f'"{image}"' in text


def test_a_change_of_the_code_remakes_only_the_top_layer(images: Images) -> None:
    first, second = (images.archive(image) for image in images.images() if image.reference in (DATA_PLANE, OPERATOR))
    assert [part.name for part, _ in first.layers][-1] == [part.name for part, _ in second.layers][-1] == "code"
    assert first.layers[0] == second.layers[0]
    code = first.layers[-1][1]
    assert code < 5_000_000 < first.size


def test_archives_are_what_oci_says(images: Images, tmp_path: Path) -> None:
    archive = images.archive(next(image for image in images.images() if image.reference == STORE))
    with tarfile.open(archive.path) as content:
        content.extractall(tmp_path, filter="data")
    index = json.loads((tmp_path / "index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == STORE
    assert entry["platform"] == {"architecture": native(), "os": "linux"}
    manifest = json.loads((tmp_path / "blobs" / entry["digest"].replace(":", "/")).read_text())
    for blob in (manifest["config"], *manifest["layers"]):
        path = tmp_path / "blobs" / blob["digest"].replace(":", "/")
        assert path.stat().st_size == blob["size"]
        assert subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.startswith(
            blob["digest"].removeprefix("sha256:")
        )


def test_the_same_tree_gives_the_same_layer(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder/file").write_text("content")
    (tree / "link").symlink_to("folder/file")
    first = write_layer(tree, tmp_path / "first.tar")
    os.utime(tree / "folder/file", (1, 1))
    second = write_layer(tree, tmp_path / "second.tar")
    assert (first.digest, first.size) == (second.digest, second.size)
    (tree / "folder/file").chmod(0o755)
    assert write_layer(tree, tmp_path / "third.tar").digest != first.digest


def test_a_layer_that_comes_twice_is_kept_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(bytes(100_000))
    layer = write_layer(tree, tmp_path / "layer.tar")
    path = tmp_path / "image.tar"
    write_archive(path, "example.org/twice:1", Architecture.AMD64, [layer, layer], Configuration(("true",)))
    with tarfile.open(path) as content:
        assert sum(member.size > 100_000 for member in content) == 1


def test_unknown_packages_are_refused_with_the_command_that_failed(images: Images, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with pytest.raises(ImageError, match="shadowserve-has-no-such-package"):
        unpack(System("trixie", native(), ("shadowserve-has-no-such-package",)), tree, tmp_path / "work")


def test_old_artifacts_are_removed_and_others_stay(tmp_path: Path) -> None:
    home = Home(tmp_path, say)
    made = [Artifact("image", (str(number),)) for number in range(4)]
    other = Artifact("image-amd64", ("0",))
    for number, artifact in enumerate((*made, other)):
        os.utime(home.make(artifact, lambda _: None), (number, number))
    home.keep_newest(made[0], 2)
    assert [home.has(each) for each in made] == [True, False, True, True]
    assert home.has(other)


def test_engine_volumes_are_for_the_nodes_and_the_claims_that_name_them() -> None:
    files = EngineFiles(Path("/packages"), Path("/model"))
    manifests = volume_manifests(files, ["host1", "host2"], "default")
    volumes = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "PersistentVolume"}
    claims = [each for each in manifests if each["kind"] == "PersistentVolumeClaim"]
    assert len(volumes) == len(claims) == 2
    for claim in claims:
        volume = volumes[claim["spec"]["volumeName"]]
        assert volume["claimRef"] == {"namespace": "default", "name": claim["metadata"]["name"]}
        assert volume["storageClassName"] == claim["spec"]["storageClassName"]


def test_a_pool_takes_the_engine_and_the_model_of_the_test_bed() -> None:
    model = {"name": "smollm2", "source": model_source()}
    spec = {"model": model, "engine": engine_section(["--max-model-len", "4096"])}
    pool = InferencePool.model_validate({"metadata": {"name": "pool"}, "spec": spec})
    assert pool.spec.engine.image == ENGINE


def test_files_of_the_model_become_readable_and_nothing_else_changes(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("")
    (tmp_path / "private").chmod(0o600)
    (tmp_path / "program").write_text("")
    (tmp_path / "program").chmod(0o755)
    make_readable(tmp_path)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("private", "program")] == [0o644, 0o755]

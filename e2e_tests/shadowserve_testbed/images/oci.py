"""Writes OCI image archives: one uncompressed layer a folder, so that writing and importing cost copying only.

Image layout and configuration: the OCI image specification, v1.1. The same folder always gives the same bytes.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shadowserve_testbed.images.architecture import Architecture

_MEDIA = "application/vnd.oci.image"
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's tar file, its digest (`sha256:...`) and size in bytes."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """How a container of the image starts. `user` is `UID:GID`."""

    command: tuple[str, ...]
    user: str = "0:0"
    environment: tuple[tuple[str, str], ...] = ()
    entrypoint: tuple[str, ...] = ()


class _Digesting:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self._file.write(data)


def write_layer(tree: Path, path: Path) -> Layer:
    """Write all of `tree` as a layer; everything belongs to root and is from 1970, permissions stay."""
    with path.open("wb") as file:
        digesting = _Digesting(file)
        with tarfile.open(
            fileobj=digesting,  # type: ignore[call-overload]  # written to only
            mode="w|",
            format=tarfile.PAX_FORMAT,
            bufsize=_BUFFER,
        ) as archive:
            for entry in sorted(tree.iterdir()):
                archive.add(entry, arcname=entry.name, filter=_anonymous)
    return Layer(path, f"sha256:{digesting.hash.hexdigest()}", digesting.size)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = 0
    return entry


def write_archive(
    path: Path, reference: str, architecture: Architecture, layers: Sequence[Layer], start: Configuration
) -> None:
    """Write an image archive that `ctr images import`, `podman load` and `kind load image-archive` take."""
    configuration = _json(_configuration(architecture, layers, start))
    described = [_descriptor("layer.v1.tar", layer.digest, layer.size) for layer in layers]
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor("config.v1+json", _digest(configuration), len(configuration)),
            "layers": described,
        }
    )
    entry = _descriptor("manifest.v1+json", _digest(manifest), len(manifest)) | {
        "platform": {"architecture": architecture, "os": "linux"},
        "annotations": {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference},
    }
    index = {"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": [entry]}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _json(index))
        _add(archive, _blob(_digest(configuration)), configuration)
        _add(archive, _blob(_digest(manifest)), manifest)
        for layer in {layer.digest: layer for layer in layers}.values():
            header = tarfile.TarInfo(_blob(layer.digest))
            header.size = layer.size
            with layer.path.open("rb") as content:
                archive.addfile(header, content)


def architecture_of(archive: Path) -> Architecture:
    """Return what the image in an archive of ours runs on."""
    with tarfile.open(archive) as content:
        index = content.extractfile("index.json")
        assert index is not None
        [entry] = json.load(index)["manifests"]
    return Architecture(entry["platform"]["architecture"])


def _configuration(architecture: Architecture, layers: Sequence[Layer], start: Configuration) -> dict[str, Any]:
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **dict(start.environment)}
    config: dict[str, Any] = {
        "User": start.user,
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Cmd": list(start.command),
        "WorkingDir": "/",
    }
    if start.entrypoint:
        config["Entrypoint"] = list(start.entrypoint)
    return {
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"{_MEDIA}.{kind}", "digest": digest, "size": size}


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

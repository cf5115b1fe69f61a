"""Root file systems from Debian packages, for any architecture, without debootstrap and without emulation.

apt resolves and downloads for an empty system of its own; the packages are unpacked, their maintainer scripts not run.
The little that those would do for a container is in `_finish`.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from shadowserve_testbed.images.architecture import Architecture
from shadowserve_testbed.images.commands import COMMAND_SECONDS, require, run
from shadowserve_testbed.images.errors import ImageError

ARCHIVE = "http://deb.debian.org/debian"
"""Another mirror: SHADOWSERVE_DEBIAN_ARCHIVE. What comes from it is signed."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MERGED = ("bin", "sbin", "lib", "lib64")
_EMPTY = ("dev", "proc", "sys", "run", "root", "home", "mnt", "opt", "data", "etc", "var/tmp", "tmp")
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "var/cache")
_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
valkey:x:999:999:valkey:/data:/usr/sbin/nologin
user:x:1000:1000:user:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin
"""
_GROUP = "root:x:0:\nvalkey:x:999:\nuser:x:1000:\nnogroup:x:65534:\nnonroot:x:65532:\n"
_RECIPE = "1"
"""Raised when this file makes something else of the same packages."""


@dataclass(frozen=True, slots=True)
class System:
    """Packages of one release, with all that they depend on."""

    suite: str
    architecture: Architecture
    packages: tuple[str, ...]

    @property
    def ingredients(self) -> tuple[str, ...]:
        """Return what the root file system depends on; which versions the mirror has is not part of it."""
        return (_RECIPE, self.suite, self.architecture, *self.packages)


def unpack(system: System, root: Path, work: Path) -> None:
    """Make the root file system of `system` in `root`; `work` is emptied afterwards. Raises `ImageError`."""
    require("apt-get", "dpkg-deb", "tar")
    if not _KEYRING.exists():
        raise ImageError(f"{_KEYRING} is missing, which checks packages: install debian-archive-keyring")
    for name in _EMPTY:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted(_download(system, work).glob("*.deb")):
        _extract(package, root)
    shutil.rmtree(work)
    _finish(root)


def _download(system: System, work: Path) -> Path:
    """Return the folder with the packages."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    archive = os.environ.get("SHADOWSERVE_DEBIAN_ARCHIVE", ARCHIVE)
    (work / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {archive} {system.suite} main\n")
    (work / "status").touch()
    options = {
        "Dir::State": str(work / "state"),
        "Dir::State::status": str(work / "status"),
        "Dir::Cache": str(work / "cache"),
        "Dir::Etc::SourceList": str(work / "sources.list"),
        "Dir::Etc::SourceParts": "-",
        "APT::Architecture": system.architecture,
        "APT::Architectures": system.architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",  # the folder is ours alone
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    run([*apt, "update"])
    run([*apt, "install", "--yes", "--download-only", *system.packages])
    return work / "cache/archives"


def _extract(package: Path, root: Path) -> None:
    content = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(content, stdout=subprocess.PIPE) as reader:
        # packages of older releases still have files in /bin and /lib, which are links to /usr
        writer = ["tar", "-x", "-p", "-C", str(root), "--keep-directory-symlink", "-f", "-"]
        done = subprocess.run(writer, stdin=reader.stdout, check=False, timeout=COMMAND_SECONDS)
    if reader.returncode or done.returncode:
        raise ImageError(f"{package.name} cannot be unpacked")


def _finish(root: Path) -> None:
    """Do what maintainer scripts would: users, and the rights of the folders for temporary files."""
    for name in _NOT_NEEDED:
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)

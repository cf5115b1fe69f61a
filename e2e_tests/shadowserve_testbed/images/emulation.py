"""Lets the kernel run arm64 programs on another processor: qemu, registered with binfmt_misc.

The registration is the kernel's, for all programs of the machine; flag F keeps qemu open, so that it works in
containers too. What somebody else has registered is used and left alone. See the kernel's admin-guide/binfmt-misc.rst.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from shadowserve_lab.home import Artifact, Home
from shadowserve_testbed.images.architecture import Architecture, native
from shadowserve_testbed.images.commands import run
from shadowserve_testbed.images.debian import System, unpack
from shadowserve_testbed.images.errors import ImageError

_FOLDER = Path("/proc/sys/fs/binfmt_misc")
_CONTROL = ("register", "status")
_OURS = "shadowserve-{}"
_MACHINES = {Architecture.AMD64: 62, Architecture.ARM64: 183}
"""`e_machine` of the ELF header."""
_SUITE, _PACKAGE = "trixie", "qemu-user"  # qemu 10 runs Python three times as fast as the 7.2 of bookworm


class Emulation:
    """Emulates one architecture on this machine; whoever calls holds the home's lock."""

    def __init__(self, home: Home, architecture: Architecture) -> None:
        self._home, self._architecture = home, architecture
        self._ours = _FOLDER / _OURS.format(architecture.machine)

    @property
    def enabled(self) -> bool:
        """Whether the architecture's programs run here, in containers too."""
        return self._architecture is native() or serves(self._handlers(), self._architecture)

    def enable(self) -> None:
        """Have the architecture's programs run; nothing happens where they do already. Raises `ImageError`."""
        if self.enabled:
            return
        if os.geteuid() != 0:
            raise ImageError(f"only root can have the kernel run {self._architecture} programs")
        if not (_FOLDER / "register").exists():
            run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_FOLDER)])
            if self.enabled:
                return
        emulator = self._emulator()
        try:
            (_FOLDER / "register").write_bytes(registration(self._ours.name, self._architecture, emulator))
        except OSError as error:
            raise ImageError(f"the kernel takes no {emulator.name} for {self._architecture}: {error}") from error
        self._home.say(f"{self._architecture} programs run here now, by {emulator.name}")

    def disable(self) -> None:
        """Take back what `enable` registered; what others registered stays."""
        if not self._ours.exists():
            return
        self._ours.write_text("-1")
        if not self._handlers():
            subprocess.run(["umount", str(_FOLDER)], capture_output=True, check=False, timeout=10)

    def _handlers(self) -> list[str]:
        found = _FOLDER.iterdir() if _FOLDER.is_dir() else ()
        return [path.read_text() for path in found if path.name not in _CONTROL]

    def _emulator(self) -> Path:
        name = f"qemu-{self._architecture.machine}"
        system = System(_SUITE, native(), (_PACKAGE,))

        def build(folder: Path) -> None:
            tree = folder / "tree"
            tree.mkdir()
            unpack(system, tree, folder / "work")
            shutil.move(tree / "usr/bin" / name, folder / name)
            shutil.rmtree(tree)

        return self._home.make(Artifact(name, system.ingredients), build) / name


def registration(name: str, architecture: Architecture, emulator: Path) -> bytes:
    """Return the line that has the kernel start ELF programs and libraries of `architecture` by `emulator`."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64 bits, little endian, version 1, any ABI
    magic = ident + (2).to_bytes(2, "little") + _MACHINES[architecture].to_bytes(2, "little")
    mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff" + b"\xff\xff"  # type 2, executable, or 3, shared object
    return b":%s:M:0:%s:%s:%s:F" % (name.encode(), _escaped(magic), _escaped(mask), str(emulator).encode())


def serves(handlers: Iterable[str], architecture: Architecture) -> bool:
    """Return whether one of the kernel's handlers, as it describes them, runs `architecture`, in containers too."""
    machine = _MACHINES[architecture].to_bytes(2, "little").hex()
    for lines in (handler.splitlines() for handler in handlers):
        fields = dict(line.partition(" ")[::2] for line in lines[1:])
        if lines[:1] == ["enabled"] and fields.get("magic", "")[36:40] == machine and "F" in fields.get("flags:", ""):
            return True
    return False


def _escaped(data: bytes) -> bytes:
    return "".join(f"\\x{byte:02x}" for byte in data).encode()

"""The staging buffer: a file in which workers lay finished chunks for the sidecar to encode and put.

Made once, every page reserved, and divided into equal slots when the first worker says how big its chunks are. Each
rank owns an equal share of the slots. A new engine finds zeros, never what another one left.
"""

import errno
import mmap
import os
from pathlib import Path

from shadowserve_dataplane.connector.messages import Buffer
from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.sidecar.sessions import Session

_ZEROS = bytes(1 << 20)


class StagingBuffer:
    """A file of `total_bytes`, mapped here and in the engine; at most `max_slots` slots are made of it."""

    def __init__(self, path: Path, total_bytes: int, max_slots: int, mode: int) -> None:
        self._path = path
        self._max_slots = max_slots
        self._memory = memoryview(_new_file(path, total_bytes, mode))
        self._slot_bytes = 0
        self._slots = 0
        self._engine: str | None = None

    @property
    def slots(self) -> int:
        """How many slots there are now; 0 until the first `assign`."""
        return self._slots

    def assign(self, session: Session) -> Buffer | None:
        """Return the worker's share of the slots, zeroed if another engine had them; None when none fits."""
        slot_bytes = round_to_pages(session.shape.values_bytes)
        if session.engine != self._engine or slot_bytes != self._slot_bytes:
            self._carve(session.engine, slot_bytes)
        own = share(self._slots, session.rank, session.world)
        if not own:
            return None
        return Buffer(str(self._path), len(self._memory), slot_bytes, list(own))

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def offset(self, number: int) -> int:
        """Return where a slot begins in the file."""
        return number * self._slot_bytes

    def close(self) -> None:
        """Remove the file; mappings of it stay valid."""
        self._path.unlink(missing_ok=True)

    def _carve(self, engine: str, slot_bytes: int) -> None:
        if self._engine is not None:
            _zero(self._memory[: self._slots * self._slot_bytes])
        self._engine = engine
        self._slot_bytes = slot_bytes
        self._slots = min(self._max_slots, len(self._memory) // slot_bytes)


def share(slots: int, rank: int, world: int) -> range:
    """Return the slots of one rank: equal shares, what is left over goes to nobody."""
    each = slots // world
    return range(rank * each, (rank + 1) * each)


def round_to_pages(size: int) -> int:
    """Return `size` rounded up to whole pages."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _zero(memory: memoryview) -> None:
    for start in range(0, len(memory), len(_ZEROS)):
        part = memory[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


def _new_file(path: Path, size: int, mode: int) -> mmap.mmap:
    """Return a new file of zeros, mapped. Pages are reserved now: a full tmpfs is an error here, not a SIGBUS later."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; --landing-dir names a folder that can be written") from error
    try:
        os.fchmod(descriptor, mode)
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SettingsError(_no_room(path, size, error)) from error
    finally:
        os.close(descriptor)


def _no_room(path: Path, size: int, error: OSError) -> str:
    if error.errno != errno.ENOSPC:
        return f"{path}: {error.strerror}"
    return f"{path}: no room for {size} bytes; enlarge the volume, or lower landingBufferBytes and stagingBufferBytes"

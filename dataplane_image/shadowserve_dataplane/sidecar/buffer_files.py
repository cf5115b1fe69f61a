"""The two buffer files of one sidecar instance, under names that no earlier instance had."""

import asyncio
import errno
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.landing import LandingBuffer
from shadowserve_dataplane.sidecar.instance import remove_stale_files
from shadowserve_dataplane.sidecar.staging import StagingBuffer

ROOM_SECONDS = 10.0
"""How long to wait for an engine to let go of the files of a killed predecessor, which it still has mapped."""
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """Bytes of both buffers, the most staging slots, and the permission bits of the files."""

    landing: int
    staging: int
    staging_slots: int
    mode: int


@dataclass(frozen=True, slots=True)
class Buffers:
    """The buffers while the sidecar lives."""

    landing: LandingBuffer
    staging: StagingBuffer

    def close(self) -> None:
        """Remove both files."""
        self.landing.close()
        self.staging.close()


async def make_buffers(folder: Path, sizes: BufferSizes) -> Buffers:
    """Return new buffers in `folder`, after removing those of a killed predecessor.

    Raises `SettingsError` when the folder cannot be used or has no room. The instance's lock must be held.
    """
    try:
        stale = remove_stale_files(folder)
        await _wait_for_room(folder, sizes.landing + sizes.staging, ROOM_SECONDS if stale else 0.0)
        return _make(folder, sizes)
    except OSError as error:
        why = "no room" if error.errno == errno.ENOSPC else error.strerror
        raise SettingsError(f"landing folder {folder}: {why}; --landing-dir must be a writable folder") from error


def _make(folder: Path, sizes: BufferSizes) -> Buffers:
    name = f"{os.getpid()}-{secrets.token_hex(4)}.buffer"
    staging = StagingBuffer(folder / f"staging-{name}", sizes.staging, sizes.staging_slots, sizes.mode)
    try:
        return Buffers(LandingBuffer(sizes.landing, folder / f"landing-{name}", sizes.mode), staging)
    except BaseException:
        staging.close()
        raise


async def _wait_for_room(folder: Path, needed: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    limit = loop.time() + seconds
    while (free := shutil.disk_usage(folder).free) < needed:
        if loop.time() >= limit:
            raise SettingsError(
                f"landing folder {folder}: {needed} bytes are needed, {free} are free; enlarge the volume (emptyDir "
                "sizeLimit), or lower landingBufferBytes and stagingBufferBytes"
            )
        await asyncio.sleep(_LOOK_SECONDS)

"""The sidecar's end of its store process: starts it when there is something to store, and again when it has died."""

import asyncio
import logging
import sys
from collections.abc import Callable

import msgspec

from shadowserve_dataplane.errors import NetworkError
from shadowserve_dataplane.sidecar.store_messages import (
    LENGTH,
    MAX_FRAME_BYTES,
    Confirm,
    Done,
    Encoded,
    FromProcess,
    Setup,
    ToProcess,
    Work,
    framed,
    parse_from_process,
)

_GRACE_SECONDS = 10.0
"""Beyond the deadline of a store; a process that takes longer hangs, and is killed."""
_LOST = (OSError, asyncio.IncompleteReadError, TimeoutError, msgspec.DecodeError, NetworkError)

_log = logging.getLogger(__name__)


class StoreLink:
    """Has chunks stored, one at a time; for one task of the event loop."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._allowed = setup.config.limits.store_deadline_ms / 1e3 + _GRACE_SECONDS
        self._process: asyncio.subprocess.Process | None = None

    async def store(self, work: Work, still_wanted: Callable[[], bool]) -> Done:
        """Have a chunk stored, if it is `still_wanted()` once encoded. Raises `NetworkError` when the process died."""
        try:
            async with asyncio.timeout(self._allowed):
                process = self._process or await self._start()
                return await _exchange(process, work, still_wanted)
        except _LOST as error:
            await self.close()
            raise NetworkError(f"the store process ended: {error!r}") from error

    async def close(self) -> None:
        """End the process at once, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "shadowserve_dataplane.sidecar.store_process")
        self._process = process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        _log.info("store process %d started", process.pid)
        await _say(process, self._setup)
        return process


async def _exchange(process: asyncio.subprocess.Process, work: Work, still_wanted: Callable[[], bool]) -> Done:
    await _say(process, work)
    answer = await _hear(process)
    if isinstance(answer, Encoded):
        await _say(process, Confirm(still_wanted()))
        answer = await _hear(process)
    if not isinstance(answer, Done):
        raise NetworkError(f"it said {answer}")
    return answer


async def _say(process: asyncio.subprocess.Process, message: ToProcess) -> None:
    assert process.stdin is not None  # it was started with a pipe
    process.stdin.write(framed(message))
    await process.stdin.drain()


async def _hear(process: asyncio.subprocess.Process) -> FromProcess:
    assert process.stdout is not None  # it was started with a pipe
    [length] = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise NetworkError(f"it sent a frame of {length} bytes")
    return parse_from_process(await process.stdout.readexactly(length))

"""How a process ends when it is told to: at once while it starts, in order once it serves."""

import asyncio
import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_at_once_while_starting() -> None:
    """Have SIGTERM and SIGINT end this process with 0, until `stop_event` takes them over.

    The kernel drops signals that a container's first process does not handle, so a pod that is deleted while Python
    imports would stay until its grace period is over.
    """
    for number in _SIGNALS:
        signal.signal(number, _end)


def stop_event() -> asyncio.Event:
    """Return what SIGTERM and SIGINT set from now on; for the running loop."""
    stop = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)

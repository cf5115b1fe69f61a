"""The unix socket that connectors talk to: a ZeroMQ ROUTER on the event loop, without a task or future per message.

libzmq's file descriptor is edge-triggered: it says "look again" once, for both directions, so after every read and
every send the socket's own event flags decide whether there is more to read.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import zmq

from shadowserve_dataplane.errors import SettingsError

MAX_MESSAGE_BYTES = 16 << 20
"""A larger message ends its connection: 16 MiB are half a million chunk keys."""
_QUEUED_MESSAGES = 65_536
_AT_ONCE = 128
"""Messages read before other work gets its turn."""

_log = logging.getLogger(__name__)

OnMessage = Callable[[bytes, bytes], None]
"""Takes the peer's routing id and one frame."""


class Router:
    """Receives frames and sends answers; belongs to the running event loop."""

    def __init__(self, path: Path, mode: int, on_message: OnMessage) -> None:
        self._path = path
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._again_scheduled = False
        self._configure()
        self._bind(mode)
        self._loop.add_reader(self._socket.fileno(), self._read)

    def send(self, peer: bytes, frame: bytes) -> bool:
        """Send to a peer without waiting; returns whether it is still there to be told."""
        try:
            self._socket.send_multipart((peer, frame), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            _log.debug("not sent to %s: %s", peer.hex(), error)
            return False
        self._look_again()
        return True

    def close(self) -> None:
        """Stop, and remove the socket file; what was sent before still goes out, for at most 100 ms."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close(linger=100)
        self._context.term()
        self._path.unlink(missing_ok=True)

    def _configure(self) -> None:
        self._socket.router_mandatory = 1  # to hear that a peer is gone, instead of silence
        self._socket.sndhwm = _QUEUED_MESSAGES
        self._socket.rcvhwm = _QUEUED_MESSAGES
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES

    def _bind(self, mode: int) -> None:
        self._path.unlink(missing_ok=True)
        try:
            self._socket.bind(f"ipc://{self._path}")
        except zmq.ZMQError as error:
            self._socket.close(0)
            self._context.term()
            raise SettingsError(
                f"cannot listen on {self._path} ({len(str(self._path))} characters of 107 allowed): {error.strerror}; "
                "--run-dir names a short, writable folder"
            ) from error
        self._path.chmod(mode)

    def _look_again(self) -> None:
        if not self._again_scheduled and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._again_scheduled = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._again_scheduled = False
        if self._socket.closed:
            return
        try:
            self._read_some()
        finally:
            self._look_again()

    def _read_some(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            for frame in frames:
                self._on_message(peer, frame)

"""Placement on another host, the sender: a TCP (or TLS) stream to the sidecar, which writes its landing buffer."""

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

import xxhash

from shadowserve_dataplane.errors import NetworkError, PeerProtocolError
from shadowserve_dataplane.landing import SlotRef
from shadowserve_dataplane.place.frames import (
    ANSWER_BYTES,
    FrameKind,
    PlacementFrame,
    check_answer,
    pack_frame,
    pack_greeting,
)

SEND_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TcpTarget:
    """A `TcpPlacementReceiver` at `host:port`; times in seconds. Give it an `ssl.SSLContext` to speak TLS."""

    host: str
    port: int
    token: bytes
    tls: ssl.SSLContext | None = None
    connect_timeout: float = 2.0
    send_timeout: float = 5.0

    def open(self) -> "TcpPlacement":
        """Return a placement for one worker thread."""
        return TcpPlacement(self)


class TcpPlacement:
    """Sends frames from one buffer that is made once and grows to the largest frame there is."""

    def __init__(self, target: TcpTarget) -> None:
        self._target = target
        self._socket: socket.socket | None = None
        self._buffer = memoryview(bytearray(256 * 1024))

    def reserve(self, ref: SlotRef, offset: int, length: int) -> memoryview:
        """Return a part of the send buffer."""
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))
        return self._buffer[:length]

    def commit(self, ref: SlotRef, offset: int, length: int) -> None:
        """Send the reserved bytes. Raises `NetworkError`."""
        payload = self._buffer[:length]
        checksum = xxhash.xxh3_64_intdigest(payload)
        self._send(PlacementFrame(FrameKind.DATA, ref, offset, length, checksum), payload)

    def finish(self, ref: SlotRef, total_bytes: int) -> None:
        """Tell the receiver, behind all bytes, how many there were. Raises `NetworkError`."""
        self._send(PlacementFrame(FrameKind.FINISH, ref, total_bytes, 0, 0), self._buffer[:0])

    def abort(self, ref: SlotRef) -> None:
        """Tell the receiver, if it can still be reached, that no more comes."""
        if self._socket is not None:
            with suppress(NetworkError):
                self._send(PlacementFrame(FrameKind.ABORT, ref, 0, 0, 0), self._buffer[:0])

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, frame: PlacementFrame, payload: memoryview) -> None:
        try:
            connection = self._socket or self._connect()
            left = [memoryview(pack_frame(frame)), payload]
            while left:
                left = _without(left, connection.sendmsg(left) if not self._target.tls else connection.send(left[0]))
        except (OSError, PeerProtocolError) as error:
            self.close()
            raise NetworkError(f"placement to {self._target.host}:{self._target.port}: {error}") from error

    def _connect(self) -> socket.socket:
        target = self._target
        plain = socket.create_connection((target.host, target.port), target.connect_timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            stream = target.tls.wrap_socket(plain, server_hostname=target.host) if target.tls else plain
            stream.sendall(pack_greeting(target.token))
            check_answer(_receive_exactly(stream, ANSWER_BYTES))
            stream.settimeout(target.send_timeout)
        except BaseException:
            plain.close()
            raise
        self._socket = stream
        return stream


def _without(parts: list[memoryview], sent: int) -> list[memoryview]:
    """Return what is left of `parts` after the first `sent` bytes."""
    left = []
    for part in parts:
        if sent >= len(part):
            sent -= len(part)
        else:
            left.append(part[sent:])
            sent = 0
    return left


def _receive_exactly(stream: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = stream.recv(size - len(received))
        if not piece:
            raise PeerProtocolError("the receiver hung up during the greeting")
        received += piece
    return received

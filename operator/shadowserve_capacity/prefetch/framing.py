"""Messages over TCP: a length and then the bytes; and how both ends prove that they know the secret."""

import hmac
import secrets
import socket
import struct

from shadowserve_capacity.errors import WorkerError

_LENGTH = struct.Struct("<I")
_LARGEST = 1 << 24
_NONCE = 32
HANDSHAKE_S = 10.0
LEAST_SECRET = 16


def send_frame(channel: socket.socket, data: bytes) -> None:
    """Send one message; raises OSError, also when the socket's timeout is over."""
    channel.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(channel: socket.socket) -> bytes:
    """Wait for one message; empty when the other end has hung up. Raises OSError as the socket does."""
    head = _exactly(channel, _LENGTH.size)
    if not head:
        return b""
    (length,) = _LENGTH.unpack(head)
    if length > _LARGEST:
        raise WorkerError(f"a message of {length} bytes is too long")
    return _exactly(channel, length)


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = channel.recv(count - len(parts))
        if not part:
            return b""
        parts += part
    return bytes(parts)


class Frames:
    """Takes messages out of a stream as it comes, without waiting."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Take bytes of the stream."""
        self._data += data

    def whole(self) -> bool:
        """Return whether `next` has something to return or to raise."""
        if len(self._data) < _LENGTH.size:
            return False
        (length,) = _LENGTH.unpack_from(self._data)
        return not 0 < length <= _LARGEST or len(self._data) >= _LENGTH.size + int(length)

    def next(self) -> bytes:
        """Return the next whole message, or nothing; raises WorkerError on a length that makes no sense."""
        if len(self._data) < _LENGTH.size:
            return b""
        (length,) = _LENGTH.unpack_from(self._data)
        if not 0 < length <= _LARGEST:
            raise WorkerError(f"a message of {length} bytes makes no sense")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return b""
        message = bytes(self._data[_LENGTH.size : end])
        del self._data[:end]
        return message


def prove_to_worker(channel: socket.socket, secret: bytes) -> None:
    """Do the master's part: learn that the worker knows the secret, then show that we do; raises WorkerError."""
    ours = secrets.token_bytes(_NONCE)
    send_frame(channel, ours)
    theirs = receive_frame(channel)
    if not hmac.compare_digest(theirs[_NONCE:], _proof(secret, b"worker", ours + theirs[:_NONCE])):
        raise WorkerError("a worker does not know the secret")
    send_frame(channel, _proof(secret, b"master", theirs[:_NONCE] + ours))


def prove_to_master(channel: socket.socket, secret: bytes) -> None:
    """Do the worker's part: show that we know the secret, then learn that the master does; raises WorkerError."""
    theirs, ours = receive_frame(channel), secrets.token_bytes(_NONCE)
    send_frame(channel, ours + _proof(secret, b"worker", theirs + ours))
    if not hmac.compare_digest(receive_frame(channel), _proof(secret, b"master", ours + theirs)):
        raise WorkerError("the master does not know our secret, or we do not know its")


def _proof(secret: bytes, who: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, who + nonces, "sha256")

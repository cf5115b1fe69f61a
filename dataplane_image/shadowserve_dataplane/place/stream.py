"""Sockets of placement streams: whole frames in one system call, and how long one may take.

A stream is TCP, TLS, or a unix socket on one host. Plain ones block in the kernel (`SO_RCVTIMEO`, `SO_SNDTIMEO` and
`MSG_WAITALL`, socket(7)): a frame is one call without the interpreter's lock, where a Python timeout polls before every
piece. TLS sockets use Python's timeouts.
"""

import select
import socket
import ssl
import struct
from collections.abc import Callable

_TIMEVAL = struct.Struct("@ll")


def limit_calls(stream: socket.socket, seconds: float) -> None:
    """Let no single send or receive on `stream` take longer than `seconds`."""
    if isinstance(stream, ssl.SSLSocket):
        stream.settimeout(seconds)
        return
    timeval = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000))
    stream.settimeout(None)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def keep_alive(stream: socket.socket) -> None:
    """Have the kernel notice, within a minute, a peer that is gone without a word; on one host it always does."""
    if stream.family == socket.AF_UNIX:
        return
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 4)):
        stream.setsockopt(socket.IPPROTO_TCP, option, value)


def abstract_name(name: str) -> str:
    """Return the address of a unix socket that is a name only, not a file (abstract sockets, unix(7))."""
    return f"\0{name}"


def send_all(stream: socket.socket, header: bytes, payload: memoryview, may_wait: Callable[[], None]) -> None:
    """Send both. Raises `OSError`, and what `may_wait` raises.

    `may_wait` is called whenever nothing could be sent for as long as `limit_calls` says; a frame is then half sent.
    """
    left = [memoryview(header), payload]
    while left:
        try:
            sent = stream.send(left[0]) if isinstance(stream, ssl.SSLSocket) else stream.sendmsg(left)
        except (BlockingIOError, TimeoutError):  # from the kernel, and from TLS
            may_wait()
        else:
            left = _without(left, sent)


def receive_some(stream: socket.socket, view: memoryview) -> int:
    """Return how many bytes came, fewer than `len(view)` only at a hang-up or a time-out; 0: the peer hung up.

    Raises `TimeoutError` when nothing came for as long as `limit_calls` says.
    """
    try:
        if isinstance(stream, ssl.SSLSocket):
            return stream.recv_into(view)
        return stream.recv_into(view, len(view), socket.MSG_WAITALL)
    except BlockingIOError as error:
        raise TimeoutError("the sender stopped sending") from error


def receive_all(stream: socket.socket, view: memoryview) -> bool:
    """Fill `view`; False when the peer hangs up first. Raises `OSError`, `TimeoutError` as `receive_some` does."""
    while len(view):
        count = receive_some(stream, view)
        if not count:
            return False
        view = view[count:]
    return True


def hung_up(stream: socket.socket) -> bool:
    """Whether the receiver hung up: after its answer it never sends anything, so any news are bad news."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(0))


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

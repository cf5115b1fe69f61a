"""Placement into another process, the sender: a stream to the sidecar, which writes its landing buffer.

TCP or TLS; on the same host a unix socket, where the same bytes cost half the processor time.
"""

import math
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

import xxhash

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, DeadlineExceeded, NetworkError, PeerProtocolError, ShadowServeError
from shadowserve_dataplane.landing import SlotRef
from shadowserve_dataplane.place.base import POLL_SECONDS, Patience
from shadowserve_dataplane.place.frames import (
    ANSWER_BYTES,
    FrameKind,
    PlacementFrame,
    check_answer,
    pack_frame,
    pack_greeting,
)
from shadowserve_dataplane.place.stream import abstract_name, hung_up, keep_alive, limit_calls, receive_all, send_all

_FIRST_BUFFER_BYTES = 256 * 1024
_SHORTEST_TIMEOUT = 0.01
_STALLED_SECONDS = 1.0
"""So long nobody tries again after a time-out: the chunks of other sidecars need this thread too."""


@dataclass(frozen=True, slots=True)
class TcpTarget:
    """A `TcpPlacementReceiver` at `host:port`; times in seconds. Give it an `ssl.SSLContext` to speak TLS.

    `local` is the receiver's `local_name`: without TLS it is tried first, and `host:port` where it is not known.
    """

    host: str
    port: int
    token: bytes
    tls: ssl.SSLContext | None = None
    connect_timeout: float = 2.0
    send_timeout: float = 2.0
    local: str = ""

    def open(self) -> "TcpPlacement":
        """Return a placement for one worker thread."""
        return TcpPlacement(self)


class TcpPlacement:
    """Sends frames from one buffer that is made once and grows to the largest frame there is."""

    def __init__(self, target: TcpTarget) -> None:
        self._target = target
        self._socket: socket.socket | None = None
        self._buffer = memoryview(bytearray(_FIRST_BUFFER_BYTES))
        self._begun: set[SlotRef] = set()
        self._cut_off: set[SlotRef] = set()
        self._patience = Patience()
        self._stalled_until = Deadline(-math.inf)

    @property
    def piece_bytes(self) -> int:
        """About a frame: the receiver has its bytes while the next one is restored."""
        return _FIRST_BUFFER_BYTES

    def wait_as_long_as(self, patience: Patience) -> None:
        """Wait that long for a receiver that takes nothing, and never longer than the target's `send_timeout`."""
        self._patience = patience

    def reserve(self, ref: SlotRef, offset: int, length: int) -> memoryview:
        """Return a part of the send buffer. Raises `NetworkError` for a chunk that lost bytes with its connection."""
        self._refuse_cut_off(ref)
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))
        return self._buffer[:length]

    def commit(self, ref: SlotRef, offset: int, length: int) -> None:
        """Send the reserved bytes. Raises `NetworkError`."""
        if not self._begun and self._socket is not None and hung_up(self._socket):
            self.close()  # the receiver was restarted while nothing was under way: no chunk need suffer
        payload = self._buffer[:length]
        checksum = xxhash.xxh3_64_intdigest(payload)
        self._begun.add(ref)
        self._send(PlacementFrame(FrameKind.DATA, ref, offset, length, checksum), payload)

    def finish(self, ref: SlotRef, total_bytes: int) -> None:
        """Tell the receiver, behind all bytes, how many there were. Raises `NetworkError`."""
        self._refuse_cut_off(ref)
        self._send(PlacementFrame(FrameKind.FINISH, ref, total_bytes, 0, 0), self._buffer[:0])
        self._begun.discard(ref)

    def abort(self, ref: SlotRef) -> None:
        """Tell the receiver, if it can still be reached, that no more comes."""
        if ref in self._begun:
            with suppress(ShadowServeError):
                self._send(PlacementFrame(FrameKind.ABORT, ref, 0, 0, 0), self._buffer[:0])
        self._begun.discard(ref)
        self._cut_off.discard(ref)

    def close(self) -> None:
        """Hang up: chunks that are not finished will not be."""
        self._cut_off |= self._begun
        self._begun.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def _name(self) -> str:
        return f"placement to {self._target.host}:{self._target.port}"

    def _refuse_cut_off(self, ref: SlotRef) -> None:
        if ref in self._cut_off:
            raise NetworkError(f"{self._name}: the connection was lost in the middle of this chunk")

    def _send(self, frame: PlacementFrame, payload: memoryview) -> None:
        try:
            stream = self._socket or self._connect()
            send_all(stream, pack_frame(frame), payload, _Wait(self._patience, self._target.send_timeout))
        except (Cancelled, DeadlineExceeded):
            self.close()  # a frame may be half sent
            raise
        except (OSError, PeerProtocolError) as error:
            self.close()
            if isinstance(error, TimeoutError):
                self._patience.check()  # it may have been the deadline that made the time so short
                self._stalled_until = Deadline.after(_STALLED_SECONDS)
            raise NetworkError(f"{self._name}: {error}") from error

    def _connect(self) -> socket.socket:
        target = self._target
        self._patience.check()
        if not self._stalled_until.expired:
            raise ConnectionError("the receiver stalled a moment ago")
        timeout = max(_SHORTEST_TIMEOUT, min(target.connect_timeout, self._patience.deadline.remaining()))
        local = _same_host(target.local, timeout) if target.local and target.tls is None else None
        stream = local or _by_tcp(target, timeout)
        try:
            keep_alive(stream)
            if target.tls is not None:
                stream = target.tls.wrap_socket(stream, server_hostname=target.host)
            stream.sendall(pack_greeting(target.token))
            answer = bytearray(ANSWER_BYTES)
            if not receive_all(stream, memoryview(answer)):
                raise PeerProtocolError("the receiver hung up during the greeting")
            check_answer(bytes(answer))
            limit_calls(stream, POLL_SECONDS)
        except BaseException:
            stream.close()
            raise
        self._socket = stream
        return stream


def _same_host(name: str, timeout: float) -> socket.socket | None:
    """Return a stream to the receiver of that name, None when there is none in this network namespace."""
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.settimeout(timeout)
        stream.connect(abstract_name(name))
    except OSError:
        stream.close()
        return None
    return stream


def _by_tcp(target: TcpTarget, timeout: float) -> socket.socket:
    stream = socket.create_connection((target.host, target.port), timeout)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


class _Wait:
    """Called when nothing could be sent for `POLL_SECONDS`; raises when that has gone on for too long."""

    def __init__(self, patience: Patience, seconds: float) -> None:
        self._patience = patience
        self._seconds = seconds

    def __call__(self) -> None:
        self._patience.check()
        self._seconds -= POLL_SECONDS
        if self._seconds <= 0:
            raise TimeoutError("the receiver takes nothing any more")

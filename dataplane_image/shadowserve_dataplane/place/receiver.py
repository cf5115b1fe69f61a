"""Placement by another process, the receiver: what a data plane sends goes from the socket straight into the slots."""

import logging
import secrets
import socket
import ssl
import threading
from collections.abc import Callable

import xxhash

from shadowserve_dataplane.errors import Cancelled, PeerProtocolError
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.frames import (
    FRAME_BYTES,
    GREETING_BYTES,
    FrameKind,
    PlacementFrame,
    Verdict,
    judge_greeting,
    pack_answer,
    parse_frame,
)
from shadowserve_dataplane.place.stream import abstract_name, keep_alive, limit_calls, receive_all, receive_some

_GREETING_SECONDS = 5.0
_MID_FRAME_SECONDS = 5.0
"""A sender that stops in the middle of a frame longer than this is hung up on: it holds a slot."""
_BACKLOG = 64
_DRAIN_BYTES = 64 * 1024
_JOIN_SECONDS = 2.0
_ACCEPT_PAUSE_SECONDS = 0.2
_log = logging.getLogger(__name__)

OnFinished = Callable[[SlotRef], None]


class TcpPlacementReceiver:
    """Listens on `host:port` (0 = any free port) and writes what senders that know `token` place into `landing`.

    `on_finished(ref)` is called on a receiver thread once every byte of a chunk lies in its slot. Frames under leases
    that are not open are read and dropped. A sender that breaks the protocol is hung up on; others are not disturbed.
    Senders on this host may come by a unix socket instead, `local_name`, unless TLS is asked for.
    """

    def __init__(
        self,
        landing: LandingBuffer,
        address: tuple[str, int],
        token: bytes,
        on_finished: OnFinished,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._landing = landing
        self._token = token
        self._on_finished = on_finished
        self._tls = tls
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        self._listeners = [self._listener]
        self.local_name = ""
        """What a sender on this host may connect to; empty when there is nothing. Nobody can guess and take it."""
        if tls is None:
            self.local_name = f"shadowserve-placement-{secrets.token_hex(16)}"
            self._listeners.append(_listen_locally(self.local_name))
        self._connections: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._acceptors = [
            threading.Thread(target=self._accept, args=(listener,), name="placement-accept", daemon=True)
            for listener in self._listeners
        ]
        for acceptor in self._acceptors:
            acceptor.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening and hang up."""
        with self._lock:
            self._closing.set()
            connections, threads = list(self._connections), list(self._threads)
        for stream in (*self._listeners, *connections):
            _shut(stream)
        for thread in (*self._acceptors, *threads):
            thread.join(_JOIN_SECONDS)
        for listener in self._listeners:
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                stream, peer = listener.accept()
            except OSError as error:
                if not self._closing.is_set():  # too many open files, or a sender that went away again
                    _log.warning("no placement stream could be accepted: %s", error)
                    self._closing.wait(_ACCEPT_PAUSE_SECONDS)
                continue
            name = f"{peer[0]}:{peer[1]}" if peer else "this host"
            thread = threading.Thread(target=self._serve, args=(stream, name), daemon=True)
            with self._lock:
                if self._closing.is_set():
                    stream.close()
                    return
                self._connections.add(stream)
                self._threads.add(thread)
                thread.start()

    def _serve(self, plain: socket.socket, peer: str) -> None:
        stream = plain
        try:
            plain.settimeout(_GREETING_SECONDS)
            keep_alive(plain)
            if self._tls is not None:
                stream = tls = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                self._replace(plain, tls)
                tls.do_handshake()
            if self._greet(stream, peer):
                _Reception(self._landing, stream, self._on_finished).run()
        except (OSError, PeerProtocolError) as error:
            if not self._closing.is_set():
                _log.warning("placement stream from %s ended: %s", peer, error)
        finally:
            stream.close()
            with self._lock:
                self._connections.discard(stream)
                self._threads.discard(threading.current_thread())

    def _replace(self, plain: socket.socket, stream: ssl.SSLSocket) -> None:
        with self._lock:  # `plain` is an empty shell now: `close` must find the other
            self._connections.discard(plain)
            self._connections.add(stream)

    def _greet(self, stream: socket.socket, peer: str) -> bool:
        greeting = memoryview(bytearray(GREETING_BYTES))
        if not receive_all(stream, greeting):
            return False
        verdict = judge_greeting(bytes(greeting), self._token)
        stream.sendall(pack_answer(verdict))
        if verdict is not Verdict.WELCOME:
            _log.warning("placement stream from %s refused: %s", peer, verdict.name.lower().replace("_", " "))
        return verdict is Verdict.WELCOME


class _Reception:
    """Frames of one connection, in order."""

    def __init__(self, landing: LandingBuffer, stream: socket.socket, on_finished: OnFinished) -> None:
        self._landing = landing
        self._stream = stream
        self._on_finished = on_finished
        self._header = memoryview(bytearray(FRAME_BYTES))
        self._drain = memoryview(bytearray(_DRAIN_BYTES))
        self._received: dict[SlotRef, int] = {}

    def run(self) -> None:
        """Receive until the sender hangs up. Raises `PeerProtocolError` or `OSError`."""
        limit_calls(self._stream, _MID_FRAME_SECONDS)
        while self._next_header():
            frame = parse_frame(self._header, self._landing.slot_bytes)
            match frame.kind:
                case FrameKind.DATA:
                    self._take(frame)
                case FrameKind.FINISH:
                    self._finish(frame)
                case FrameKind.ABORT:
                    self._received.pop(frame.ref, None)

    def _next_header(self) -> bool:
        while True:
            try:
                first = receive_some(self._stream, self._header)
            except TimeoutError:
                continue  # between frames nothing need come
            self._rest(self._header[first:] if first else self._header[:0])
            return bool(first)

    def _take(self, frame: PlacementFrame) -> None:
        try:
            slot = self._landing.enter(frame.ref)
        except Cancelled:
            self._received.pop(frame.ref, None)
            self._skip(frame.length)
            return
        try:
            view = slot[frame.offset : frame.offset + frame.length]
            self._rest(view)
            found = xxhash.xxh3_64_intdigest(view)
        finally:
            self._landing.leave(frame.ref)
        if found != frame.checksum:
            raise PeerProtocolError(f"slot {frame.ref.slot}: checksum {found:#x}, sent {frame.checksum:#x}")
        self._received[frame.ref] = self._received.get(frame.ref, 0) + frame.length

    def _finish(self, frame: PlacementFrame) -> None:
        received = self._received.pop(frame.ref, 0)
        if not self._landing.open_for_writing(frame.ref):
            return
        if received != frame.offset:
            raise PeerProtocolError(f"slot {frame.ref.slot}: {received} bytes came, {frame.offset} were sent")
        self._on_finished(frame.ref)

    def _rest(self, view: memoryview) -> None:
        if not receive_all(self._stream, view):
            raise PeerProtocolError("the sender hung up in the middle of a frame")

    def _skip(self, length: int) -> None:
        while length:
            piece = self._drain[: min(length, _DRAIN_BYTES)]
            self._rest(piece)
            length -= len(piece)


def _listen_locally(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(abstract_name(name))
    listener.listen(_BACKLOG)
    return listener


def _shut(stream: socket.socket) -> None:
    try:
        stream.shutdown(socket.SHUT_RDWR)
    except OSError as error:  # it was closed by the other side, or never connected
        _log.debug("closing a placement socket: %s", error)

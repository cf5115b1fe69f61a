"""The connector's conversation with the sidecar: one background thread that owns the ZeroMQ socket.

The engine's threads only append to a queue and read the session; nothing here ever blocks them. A sidecar that is
dead, refuses, or does not answer means: no session, so nothing is looked up and nothing is stored.
"""

import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from shadowserve_dataplane.connector.messages import (
    PROTOCOL,
    FromConnector,
    FromSidecar,
    Hello,
    Refused,
    SessionUnknown,
    Welcome,
    pack,
    unpack_from_sidecar,
)

_log = logging.getLogger(f"vllm.{__name__}")  # a child of the logger that vLLM has set up

_HELLO_EVERY = 5.0
"""Seconds after which an unanswered `Hello` is said again."""
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 500
_QUEUED_MESSAGES = 4096
_CLOSE_SECONDS = 2.0
_CONNECTED: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED
_LOST: Final = frozenset({zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL})


class SidecarEvents(Protocol):
    """What a connector half does about the sidecar; called on the client's thread, must return at once."""

    def session_began(self, welcome: Welcome) -> None:
        """A sidecar said `Welcome`; its terms hold until `session_lost`.

        Raises `OSError` or `ValueError` when they cannot be met.
        """

    def session_lost(self) -> None:
        """The sidecar is gone or was restarted: nothing that it owed will come."""

    def received(self, message: FromSidecar) -> None:
        """Any other message of the current session."""


@dataclass(frozen=True, slots=True)
class _Sockets:
    dealer: "zmq.Socket[bytes]"
    monitor: "zmq.Socket[bytes]"


class SidecarClient:
    """Keeps a session with the sidecar at `socket_path`, across its restarts; starts with `start`."""

    def __init__(self, socket_path: str, hello: Hello, events: SidecarEvents) -> None:
        self._endpoint = f"ipc://{socket_path}"
        self._hello = hello
        self._events = events
        self._session: Welcome | None = None
        self._outgoing: deque[FromConnector] = deque(maxlen=_QUEUED_MESSAGES)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._hello_at = float("inf")
        self._said_refused = False
        self._thread = threading.Thread(target=self._run, name=f"shadowserve-{hello.role}", daemon=True)

    @property
    def session(self) -> Welcome | None:
        """The terms of the current session; None while there is no sidecar to talk to."""
        return self._session

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._thread.start()

    def send(self, message: FromConnector) -> None:
        """Queue a message, from any thread. Without a session it goes nowhere, like one lost on the way."""
        self._outgoing.append(message)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop the thread; waits for it, at most two seconds."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        with zmq.Context() as context:
            dealer = context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.immediate = True
            dealer.reconnect_ivl = _RECONNECT_MS
            dealer.reconnect_ivl_max = _RECONNECT_MAX_MS
            sockets = _Sockets(dealer, dealer.get_monitor_socket())
            dealer.connect(self._endpoint)
            try:
                self._serve(sockets)
            finally:
                dealer.disable_monitor()
                sockets.monitor.close(0)
                dealer.close(0)

    def _serve(self, sockets: _Sockets) -> None:
        poller = zmq.Poller()
        for source in (sockets.dealer, sockets.monitor, self._wake):
            poller.register(source, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll(self._poll_ms()))
            if sockets.monitor in ready:
                self._watch(sockets)
            if sockets.dealer in ready:
                self._receive(sockets.dealer)
            if self._wake in ready:
                os.eventfd_read(self._wake)
            self._send_queued(sockets.dealer)
            if time.monotonic() >= self._hello_at:
                self._say_hello(sockets.dealer)

    def _poll_ms(self) -> int:
        remaining = self._hello_at - time.monotonic()
        return 1000 if remaining > 1 else max(0, int(remaining * 1000) + 1)

    def _watch(self, sockets: _Sockets) -> None:
        while sockets.monitor.poll(0):
            event = recv_monitor_message(sockets.monitor, zmq.NOBLOCK)["event"]
            if event == _CONNECTED:
                self._say_hello(sockets.dealer)
            elif event in _LOST:
                self._lose_session()
                self._hello_at = float("inf")

    def _say_hello(self, dealer: "zmq.Socket[bytes]") -> None:
        self._transmit(dealer, self._hello)
        self._hello_at = time.monotonic() + _HELLO_EVERY

    def _lose_session(self) -> None:
        if self._session is None:
            return
        self._session = None
        self._outgoing.clear()
        _log.info("the sidecar at %s is gone: the engine computes by itself until it is back", self._endpoint)
        self._events.session_lost()

    def _receive(self, dealer: "zmq.Socket[bytes]") -> None:
        while dealer.poll(0):
            frames = dealer.recv_multipart(zmq.NOBLOCK)
            try:
                message = unpack_from_sidecar(frames[-1])
            except msgspec.DecodeError as error:
                _log.warning("the sidecar sent what this connector does not understand: %s", error)
                continue
            self._take(message, dealer)

    def _take(self, message: FromSidecar, dealer: "zmq.Socket[bytes]") -> None:
        match message:
            case Welcome(protocol=protocol) if protocol != PROTOCOL:
                self._refused(f"it speaks protocol {protocol}, this connector {PROTOCOL}; use matching versions")
            case Welcome():
                self._begin(message)
            case Refused(reason=reason):
                self._refused(reason)
            case SessionUnknown(session=unknown):
                if self._session is not None and self._session.session == unknown:
                    self._lose_session()
                    self._say_hello(dealer)
            case _ if self._session is not None:
                self._events.received(message)

    def _begin(self, welcome: Welcome) -> None:
        self._lose_session()
        self._hello_at = float("inf")
        self._said_refused = False
        try:
            self._events.session_began(welcome)
        except (OSError, ValueError) as error:
            self._refused(f"its buffers cannot be used: {error}")
            return
        self._session = welcome
        _log.info("KV cache sidecar at %s: session %d", self._endpoint, welcome.session)

    def _refused(self, reason: str) -> None:
        self._hello_at = float("inf")
        if not self._said_refused:
            self._said_refused = True
            _log.warning("the sidecar at %s refused this engine, which goes on without it: %s", self._endpoint, reason)

    def _send_queued(self, dealer: "zmq.Socket[bytes]") -> None:
        while self._outgoing:
            message = self._outgoing.popleft()
            if self._session is not None:
                self._transmit(dealer, message)

    def _transmit(self, dealer: "zmq.Socket[bytes]", message: FromConnector) -> None:
        try:
            dealer.send(pack(message), zmq.NOBLOCK)
        except zmq.Again:
            _log.debug("not sent, no sidecar: %s", type(message).__name__)

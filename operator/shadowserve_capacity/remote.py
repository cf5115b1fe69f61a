"""Workers on other machines: they connect by TCP, prove a shared secret, and make the named problem for themselves.

Nothing is unpickled. A worker whose arithmetic differs from ours in one bit of the first batch is refused, since its
terms would not be those of the serial run. Both ends prove the secret; messages are not encrypted: use a network you
trust.
"""

import json
import queue
import socket
import threading
import time
from collections import deque
from dataclasses import asdict

from shadowserve_capacity.errors import WorkerError
from shadowserve_capacity.prefetch.framing import (
    HANDSHAKE_S,
    LEAST_SECRET,
    Frames,
    prove_to_master,
    prove_to_worker,
    receive_frame,
    send_frame,
)
from shadowserve_capacity.prefetch.links import Hiring, Link
from shadowserve_capacity.prefetch.local_worker import READY
from shadowserve_capacity.prefetch.wire import Answer, CallOff, Failure, Order, decode, encode
from shadowserve_capacity.prefetch.worker import keep_freed_memory, work
from shadowserve_capacity.problems.named import Named

_SEND_S = 2.0
_MAKE_S = 120.0
_CONNECT_EVERY_S = 0.2


def _checked_secret(secret: bytes) -> bytes:
    if len(secret) < LEAST_SECRET:
        raise WorkerError(f"the secret has {len(secret)} bytes: use at least {LEAST_SECRET}")
    return secret


class RemoteLink:
    """A worker behind a TCP connection."""

    def __init__(self, channel: socket.socket, peer: str) -> None:
        self._channel = channel
        self._peer = peer
        self._frames = Frames()
        self._greeting = [READY]
        channel.settimeout(_SEND_S)
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """Return the socket."""
        return self._channel.fileno()

    def received(self) -> bytes:
        """Return the next message, empty if there is none yet; raises WorkerError when the worker is gone."""
        if self._greeting:
            return self._greeting.pop()
        if message := self._frames.next():
            return message
        try:
            data = self._channel.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise WorkerError(f"worker {self._peer} is gone: {error}") from error
        if not data:
            raise WorkerError(f"worker {self._peer} has hung up")
        self._frames.add(data)
        return self._frames.next()

    def buffered(self) -> bool:
        """Return whether a whole message has been read from the socket already."""
        return bool(self._greeting) or self._frames.whole()

    def order(self, order: Order) -> None:
        """Send an order."""
        self._send(encode(order))

    def call_off(self, call: CallOff) -> None:
        """Ask to stop with an order."""
        self._send(encode(call))

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _send(self, data: bytes) -> None:
        try:
            send_frame(self._channel, data)
        except OSError as error:
            raise WorkerError(f"worker {self._peer} is gone: {error}") from error


class RemoteWorkers:
    """Listens for workers that want to help with a problem; they may come and go at any time."""

    def __init__(self, named: Named, address: tuple[str, int], secret: bytes) -> None:
        problem = named.problem(1)
        self._secret = _checked_secret(secret)
        self._greeting = json.dumps(asdict(named)).encode()
        self._expected = problem.evaluate(problem.start, 0).hex()
        self._listener = socket.create_server(address)
        self._fresh: queue.SimpleQueue[Link] = queue.SimpleQueue()
        self._bell, self._ring = socket.socketpair()
        self._closing = threading.Event()
        self.refused: deque[str] = deque(maxlen=100)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        """Return where workers connect."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def fileno(self) -> int | None:
        """Return what becomes readable when a worker has come."""
        return self._bell.fileno()

    def hired(self) -> list[Link]:
        """Return the workers that have come since the last call."""
        links: list[Link] = []
        while True:
            try:
                links.append(self._fresh.get_nowait())
            except queue.Empty:
                break
        if links:
            self._bell.recv(len(links))
        return links

    def replace(self, link: Link) -> Link | None:
        """Return None: whoever is gone may connect again."""
        return None

    def close(self) -> None:
        """Listen no more, and let go who was not hired; nothing when closed before."""
        if self._closing.is_set():
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._closing.set()
        self._hang_up()
        self._bell.close()
        self._ring.close()

    def _hang_up(self) -> None:
        """Close what has come and was not hired."""
        while True:
            try:
                self._fresh.get_nowait().close()
            except queue.Empty:
                return

    def _accept(self) -> None:
        while True:
            try:
                channel, peer = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(channel, f"{peer[0]}:{peer[1]}"), daemon=True).start()

    def _greet(self, channel: socket.socket, peer: str) -> None:
        try:
            channel.settimeout(HANDSHAKE_S)
            prove_to_worker(channel, self._secret)
            channel.settimeout(_MAKE_S)
            send_frame(channel, self._greeting)
            term = receive_frame(channel).decode()
            if term != self._expected:
                raise WorkerError(f"its first batch is {term or 'nothing'}, ours {self._expected}: other arithmetic")
            send_frame(channel, READY)
            self._fresh.put(RemoteLink(channel, peer))
            if self._closing.is_set():
                self._hang_up()
            else:
                self._ring.send(b"!")
        except (OSError, WorkerError, UnicodeDecodeError) as error:
            self.refused.append(f"{peer}: {error}")
            channel.close()


class _RemoteOrders:
    """Orders and call-offs from a connection, read by a thread while batches are evaluated."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._off: dict[int, int] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Order | None:
        """Wait for the next order; None when the master is gone."""
        return self._orders.get()

    def called_off(self, order: Order) -> bool:
        """Return whether the master called it off."""
        return self._off.get(order.lane) == order.serial

    def answer(self, message: Answer | Failure) -> None:
        """Send a message."""
        send_frame(self._channel, encode(message))

    def _read(self) -> None:
        try:
            while data := receive_frame(self._channel):
                message = decode(data)
                if isinstance(message, Order):
                    self._orders.put(message)
                elif isinstance(message, CallOff):
                    self._off[message.lane] = message.serial
        except (OSError, WorkerError):
            pass
        self._orders.put(None)


def serve_master(address: tuple[str, int], secret: bytes, patience: float = 30.0) -> None:
    """Help the master at `address` until it hangs up; raises WorkerError when it cannot be had or refuses us.

    It is tried for `patience` seconds.
    """
    with _connected(address, patience) as channel:
        try:
            channel.settimeout(HANDSHAKE_S)
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            prove_to_master(channel, _checked_secret(secret))
            problem = Named(**json.loads(receive_frame(channel))).problem(1)
            channel.settimeout(_MAKE_S)
            send_frame(channel, problem.evaluate(problem.start, 0).hex().encode())
            if receive_frame(channel) != READY:
                raise WorkerError(
                    "refused: this machine's arithmetic differs in the last bits, so its terms are no use"
                )
        except (OSError, ValueError, TypeError) as error:
            raise WorkerError(f"{address[0]}:{address[1]}: no agreement with the master: {error!r}") from error
        channel.settimeout(None)
        keep_freed_memory()
        try:
            work(problem.target, _RemoteOrders(channel))
        except (BrokenPipeError, ConnectionResetError):
            return


def _connected(address: tuple[str, int], patience: float) -> socket.socket:
    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection(address, timeout=HANDSHAKE_S)
        except OSError as error:
            if time.monotonic() > deadline:
                raise WorkerError(f"{address[0]}:{address[1]}: no master there: {error}") from error
            time.sleep(_CONNECT_EVERY_S)


class Together:
    """Worker processes here, and whoever connects."""

    def __init__(self, here: Hiring, remote: RemoteWorkers) -> None:
        self._here = here
        self._remote = remote

    def hired(self) -> list[Link]:
        """Return all workers that have come since the last call."""
        return self._here.hired() + self._remote.hired()

    def replace(self, link: Link) -> Link | None:
        """Replace a process; whoever connected may come again."""
        return None if isinstance(link, RemoteLink) else self._here.replace(link)

    def fileno(self) -> int | None:
        """Return what becomes readable when a worker has connected."""
        return self._remote.fileno()

    def close(self) -> None:
        """Close nothing: both are closed by who made them."""

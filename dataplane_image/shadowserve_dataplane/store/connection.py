"""One connection to one shard: TCP, TLS, authentication, then commands out and replies in; it never blocks.

A shard that accepts and says nothing must not hold up the others, so every step, the first included, is a short one
that is taken again when the selector says so. Name resolution alone is not: addresses in a cluster are numbers.
"""

import errno
import os
import selectors
import socket
import ssl
from enum import Enum, auto

from shadowserve_dataplane.errors import NetworkError, ShadowServeError, StoreRefused
from shadowserve_dataplane.store.node import not_let_in, tls_hint, tls_refused
from shadowserve_dataplane.store.resp import ErrorReply, RespReader, Status, encode_command
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address


class _Stage(Enum):
    CONNECTING = auto()
    TLS = auto()
    AUTHENTICATING = auto()
    READY = auto()


class ShardConnection:
    """A connection being made, or ready. After any error: `close` it and make another.

    `owner` is what the selector reports as `key.data`. All methods raise `NetworkError`, `PeerProtocolError` or
    `StoreRefused` (retrying unchanged will not help).
    """

    def __init__(
        self,
        address: Address,
        settings: StoreSettings,
        selector: selectors.BaseSelector,
        owner: object,
        attempt: int = 0,
    ) -> None:
        self.address = address
        self.reader = RespReader()
        self._settings = settings
        self._selector = selector
        self._owner = owner
        self._stage = _Stage.CONNECTING
        self._unsent = bytearray()
        self._heard = False
        self._tls: ssl.SSLSocket | None = None
        self._socket = self._open(attempt)
        self._interest = selectors.EVENT_WRITE
        selector.register(self._socket, self._interest, owner)

    @property
    def ready(self) -> bool:
        """Whether commands may be sent."""
        return self._stage is _Stage.READY

    @property
    def settled(self) -> bool:
        """Whether `advance` has nothing to do: ready, and all commands are sent."""
        return self._stage is _Stage.READY and not self._unsent

    @property
    def encrypted(self) -> bool:
        """Whether bytes have to be decrypted before there is anything to receive."""
        return self._tls is not None

    def advance(self) -> None:
        """Take whatever step towards `ready` is possible now, and send what is still unsent."""
        if self._stage is _Stage.CONNECTING:
            self._connect()
        if self._stage is _Stage.TLS:
            self._shake_hands()
        if self._stage is _Stage.AUTHENTICATING:
            self._flush()
            self._authenticate()
        elif self._stage is _Stage.READY:
            self._flush()

    def send(self, command: bytes) -> None:
        """Send `command`, now or as soon as the peer takes it."""
        self._unsent += command
        self._flush()

    def receive(self, space: memoryview) -> int | None:
        """Read what is there into `space`, the start of `reader.writable()`; return how many bytes, None for nothing.

        Fewer than `space` holds: there is no more now. TLS hands out a record of at most 16 KiB at a time, so it is
        asked again until then.
        """
        try:
            count = self._socket.recv_into(space) if self._tls is None else _read_records(self._tls, space)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._watch(selectors.EVENT_READ | selectors.EVENT_WRITE)
            return None
        except OSError as error:
            raise self._lost(error) from error
        if count == 0:
            raise NetworkError(f"{self.address} closed the connection{self._hint()}")
        self.reader.received(count)
        self._heard = True
        return count

    def pause(self, paused: bool) -> None:
        """Stop or go on listening to the selector's news of incoming bytes."""
        sending = selectors.EVENT_WRITE if self._unsent else 0
        self._watch(sending if paused else selectors.EVENT_READ | sending)

    def silent(self, seconds: float) -> NetworkError:
        """Return the error for a peer that owed something for `seconds`."""
        what = "sent nothing for" if self.ready else "did not let us in within"
        return NetworkError(f"{self.address} {what} {seconds:g} s{self._hint()}")

    def close(self) -> None:
        """Leave the selector and close the socket; harmless when repeated."""
        if self._interest:
            self._selector.unregister(self._socket)
            self._interest = 0
        self._socket.close()

    def _open(self, attempt: int) -> socket.socket:
        host, port = self.address
        try:
            choices = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NetworkError(f"{self.address}: cannot resolve {host!r}: {error}") from error
        family, kind, protocol, _, where = choices[attempt % len(choices)]
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        problem = opened.connect_ex(where)
        if problem not in (0, errno.EINPROGRESS):
            opened.close()
            raise NetworkError(f"{self.address}: {os.strerror(problem)}")
        return opened

    def _connect(self) -> None:
        problem = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            raise NetworkError(f"{self.address}: {os.strerror(problem)}")
        try:
            self._socket.getpeername()
        except OSError:
            return  # still on its way
        if self._settings.tls is None:
            self._greet()
        else:
            self._start_tls(self._settings.tls)

    def _start_tls(self, context: ssl.SSLContext) -> None:
        self._selector.unregister(self._socket)
        self._interest = 0
        try:
            self._tls = context.wrap_socket(
                self._socket, server_hostname=self.address.host, do_handshake_on_connect=False
            )
        except (OSError, ValueError) as error:
            raise StoreRefused(f"{self.address}: TLS cannot be started: {error}") from error
        self._socket = self._tls
        self._stage = _Stage.TLS

    def _shake_hands(self) -> None:
        if self._tls is None:
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(selectors.EVENT_WRITE)
        except ssl.SSLError as error:
            raise tls_refused(error, self.address) from error
        except OSError as error:
            raise self._lost(error) from error
        else:
            self._greet()

    def _greet(self) -> None:
        """Authenticate if there is a password; a store without one needs no greeting."""
        if self._settings.password is None:
            self._stage = _Stage.READY
            self._watch(selectors.EVENT_READ)
            return
        self._stage = _Stage.AUTHENTICATING
        user = [self._settings.username.encode()] if self._settings.username else []
        self.send(encode_command(b"AUTH", *user, self._settings.password.encode()))

    def _authenticate(self) -> None:
        event = self.reader.next_event()
        if event is None and self.receive(self.reader.writable()) is not None:
            event = self.reader.next_event()
        match event:
            case None:
                return
            case Status("OK"):
                self._stage = _Stage.READY
                self._watch(selectors.EVENT_READ)
            case ErrorReply(message):
                raise not_let_in(message, self.address)
            case _:
                raise NetworkError(f"{self.address} answered AUTH with {event}")

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._watch(selectors.EVENT_READ | selectors.EVENT_WRITE)
            return
        except OSError as error:
            raise self._lost(error) from error
        self._watch(selectors.EVENT_READ)

    def _watch(self, interest: int) -> None:
        if interest == self._interest:
            return
        if not self._interest:
            self._selector.register(self._socket, interest, self._owner)
        elif not interest:
            self._selector.unregister(self._socket)
        else:
            self._selector.modify(self._socket, interest, self._owner)
        self._interest = interest

    def _lost(self, error: OSError) -> ShadowServeError:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return tls_refused(error, self.address)
        return NetworkError(f"{self.address}: {error.strerror or error}{self._hint()}")

    def _hint(self) -> str:
        return "" if self._heard else f" {tls_hint(self._settings.tls is not None)}"


def _read_records(stream: ssl.SSLSocket, space: memoryview) -> int:
    """Return how many bytes came into `space`, from as many records as there are and fit. Raises as `recv_into`."""
    count = 0
    while count < len(space):
        try:
            got = stream.recv_into(space[count:])
        except OSError:
            if count:
                return count  # whatever it is, it will be there next time
            raise
        if not got:
            return count
        count += got
    return count

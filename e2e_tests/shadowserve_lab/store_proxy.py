"""A TCP proxy in front of the store: a gate that holds requests back, a cut in the middle of a reply, a slow link."""

import socket
import threading
import time
from contextlib import suppress

_PIECE = 64 * 1024
_BURST_SECONDS = 0.03
_GATE_SECONDS = 60.0


class StoreProxy:
    """Forwards to `127.0.0.1:port`. Open and fast at first; what is set holds for every connection at once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._gate = threading.Event()
        self._gate.set()
        self._held = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._cut_after: int | None = None
        self._bits_per_second = 0.0
        self._credit_at = time.monotonic()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def hold(self) -> None:
        """Keep requests back until `release`: the store accepts and does not answer."""
        self._held.clear()
        self._gate.clear()

    def wait_held(self, seconds: float) -> None:
        """Return once a request is being kept back; raises `TimeoutError`."""
        if not self._held.wait(seconds):
            raise TimeoutError(f"no request reached the store within {seconds:g} s")

    def release(self) -> None:
        """Let requests through."""
        self._gate.set()

    def cut_after(self, reply_bytes: int) -> None:
        """Break every connection after that many more bytes of replies, once."""
        with self._lock:
            self._cut_after = reply_bytes

    def limit(self, bits_per_second: float) -> None:
        """Slow replies down to this rate; 0 = as fast as it goes."""
        with self._lock:
            self._bits_per_second = bits_per_second
            self._credit_at = time.monotonic()

    def close(self) -> None:
        """Stop, and break what is connected."""
        self._gate.set()
        self._listener.close()
        self._break_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            for source, sink, pace in ((client, server, self._pass_request), (server, client, self._pass_reply)):
                source.settimeout(None)
                threading.Thread(target=self._copy, args=(source, sink, pace), daemon=True).start()

    def _copy(self, source, sink, pace) -> None:  # type: ignore[no-untyped-def]  # two sockets and a bound method
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                pace(piece)
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._sockets -= {source, sink}

    def _pass_request(self, piece: bytes) -> None:
        if not self._gate.is_set():
            self._held.set()
            self._gate.wait(_GATE_SECONDS)

    def _pass_reply(self, piece: bytes) -> None:
        with self._lock:
            if self._cut_after is not None:
                self._cut_after -= len(piece)
                cut = self._cut_after < 0
                self._cut_after = None if cut else self._cut_after
            else:
                cut = False
            wait = self._delay(len(piece))
        if cut:
            self._break_all()
            raise OSError("cut")
        if wait > 0:
            time.sleep(wait)

    def _delay(self, size: int) -> float:
        """Take `size` bytes from the token bucket; return how long to wait for them."""
        if not self._bits_per_second:
            return 0.0
        now = time.monotonic()
        self._credit_at = max(self._credit_at, now - _BURST_SECONDS) + 8 * size / self._bits_per_second
        return self._credit_at - now

    def _break_all(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for end in sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

"""A link of a given rate, as a process of its own: `link.py TARGET_PORT`, then bits per second on stdin, a line each.

A token bucket for all connections together. Replies are moved by splice(2), so that a fast link costs little of the
processor time that the measured process needs too.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_PIECE = 64 * 1024
_BURST_SECONDS = 0.004
"""Makes up for late wake-ups, no more: a real link that rested is no faster afterwards."""
_SECONDS = 10.0


class ShapedLink:
    """The process; use as a context manager. `port` is where to connect to instead of the target."""

    def __init__(self, target_port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(target_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def limit(self, bits_per_second: float) -> None:
        """Set the rate, and empty the bucket; returns when it holds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{bits_per_second}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def __enter__(self) -> "ShapedLink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait(_SECONDS)


class TokenBucket:
    """When bytes may pass, at `bits_per_second`; 0 is no limit. Times are seconds of one monotonic clock."""

    def __init__(self, bits_per_second: float, now: float) -> None:
        self._bytes_per_second = bits_per_second / 8
        self._passed_at = now

    def wait(self, size: int, now: float) -> float:
        """Return for how many seconds `size` bytes have to wait, zero or less if they need not."""
        if not self._bytes_per_second:
            return 0.0
        self._passed_at = max(self._passed_at, now - _BURST_SECONDS) + size / self._bytes_per_second
        return self._passed_at - now


class _Pace:
    """One bucket for the threads of all connections, exchanged with every new rate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bucket = TokenBucket(0.0, 0.0)

    def limit(self, bits_per_second: float) -> None:
        with self._lock:
            self._bucket = TokenBucket(bits_per_second, time.monotonic())

    def pass_on(self, size: int) -> None:
        """Return when `size` bytes may have passed."""
        with self._lock:
            wait = self._bucket.wait(size, time.monotonic())
        if wait > 0:
            time.sleep(wait)


def _forward(source: socket.socket, sink: socket.socket, pace: _Pace | None) -> None:
    reading, writing = os.pipe()
    with suppress(OSError):
        while moved := os.splice(source.fileno(), writing, _PIECE):
            if pace is not None:
                pace.pass_on(moved)
            while moved:
                moved -= os.splice(reading, sink.fileno(), moved)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    os.close(reading)
    os.close(writing)


def _serve(target_port: int) -> None:
    pace, listener = _Pace(), socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_obey, args=(pace,), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", target_port), _SECONDS)
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink, paced in ((client, server, None), (server, client, pace)):
            threading.Thread(target=_forward, args=(source, sink, paced), daemon=True).start()


def _obey(pace: _Pace) -> None:
    for line in sys.stdin:
        pace.limit(float(line))
        print("set", flush=True)
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

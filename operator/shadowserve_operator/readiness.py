"""What an operator tells over HTTP: its metrics, and at `/readyz` whether it could act.

A standby is as ready as the leader is: what counts is that the Lease was read a moment ago. One that reaches no API
server, or whose loop stands still, then takes no other's place in a rolling update.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from shadowserve_operator.leader import DURATION

PATH = "/readyz"
_STOP_SECONDS = 1.0


class Readiness:
    """Whether an operator could act."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._looked: datetime | None = None

    def looked(self) -> None:
        """The Lease was read."""
        self._looked = self._clock()

    def why_not(self) -> str:
        """Return why this operator is not ready; "" when it is."""
        if self._looked is None:
            return "the Lease was not read yet: see the log"
        age = self._clock() - self._looked
        if age > 2 * DURATION:
            return f"the Lease was last read {age.total_seconds():.0f} s ago: see the log"
        return ""


@contextmanager
def told_over_http(port: int, registry: CollectorRegistry, readiness: Readiness) -> Iterator[int]:
    """Serve on that port, 0 = any free one, and yield it. Raises `OSError`."""
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environment["PATH_INFO"] != PATH:
            return metrics(environment, start)
        why_not = readiness.why_not()
        start("503 Service Unavailable" if why_not else "200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [(why_not or "ok").encode()]

    server = make_server("0.0.0.0", port, answer, ThreadingWSGIServer, _Quiet)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_STOP_SECONDS)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a scrape is no news."""

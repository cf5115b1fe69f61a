"""The HTTP port that Prometheus scrapes, with one more answer: `/round-trip` tells what the last canary said."""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from shadowserve_dataplane.fetch.verdicts import Verdict

PATH = "/round-trip"
_LONGEST_CHANGE = 64
_STOP_SECONDS = 1.0
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextmanager
def told_over_http(
    host: str, port: int, registry: CollectorRegistry, after: Callable[[str], Verdict] | None
) -> Iterator[int]:
    """Serve on that port, 0 = any free one, and yield it; without `after` only metrics. Raises `OSError`."""
    server = make_server(host, port, _app(registry, after), _Server6 if ":" in host else ThreadingWSGIServer, _Quiet)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_STOP_SECONDS)


def _app(registry: CollectorRegistry, after: Callable[[str], Verdict] | None) -> WsgiApp:
    metrics: WsgiApp = make_wsgi_app(registry)

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environment["PATH_INFO"] != PATH or after is None:
            return metrics(environment, start)
        change = parse_qs(environment.get("QUERY_STRING", "")).get("change", [""])[0]
        body = json.dumps(after(change[:_LONGEST_CHANGE]).document()).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


class _Server6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a scrape is no news."""

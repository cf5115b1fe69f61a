"""The HTTP port that Prometheus scrapes, with more answers beside the metrics: small documents for the operator.

`/round-trip` tells what the last canary said; sidecars also tell whether their engine has attached.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

ROUND_TRIP = "/round-trip"
_LONGEST_CHANGE = 64
_STOP_SECONDS = 1.0
Answer = Callable[[str], dict[str, object]]
"""Answers a question about the state after a change, which the asker names."""
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextmanager
def told_over_http(host: str, port: int, registry: CollectorRegistry, answers: Mapping[str, Answer]) -> Iterator[int]:
    """Serve on that port, 0 = any free one, and yield it; `answers` are by path. Raises `OSError`."""
    server = make_server(host, port, _app(registry, answers), _Server6 if ":" in host else ThreadingWSGIServer, _Quiet)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_STOP_SECONDS)


def _app(registry: CollectorRegistry, answers: Mapping[str, Answer]) -> WsgiApp:
    metrics: WsgiApp = make_wsgi_app(registry)

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        asked = answers.get(environment["PATH_INFO"])
        if asked is None:
            return metrics(environment, start)
        change = parse_qs(environment.get("QUERY_STRING", "")).get("change", [""])[0]
        body = json.dumps(asked(change[:_LONGEST_CHANGE])).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


class _Server6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a scrape is no news."""

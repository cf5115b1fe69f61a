"""A metrics API with one number in it, as autoscalers ask it: Kubernetes' aggregation layer finds it by `objects`."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shadowserve_testbed.pki import Authority

_GROUP, _VERSION = "external.metrics.k8s.io", "v1beta1"
_ROOT = f"/apis/{_GROUP}/{_VERSION}"
_NAME = "metrics"
_STOP_SECONDS = 60.0
METRIC = "waiting-requests"


@dataclass(slots=True)
class MetricsApi:
    """Serves `value`, whatever it is at the moment."""

    port: int
    value: int = 0

    def objects(self) -> list[dict[str, Any]]:
        """Return what tells the API server where it is."""
        about = {"name": _NAME, "namespace": "default"}
        service = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": self.port}]}
        spec = {
            "group": _GROUP,
            "version": _VERSION,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {**about, "port": self.port},
        }
        registration = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "spec": spec}
        return [
            {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": service},
            {**registration, "metadata": {"name": f"{_VERSION}.{_GROUP}"}},
        ]

    def answer(self, path: str) -> dict[str, Any] | None:
        """Return what is at a path, None if nothing is."""
        if path == _ROOT:
            resource = {"name": METRIC, "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList"}
            resources = [{**resource, "verbs": ["get"]}]
            about = {"kind": "APIResourceList", "apiVersion": "v1"}
            return {**about, "groupVersion": f"{_GROUP}/{_VERSION}", "resources": resources}
        if path == f"{_ROOT}/namespaces/default/{METRIC}":
            when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            item = {"metricName": METRIC, "metricLabels": {}, "timestamp": when, "value": str(self.value)}
            about = {"kind": "ExternalMetricValueList", "apiVersion": f"{_GROUP}/{_VERSION}", "metadata": {}}
            return {**about, "items": [item]}
        return None


@contextmanager
def metrics_api(folder: Path) -> Iterator[MetricsApi]:
    """Serve the metrics API on a thread of its own."""
    identity = Authority(folder, "metrics", datetime.now(UTC)).issue("metrics-api", hosts=("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    found: list[MetricsApi] = []

    class Handler(BaseHTTPRequestHandler):
        timeout = 30.0

        def do_GET(self) -> None:
            document = found[0].answer(urlsplit(self.path).path)
            body = json.dumps(document or {}).encode()
            self.send_response(200 if document else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.append(MetricsApi(server.server_port))
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, name="metrics API", daemon=True)
        thread.start()
        try:
            yield found[0]
        finally:
            server.shutdown()
            thread.join(_STOP_SECONDS)

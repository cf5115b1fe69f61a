"""The data plane as a process: starts the parts, serves until told to stop, and drains."""

import asyncio
import logging
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from shadowserve_dataplane import __version__
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.ending import stop_event
from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.fetch.canary import Canary, CanaryLanding
from shadowserve_dataplane.fetch.generated.dataplane_pb2_grpc import add_DataPlaneServicer_to_server
from shadowserve_dataplane.fetch.pipeline import Pipeline, PipelineSettings
from shadowserve_dataplane.fetch.telling import ROUND_TRIP, told_over_http
from shadowserve_dataplane.fetch.verdicts import Verdict, Verdicts
from shadowserve_dataplane.place.frames import TOKEN_BYTES
from shadowserve_dataplane.place.receiver import TcpPlacementReceiver
from shadowserve_dataplane.place.tcp import TcpTarget
from shadowserve_dataplane.service.metrics import DataPlaneMetrics
from shadowserve_dataplane.service.requests import Bounds
from shadowserve_dataplane.service.server import DataPlaneService
from shadowserve_dataplane.service.settings import DataPlaneSettings, TlsFiles
from shadowserve_dataplane.service.tls import placement_context, receiver_context, server_credentials
from shadowserve_dataplane.store.discovery import topology_source

SERVICE = "shadowserve.dataplane.v1.DataPlane"
_STOP_SECONDS = 1.0
"""How long calls may still take to end once their jobs have ended."""
_SERVER_OPTIONS = (
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 20),
)
_log = logging.getLogger(__name__)


async def serve(settings: DataPlaneSettings, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises `SettingsError` when a port cannot be had."""
    stop = stop_event()
    registry = CollectorRegistry()
    metrics = DataPlaneMetrics(registry)
    with (
        _pipeline(settings, metrics) as pipeline,
        _verdicts(settings, pipeline, metrics) as verdicts,
        _told(settings, registry, verdicts.after) as metrics_port,
    ):
        metrics.store_connections.set_function(lambda: pipeline.store_connections)
        async with _grpc_served(settings, pipeline) as (port, status):
            if settings.port_file is not None:
                _write_whole(settings.port_file, f"{port}\n{metrics_port}\n")
            say(f"shadowserve-dataplane {__version__}: listening on {settings.host}:{port}, metrics on {metrics_port}")
            await stop.wait()
            say(f"shadowserve-dataplane: draining, at most {settings.drain_seconds:g} s")
            await status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            await status.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
            await asyncio.to_thread(pipeline.close, Deadline.after(settings.drain_seconds))
    say("shadowserve-dataplane: stopped")


@contextmanager
def _pipeline(settings: DataPlaneSettings, metrics: DataPlaneMetrics) -> Iterator[Pipeline]:
    bounds = PipelineSettings(settings.workers, settings.max_chunk_bytes, settings.shards)
    pipeline = Pipeline(bounds, settings.store, topology_source(settings.store), metrics)
    try:
        yield pipeline
    finally:
        pipeline.close(Deadline.after(0))


@asynccontextmanager
async def _grpc_served(settings: DataPlaneSettings, pipeline: Pipeline) -> AsyncIterator[tuple[int, Any]]:
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    tls = None if settings.tls is None else placement_context(settings.tls)
    service = DataPlaneService(pipeline, Bounds(settings.max_chunk_bytes), tls)
    add_DataPlaneServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    status = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    address = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
    try:
        if settings.tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, server_credentials(settings.tls))
    except RuntimeError as error:
        raise SettingsError(f"--port: cannot listen on {address}: {error}") from error
    await server.start()
    for name in ("", SERVICE):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield port, status
    finally:
        await server.stop(_STOP_SECONDS)


@contextmanager
def _verdicts(settings: DataPlaneSettings, pipeline: Pipeline, metrics: DataPlaneMetrics) -> Iterator[Verdicts]:
    """Yield what makes canaries: they are placed over the network, like an engine's chunks, into this very process."""
    landing, token = CanaryLanding(), secrets.token_bytes(TOKEN_BYTES)
    sending, receiving = (None, None) if settings.tls is None else _contexts(settings.tls)
    receiver = TcpPlacementReceiver(landing.buffer, ("127.0.0.1", 0), token, landing.came, receiving)
    try:
        target = TcpTarget("127.0.0.1", receiver.port, token, sending)
        canary = Canary(pipeline, settings.store, socket.gethostname(), landing, target)
        with Verdicts(canary.round_trip, metrics.round_trip) as verdicts:
            yield verdicts
    finally:
        receiver.close()


def _contexts(files: TlsFiles) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return placement_context(files), receiver_context(files)


@contextmanager
def _told(settings: DataPlaneSettings, registry: CollectorRegistry, after: Callable[[str], Verdict]) -> Iterator[int]:
    with ExitStack() as stack:
        try:
            answers = {ROUND_TRIP: lambda change: after(change).document()}
            port = stack.enter_context(told_over_http(settings.host, settings.metrics_port, registry, answers))
        except OSError as error:
            raise SettingsError(f"--metrics-port: cannot listen on port {settings.metrics_port}: {error}") from error
        yield port


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is seen whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.rename(path)

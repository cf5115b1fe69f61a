"""The data-plane process as its users meet it: gRPC, health, metrics, signals, and what it says about mistakes."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pipeline_bench import SECONDS, SHAPE, PipelineBench, make_stored, put
from real_store import RedisServer, wait_until

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.errors import ChunkOutcome, NetworkError, PeerProtocolError
from shadowserve_dataplane.fetch.generated import dataplane_pb2 as wire
from shadowserve_dataplane.fetch.generated.dataplane_pb2_grpc import DataPlaneStub
from shadowserve_dataplane.fetch.plan import FetchJob
from shadowserve_dataplane.fetch.remote import PROTOCOL, PlacementAddress, RemoteDataPlane
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.receiver import TcpPlacementReceiver

PACKAGE = Path(__file__).parents[1]
TOKEN = bytes(range(32))


def command(*arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "shadowserve_dataplane.service", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass
class Process:
    """A running data plane."""

    popen: "subprocess.Popen[str]"
    endpoint: str
    metrics_url: str

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(self.metrics_url, timeout=SECONDS) as reply:
            lines = [line for line in reply.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.fixture
def process(redis_standalone: RedisServer, tmp_path: Path) -> Iterator[Process]:
    with running(redis_standalone.url, tmp_path) as process:
        yield process


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A data plane for what is refused before any store is asked."""
    with running("redis://127.0.0.1:1", tmp_path_factory.mktemp("standing")) as process:
        yield process


@contextmanager
def running(store: str, folder: Path) -> Iterator[Process]:
    ports = folder / "ports"
    places = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--port-file", str(ports)]
    popen = command("serve", "--store", store, *places, "--drain-seconds", "60")
    try:
        wait_until(lambda: ports.exists() or popen.poll() is not None, "the data plane to listen", SECONDS)
        assert popen.poll() is None, popen.communicate()[0]
        port, metrics_port = ports.read_text().split()
        yield Process(popen, f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics")
    finally:
        popen.kill()
        popen.communicate()


class Sidecar:
    """A landing buffer with a receiver, as a sidecar has it."""

    def __init__(self) -> None:
        slot = LandedLayout.max_bytes(SHAPE)
        self.landing = LandingBuffer(8 * (slot + 4096))
        self.landing.carve(slot)
        self.finished: list[SlotRef] = []
        self.receiver = TcpPlacementReceiver(self.landing, ("127.0.0.1", 0), TOKEN, self.finished.append)
        self.address = PlacementAddress("", self.receiver.port, TOKEN)


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    sidecar = Sidecar()
    yield sidecar
    sidecar.receiver.close()


async def attached(process: Process, sidecar: Sidecar) -> RemoteDataPlane:
    remote = RemoteDataPlane(process.endpoint)
    await remote.attach("test", sidecar.address)
    return remote


async def fetched(remote: RemoteDataPlane, job: FetchJob) -> dict[int, ChunkResult]:
    return {result.index: result async for result in remote.fetch(job)}


def job_for(sidecar: Sidecar, redis: RedisServer, keys: list[ChunkKey], seconds: float = SECONDS) -> FetchJob:
    bench = PipelineBench(redis.settings())
    bench.landing = sidecar.landing
    return bench.job(keys, seconds=seconds)


async def test_chunks_are_restored_into_the_sidecars_buffer(
    process: Process, sidecar: Sidecar, redis_standalone: RedisServer
) -> None:
    chunks = make_stored(4)
    put(redis_standalone, chunks)
    remote = await attached(process, sidecar)
    job = job_for(sidecar, redis_standalone, [*(chunk.key for chunk in chunks), ChunkKey(b"?" * 32)])
    results = await fetched(remote, job)
    assert [results[i].outcome for i in range(4)] == [ChunkOutcome.LANDED] * 4
    assert results[4].outcome is ChunkOutcome.MISSING
    await asyncio.to_thread(wait_until, lambda: len(sidecar.finished) == 4, "all placements to end", SECONDS)
    bench = PipelineBench(redis_standalone.settings())
    bench.landing = sidecar.landing
    assert all(np.array_equal(bench.landed(job, i), chunk.values) for i, chunk in enumerate(chunks))
    metrics = process.metrics()
    assert metrics['shadowserve_chunks_total{result="landed"}'] == 4
    assert metrics['shadowserve_chunks_total{result="missing"}'] == 1
    assert metrics["shadowserve_in_flight_chunks"] == 0
    assert metrics["shadowserve_store_connections"] > 0
    for stage in ("receive", "decompress", "dequantize", "place"):
        assert f'shadowserve_stage_seconds_count{{stage="{stage}"}}' in metrics
    assert len(metrics) < 20
    await remote.close()


async def test_cancel_ends_a_fetch(process: Process, sidecar: Sidecar, redis_standalone: RedisServer) -> None:
    remote = await attached(process, sidecar)
    redis_standalone.pause()
    job = job_for(sidecar, redis_standalone, [ChunkKey(bytes([n]) * 32) for n in range(3)])
    fetching = asyncio.ensure_future(fetched(remote, job))
    await asyncio.to_thread(
        wait_until, lambda: process.metrics()["shadowserve_in_flight_chunks"] == 3, "the fetch to begin", SECONDS
    )
    await remote.cancel(job.job)
    results = await fetching
    assert {result.outcome for result in results.values()} == {ChunkOutcome.CANCELLED}
    await remote.cancel(12345)
    await remote.close()
    redis_standalone.resume()


async def test_a_caller_that_hangs_up_cancels_its_fetch(
    process: Process, sidecar: Sidecar, redis_standalone: RedisServer
) -> None:
    remote = await attached(process, sidecar)
    redis_standalone.pause()
    fetching = asyncio.ensure_future(fetched(remote, job_for(sidecar, redis_standalone, [ChunkKey(bytes(32))])))
    in_flight = "shadowserve_in_flight_chunks"
    await asyncio.to_thread(wait_until, lambda: process.metrics()[in_flight] == 1, "the fetch to begin", SECONDS)
    fetching.cancel()
    await asyncio.to_thread(wait_until, lambda: process.metrics()[in_flight] == 0, "the fetch to end", SECONDS)
    await remote.close()
    redis_standalone.resume()


async def test_a_job_under_way_is_not_taken_twice(
    process: Process, sidecar: Sidecar, redis_standalone: RedisServer
) -> None:
    remote = await attached(process, sidecar)
    redis_standalone.pause()
    job = job_for(sidecar, redis_standalone, [ChunkKey(bytes(32))])
    first = asyncio.ensure_future(fetched(remote, job))
    in_flight = "shadowserve_in_flight_chunks"
    await asyncio.to_thread(wait_until, lambda: process.metrics()[in_flight] == 1, "the fetch to begin", SECONDS)
    with pytest.raises(NetworkError, match=f"job {job.job} is under way"):
        await fetched(remote, job)
    redis_standalone.resume()
    assert (await first)[0].outcome is ChunkOutcome.MISSING
    await remote.close()


async def test_an_unknown_attachment_is_told_to_attach(
    process: Process, sidecar: Sidecar, redis_standalone: RedisServer
) -> None:
    remote = RemoteDataPlane(process.endpoint)
    with pytest.raises(NetworkError, match="attach again"):
        await fetched(remote, job_for(sidecar, redis_standalone, [ChunkKey(bytes(32))]))
    await remote.close()


async def test_another_protocol_version_is_refused_in_words(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowserve_dataplane.fetch.remote.PROTOCOL", 99)
    remote = RemoteDataPlane(process.endpoint)
    with pytest.raises(PeerProtocolError, match=f"speaks protocol {PROTOCOL}, the sidecar 99; use matching versions"):
        await remote.attach("test", PlacementAddress("", 1, TOKEN))
    await remote.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"landing": "Pages"}, "landing: 'Pages', not Codes or Values"),
        ({"shape": wire.Shape(layers=0, kv_heads=1, head_dim=1, tokens=1, dtype="bfloat16")}, "shape.layers: 0"),
        ({"shape": wire.Shape(layers=1, kv_heads=1, head_dim=1, tokens=1, dtype="int4")}, "shape.dtype: 'int4'"),
        ({"shape": wire.Shape(layers=999, kv_heads=99, head_dim=99, tokens=99, dtype="float32")}, "--max-chunk-bytes"),
        ({"chunks": [wire.Chunk(index=0, key=b"short")]}, "a key that is not 32 bytes long"),
        ({"chunks": [wire.Chunk(index=1, key=bytes(32))] * 2}, "an index comes twice"),
        ({"chunks": [wire.Chunk(index=i, key=bytes(32), slot=3) for i in range(2)]}, "a slot comes twice"),
        ({"deadline_ms": 4_000_000_000}, "deadline_ms: 4000000000"),
    ],
)
def test_a_bad_request_is_refused_in_words(standing: Process, change: dict[str, object], words: str) -> None:
    with grpc.insecure_channel(standing.endpoint) as channel:
        stub = DataPlaneStub(channel)
        placement = wire.TcpPlacement(port=1, token=TOKEN)
        attachment = stub.Attach(wire.AttachRequest(protocol=PROTOCOL, tcp=placement), timeout=SECONDS).attachment
        good = {
            "attachment": attachment,
            "deadline_ms": 100,
            "landing": "Codes",
            "shape": wire.Shape(layers=1, kv_heads=1, head_dim=8, tokens=16, dtype="bfloat16"),
        }
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Fetch(wire.FetchRequest(**{**good, **change}), timeout=SECONDS))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in caught.value.details()


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({}, "knows only tcp"),
        ({"tcp": wire.TcpPlacement(port=1, token=b"x")}, "tcp.token: 1 bytes"),
        ({"tcp": wire.TcpPlacement(port=99_999, token=TOKEN)}, "tcp.port: 99999"),
    ],
)
def test_a_bad_attach_is_refused_in_words(standing: Process, placement: dict[str, object], words: str) -> None:
    with grpc.insecure_channel(standing.endpoint) as channel, pytest.raises(grpc.RpcError) as caught:
        DataPlaneStub(channel).Attach(wire.AttachRequest(protocol=PROTOCOL, **placement), timeout=SECONDS)
    assert words in caught.value.details()


def test_health_and_sigterm(process: Process) -> None:
    with grpc.insecure_channel(process.endpoint) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        name = "shadowserve.dataplane.v1.DataPlane"
        for service in ("", name):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
    process.popen.send_signal(signal.SIGTERM)
    output, _ = process.popen.communicate(timeout=SECONDS)
    assert process.popen.returncode == 0
    assert "draining" in output
    assert "stopped" in output


async def test_sigterm_lets_a_fetch_end_first(
    process: Process, sidecar: Sidecar, redis_standalone: RedisServer
) -> None:
    chunks = make_stored(2)
    put(redis_standalone, chunks)
    remote = await attached(process, sidecar)
    redis_standalone.pause()
    fetching = asyncio.ensure_future(
        fetched(remote, job_for(sidecar, redis_standalone, [chunk.key for chunk in chunks]))
    )
    in_flight = "shadowserve_in_flight_chunks"
    await asyncio.to_thread(wait_until, lambda: process.metrics()[in_flight] == 2, "the fetch to begin", SECONDS)
    process.popen.send_signal(signal.SIGTERM)
    redis_standalone.resume()
    results = await fetching
    assert {result.outcome for result in results.values()} == {ChunkOutcome.LANDED}
    assert await asyncio.to_thread(process.popen.wait, SECONDS) == 0
    await remote.close()


async def test_the_end_of_a_data_plane_is_noticed(process: Process, sidecar: Sidecar) -> None:
    remote = await attached(process, sidecar)
    watching = asyncio.ensure_future(remote.lost())
    threading.Thread(target=process.popen.kill).start()
    await asyncio.wait_for(watching, SECONDS)
    await remote.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--store", "mysql://x"], "mysql"),
        (["serve", "--store", "redis://127.0.0.1:1", "--tls-key", "/nowhere"], "--tls-certificate, --tls-key and"),
        (["serve"], "--store"),
        (["serve", "--store", "redis://127.0.0.1:1", "--workers", "0"], "--workers"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_option(arguments: list[str], words: str) -> None:
    output, _ = (process := command(*arguments)).communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert words in output


def test_help_explains_every_option() -> None:
    output, _ = (process := command("serve", "--help")).communicate(timeout=SECONDS)
    assert process.returncode == 0
    for option in ("store", "port", "metrics-port", "workers", "max-chunk-bytes", "drain-seconds", "tls-key"):
        assert f"--{option}" in output

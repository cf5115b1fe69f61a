"""The data plane's way out, and the names that operators rely on: options and metrics."""

import asyncio
import inspect
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from real_store import RedisServer, wait_until
from sidecar_process import DataPlaneProcess

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ChunkOutcome, NetworkError
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.fetch.remote import PlacementAddress, RemoteDataPlane
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.landing import SlotRef
from shadowserve_dataplane.service.__main__ import serve

SHAPE = KvShape(layers=1, kv_heads=1, head_dim=16, tokens=16)
NAME = "shadowserve.dataplane.v1.DataPlane"
SECONDS = 60.0
_TOLD_TO_END_WHILE_IT_IMPORTS = """
import os, signal, sys
from importlib.machinery import PathFinder

_, fatal, program, *arguments = sys.argv

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == fatal:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().find_spec(name, path, target)

sys.meta_path.insert(0, Finder)
sys.argv = [program, *arguments]
__import__(program, fromlist=["main"]).main()
"""


@pytest.fixture
def plane(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[DataPlaneProcess]:
    with DataPlaneProcess(tmp_path / "plane", store=redis_standalone.url) as process:
        yield process


def job(number: int, chunks: int = 2) -> FetchJob:
    requests = tuple(ChunkRequest(n, ChunkKey(bytes([n]) * 32), SlotRef(n, n + 1)) for n in range(chunks))
    return FetchJob(number, SHAPE, LandingMode.CODES, requests, Deadline.after(SECONDS))


async def results_of(remote: RemoteDataPlane, wanted: FetchJob) -> list[ChunkResult]:
    return [result async for result in remote.fetch(wanted)]


def metrics_of(plane: DataPlaneProcess) -> dict[str, float]:
    port = re.findall(r"metrics on (\d+)", "".join(plane.log))[-1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as reply:
        lines = [line for line in reply.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def process_of(plane: DataPlaneProcess) -> "subprocess.Popen[str]":
    assert plane.process is not None
    return plane.process


def health_of(plane: DataPlaneProcess) -> set[int]:
    """Return what the process says of itself, as a whole and by its service's name."""
    with grpc.insecure_channel(plane.endpoint) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return {stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=SECONDS).status for name in ("", NAME)}


@pytest.fixture
def patient_plane(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[DataPlaneProcess]:
    with DataPlaneProcess(tmp_path / "plane", store=redis_standalone.url, drain_seconds=60) as process:
        yield process


async def test_draining_says_so_takes_nothing_new_and_ends_what_was_begun(
    patient_plane: DataPlaneProcess, redis_standalone: RedisServer
) -> None:
    plane = patient_plane
    remote = RemoteDataPlane(plane.endpoint)
    await remote.attach("test", PlacementAddress("127.0.0.1", 9, bytes(32)))
    assert await asyncio.to_thread(health_of, plane) == {health_pb2.HealthCheckResponse.SERVING}
    redis_standalone.pause()
    fetching = asyncio.ensure_future(results_of(remote, job(1)))
    in_flight = "shadowserve_in_flight_chunks"
    await asyncio.to_thread(wait_until, lambda: metrics_of(plane)[in_flight] == 2, "the fetch to begin", SECONDS)
    process_of(plane).send_signal(signal.SIGTERM)
    leaving = {health_pb2.HealthCheckResponse.NOT_SERVING}
    await asyncio.to_thread(wait_until, lambda: health_of(plane) == leaving, "it to say that it leaves", SECONDS)
    with pytest.raises(NetworkError, match="unavailable: the pipeline is closing"):
        await results_of(remote, job(2))
    redis_standalone.resume()
    assert [result.outcome for result in await fetching] == [ChunkOutcome.MISSING] * 2
    assert await asyncio.to_thread(process_of(plane).wait, SECONDS) == 0
    await remote.close()


async def test_what_cannot_end_in_time_is_cancelled_and_the_exit_is_clean(
    plane: DataPlaneProcess, redis_standalone: RedisServer
) -> None:
    remote = RemoteDataPlane(plane.endpoint)
    await remote.attach("test", PlacementAddress("127.0.0.1", 9, bytes(32)))
    redis_standalone.pause()
    fetching = asyncio.ensure_future(results_of(remote, job(1)))
    in_flight = "shadowserve_in_flight_chunks"
    await asyncio.to_thread(wait_until, lambda: metrics_of(plane)[in_flight] == 2, "the fetch to begin", SECONDS)
    process_of(plane).send_signal(signal.SIGTERM)
    assert [result.outcome for result in await fetching] == [ChunkOutcome.CANCELLED] * 2
    assert await asyncio.to_thread(process_of(plane).wait, SECONDS) == 0
    await remote.close()


def test_the_metrics_are_those_that_are_promised_and_few(plane: DataPlaneProcess) -> None:
    urllib.request.urlopen(f"{plane.metrics_url}/round-trip?change=now", timeout=SECONDS).close()
    found = metrics_of(plane)
    stages = ("receive", "decompress", "dequantize", "place")
    assert set(found) == {
        *(f'shadowserve_chunks_total{{result="{outcome}"}}' for outcome in ChunkOutcome),
        *(f'shadowserve_stage_seconds_{part}{{stage="{stage}"}}' for part in ("count", "sum") for stage in stages),
        "shadowserve_in_flight_chunks",
        "shadowserve_round_trip_verified",
        "shadowserve_store_connections",
    }
    assert len(found) < 20


def test_help_lists_every_option_there_is(tmp_path: Path, redis_standalone: RedisServer) -> None:
    process = Helping(tmp_path, store=redis_standalone.url).spawn()
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    for parameter in inspect.signature(serve).parameters:
        assert f"--{parameter.replace('_', '-')}"[:20] in plain


class Helping(DataPlaneProcess):
    """Asks for help only."""

    def command(self) -> list[str]:
        return ["shadowserve_dataplane.service", "serve", "--help"]


@pytest.mark.parametrize(
    ("imported", "arguments"),
    [
        ("shadowserve_dataplane.service.process", ["service.__main__", "serve", "--store", "redis://127.0.0.1:1"]),
        ("shadowserve_dataplane.sidecar.app", ["sidecar.__main__", "--config"]),
    ],
)
def test_a_process_that_is_told_to_end_while_it_starts_ends_at_once(
    tmp_path: Path, imported: str, arguments: list[str]
) -> None:
    """Not after a pod's grace period: a container's first process gets no signal that it does not handle."""
    if arguments[-1] == "--config":
        (tmp_path / "config.json").write_text(json.dumps({"store": {"endpoints": ["127.0.0.1:1"]}}))
        arguments = [*arguments, str(tmp_path / "config.json")]
    command = [sys.executable, "-c", _TOLD_TO_END_WHILE_IT_IMPORTS, imported, f"shadowserve_dataplane.{arguments[0]}"]
    done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")

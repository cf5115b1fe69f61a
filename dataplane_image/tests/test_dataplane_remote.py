"""The client of a data plane: that it notices when the data plane is gone, hangs, or is somebody else by now."""

import asyncio
import re
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
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
from shadowserve_lab.processes import free_port

SHAPE = KvShape(layers=1, kv_heads=1, head_dim=16, tokens=16)
NOWHERE = PlacementAddress("127.0.0.1", 9, bytes(32))
SECONDS = 60.0


@pytest.fixture
def plane(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[DataPlaneProcess]:
    with DataPlaneProcess(tmp_path / "plane", store=redis_standalone.url) as process:
        yield process
        process.resume()


@pytest.fixture
async def remote(plane: DataPlaneProcess) -> AsyncIterator[RemoteDataPlane]:
    """One that does not take a busy machine for a data plane that hangs."""
    async with attached(plane, keepalive=SECONDS) as made:
        yield made


@pytest.fixture
async def watchful(plane: DataPlaneProcess) -> AsyncIterator[RemoteDataPlane]:
    async with attached(plane, keepalive=1.0) as made:
        yield made


@asynccontextmanager
async def attached(plane: DataPlaneProcess, keepalive: float) -> AsyncIterator[RemoteDataPlane]:
    made = RemoteDataPlane(plane.endpoint, keepalive=keepalive)
    await made.attach("test", NOWHERE)
    try:
        yield made
    finally:
        await made.close()


def job(seconds: float = SECONDS, chunks: int = 1) -> FetchJob:
    requests = tuple(ChunkRequest(n, ChunkKey(bytes([n]) * 32), SlotRef(n, n + 1)) for n in range(chunks))
    return FetchJob(1, SHAPE, LandingMode.CODES, requests, Deadline.after(seconds))


async def results_of(remote: RemoteDataPlane, wanted: FetchJob) -> list[ChunkResult]:
    return [result async for result in remote.fetch(wanted)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_a_data_plane_that_dies_leaves_or_hangs_is_lost(
    plane: DataPlaneProcess, watchful: RemoteDataPlane, number: signal.Signals
) -> None:
    watching = asyncio.ensure_future(watchful.lost())
    assert not (await asyncio.wait([watching], timeout=0))[0], "it is there"
    assert plane.process is not None
    plane.process.send_signal(number)
    await asyncio.wait_for(watching, SECONDS)
    await asyncio.wait_for(watchful.lost(), SECONDS)  # whoever asks later hears it at once


async def test_a_data_plane_that_took_its_place_is_not_the_one_that_was_attached(
    plane: DataPlaneProcess, remote: RemoteDataPlane, redis_standalone: RedisServer
) -> None:
    watching = asyncio.ensure_future(remote.lost())
    plane.kill()
    plane.start()
    await asyncio.wait_for(watching, SECONDS)
    with pytest.raises(NetworkError):
        await results_of(remote, job())


async def test_the_way_to_a_data_plane_leads_through_no_proxy(
    plane: DataPlaneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and it does not listen
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        async with attached(plane, keepalive=SECONDS) as remote:
            assert remote.version


async def test_nobody_attached_is_nobody_there() -> None:
    remote = RemoteDataPlane(f"127.0.0.1:{free_port()}")
    await asyncio.wait_for(remote.lost(), SECONDS)
    with pytest.raises(NetworkError, match="unavailable"):
        await remote.attach("test", NOWHERE)
    with pytest.raises(NetworkError, match="unavailable"):
        await results_of(remote, job())
    with pytest.raises(NetworkError, match="unavailable"):
        await remote.cancel(1)
    await remote.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_fetch_ends_when_the_data_plane_does(
    plane: DataPlaneProcess, watchful: RemoteDataPlane, redis_standalone: RedisServer, number: signal.Signals
) -> None:
    redis_standalone.pause()
    fetching = asyncio.ensure_future(results_of(watchful, job()))
    await asyncio.to_thread(wait_until, lambda: in_flight(plane) == 1, "the fetch to begin", SECONDS)
    assert plane.process is not None
    plane.process.send_signal(number)
    with pytest.raises(NetworkError, match=plane.endpoint):
        await asyncio.wait_for(fetching, SECONDS)


async def test_closing_ends_the_watch_and_the_fetches(
    plane: DataPlaneProcess, remote: RemoteDataPlane, redis_standalone: RedisServer
) -> None:
    redis_standalone.pause()
    watching = asyncio.ensure_future(remote.lost())
    fetching = asyncio.ensure_future(results_of(remote, job()))
    await asyncio.to_thread(wait_until, lambda: in_flight(plane) == 1, "the fetch to begin", SECONDS)
    await remote.close()
    await asyncio.wait_for(watching, SECONDS)
    with pytest.raises(NetworkError, match=r"hung up|closed"):
        await asyncio.wait_for(fetching, SECONDS)
    await asyncio.to_thread(wait_until, lambda: in_flight(plane) == 0, "the data plane to cancel it", SECONDS)


async def test_a_caller_that_has_heard_enough_cancels_the_rest(
    plane: DataPlaneProcess, remote: RemoteDataPlane, redis_standalone: RedisServer
) -> None:
    redis_standalone.pause()
    results = remote.fetch(job(chunks=3))
    hearing = asyncio.ensure_future(anext(results))
    await asyncio.to_thread(wait_until, lambda: in_flight(plane) == 3, "the fetch to begin", SECONDS)
    await remote.cancel(1)
    assert (await hearing).outcome is ChunkOutcome.CANCELLED
    await results.aclose()
    await asyncio.to_thread(wait_until, lambda: in_flight(plane) == 0, "the data plane to end it", SECONDS)


async def test_a_cancelled_task_is_cancelled_not_an_error(
    plane: DataPlaneProcess, remote: RemoteDataPlane, redis_standalone: RedisServer
) -> None:
    redis_standalone.pause()
    fetching = asyncio.ensure_future(results_of(remote, job()))
    await asyncio.to_thread(wait_until, lambda: in_flight(plane) == 1, "the fetch to begin", SECONDS)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching


async def test_a_deadline_that_passed_is_told_for_every_chunk(
    remote: RemoteDataPlane, redis_standalone: RedisServer
) -> None:
    redis_standalone.pause()
    for seconds in (0, 0.2):
        results = await results_of(remote, job(seconds, chunks=3))
        assert [result.outcome for result in results] == [ChunkOutcome.DEADLINE] * 3


def in_flight(plane: DataPlaneProcess) -> float:
    """Return how many chunks the data plane says it is at."""
    port = re.findall(r"metrics on (\d+)", "".join(plane.log))[-1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as reply:
        found = re.search(r"^shadowserve_in_flight_chunks (\S+)$", reply.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])

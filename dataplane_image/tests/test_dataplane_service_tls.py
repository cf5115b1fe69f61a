"""The data plane with mutual TLS: who is let in, what it places with, and certificates that change."""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from pipeline_bench import SECONDS, SHAPE, PipelineBench, make_stored, put
from placements import TOKEN
from real_store import Certificate, RedisServer, wait_until
from sidecar_process import SecureDataPlane

from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.errors import ChunkOutcome, NetworkError
from shadowserve_dataplane.fetch.remote import PlacementAddress, RemoteDataPlane
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.receiver import TcpPlacementReceiver


@pytest.fixture
def files(certificate: Certificate, tmp_path: Path) -> Certificate:
    """A copy that a test may change."""
    copies = [tmp_path / path.name for path in (certificate.authority, certificate.certificate, certificate.key)]
    for copy, original in zip(copies, (certificate.authority, certificate.certificate, certificate.key), strict=True):
        copy.write_bytes(original.read_bytes())
    return Certificate(*copies)


@pytest.fixture
def plane(tmp_path: Path, redis_standalone: RedisServer, files: Certificate) -> Iterator[SecureDataPlane]:
    with SecureDataPlane(tmp_path / "plane", store=redis_standalone.url, files=files) as process:
        yield process


def credentials(authority: Certificate, mine: Certificate | None) -> grpc.ChannelCredentials:
    """Return what a sidecar connects with: the authority it trusts, and its own certificate, if it has one."""
    root = authority.authority.read_bytes()
    if mine is None:
        return grpc.ssl_channel_credentials(root)
    return grpc.ssl_channel_credentials(root, mine.key.read_bytes(), mine.certificate.read_bytes())


@asynccontextmanager
async def connected(plane: SecureDataPlane, allowed: grpc.ChannelCredentials | None) -> AsyncIterator[RemoteDataPlane]:
    remote = RemoteDataPlane(plane.endpoint, allowed)
    try:
        yield remote
    finally:
        await remote.close()


@contextmanager
def receiving(landing: LandingBuffer, finished: list[SlotRef], mine: Certificate) -> Iterator[TcpPlacementReceiver]:
    """Yield a receiver that lets in only senders with a certificate of its own authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(mine.authority))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(mine.certificate, mine.key)
    receiver = TcpPlacementReceiver(landing, ("127.0.0.1", 0), TOKEN, finished.append, context)
    try:
        yield receiver
    finally:
        receiver.close()


async def check_that_chunks_travel(plane: SecureDataPlane, certificate: Certificate, store: RedisServer) -> None:
    chunks = make_stored(3)
    put(store, chunks)
    bench = PipelineBench(store.settings())
    bench.landing = LandingBuffer(4 * LandedLayout.max_bytes(SHAPE) + (1 << 16))
    bench.landing.carve(LandedLayout.max_bytes(SHAPE))
    finished: list[SlotRef] = []
    with receiving(bench.landing, finished, certificate) as receiver:
        async with connected(plane, credentials(certificate, certificate)) as remote:
            await remote.attach("test", PlacementAddress("127.0.0.1", receiver.port, TOKEN))
            job = bench.job([chunk.key for chunk in chunks])
            results = [result async for result in remote.fetch(job)]
        assert {(result.outcome, result.detail) for result in results} == {(ChunkOutcome.LANDED, "")}
        wait_until(lambda: len(finished) == 3, "all placements to end", SECONDS)
    assert all(np.array_equal(bench.landed(job, i), chunk.values) for i, chunk in enumerate(chunks))


async def test_chunks_travel_between_peers_of_one_authority(
    plane: SecureDataPlane, certificate: Certificate, redis_standalone: RedisServer
) -> None:
    await check_that_chunks_travel(plane, certificate, redis_standalone)


async def test_a_store_of_the_same_authority_is_trusted(
    certificate: Certificate, files: Certificate, tmp_path: Path
) -> None:
    with (
        RedisServer(tmp_path / "store", tls=certificate) as store,
        SecureDataPlane(tmp_path / "plane", store=store.url, files=files) as plane,
    ):
        await check_that_chunks_travel(plane, certificate, store)


async def test_a_store_of_another_authority_is_trusted_if_that_is_named(
    certificate: Certificate, files: Certificate, tmp_path: Path
) -> None:
    theirs = Certificate.make(tmp_path / "theirs")
    with (
        RedisServer(tmp_path / "store", tls=theirs) as store,
        SecureDataPlane(tmp_path / "plane", store=store.url, files=files, store_authority=theirs.authority) as plane,
    ):
        await check_that_chunks_travel(plane, certificate, store)


async def test_who_shows_no_certificate_or_a_strangers_is_not_let_in(
    plane: SecureDataPlane, certificate: Certificate, tmp_path: Path
) -> None:
    stranger = Certificate.make(tmp_path / "stranger")
    for allowed in (None, credentials(certificate, None), credentials(certificate, stranger)):
        async with connected(plane, allowed) as remote:
            with pytest.raises(NetworkError, match="unavailable"):
                await remote.attach("test", PlacementAddress("127.0.0.1", 9, TOKEN))
    async with connected(plane, credentials(certificate, certificate)) as remote:
        await remote.attach("test", PlacementAddress("127.0.0.1", 9, TOKEN))


async def test_a_data_plane_of_a_strange_authority_is_not_trusted(plane: SecureDataPlane, tmp_path: Path) -> None:
    stranger = Certificate.make(tmp_path / "stranger")
    async with connected(plane, credentials(stranger, stranger)) as remote:
        with pytest.raises(NetworkError, match="unavailable"):
            await remote.attach("test", PlacementAddress("127.0.0.1", 9, TOKEN))


async def test_certificates_that_were_renewed_count_without_a_restart(
    plane: SecureDataPlane, certificate: Certificate, files: Certificate, redis_standalone: RedisServer, tmp_path: Path
) -> None:
    renewed = Certificate.make(tmp_path / "renewed")
    for old, new in ((files.key, renewed.key), (files.certificate, renewed.certificate)):
        old.write_bytes(new.read_bytes())
    files.authority.write_bytes(renewed.authority.read_bytes())
    chunks = make_stored(2)
    put(redis_standalone, chunks)
    bench = PipelineBench(redis_standalone.settings())
    bench.landing = LandingBuffer(4 * LandedLayout.max_bytes(SHAPE) + (1 << 16))
    bench.landing.carve(LandedLayout.max_bytes(SHAPE))
    async with connected(plane, credentials(certificate, certificate)) as remote:
        with pytest.raises(NetworkError, match="unavailable"):
            await remote.attach("test", PlacementAddress("127.0.0.1", 9, TOKEN))
    with receiving(bench.landing, [], renewed) as receiver:
        async with connected(plane, credentials(renewed, renewed)) as remote:
            await remote.attach("test", PlacementAddress("127.0.0.1", receiver.port, TOKEN))
            results = [result async for result in remote.fetch(bench.job([chunk.key for chunk in chunks]))]
    assert {(result.outcome, result.detail) for result in results} == {(ChunkOutcome.LANDED, "")}


def test_files_that_hold_no_certificate_are_named(
    tmp_path: Path, redis_standalone: RedisServer, files: Certificate
) -> None:
    files.certificate.write_text("not a certificate")
    process = SecureDataPlane(tmp_path / "plane", store=redis_standalone.url, files=files).spawn()
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "--tls-certificate" in errors
    assert "Traceback" not in errors

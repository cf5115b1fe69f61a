"""The sidecar with the pipeline inside, as a connector sees it: real process, real store, real buffers."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from real_store import RedisServer, wait_until
from shadowserve_dataplane.chunks import KvDtype, KvShape, store_key
from shadowserve_dataplane.connector.landed_image import ValuesImage, parse_image
from shadowserve_dataplane.connector.messages import (
    PROTOCOL,
    Cancel,
    ChunkFailed,
    Fetch,
    Found,
    Landed,
    Lookup,
    Refused,
    Release,
    SessionUnknown,
    Store,
    Stored,
    pack,
)
from sidecar_chunks import SHAPE, Chunk, make_chunks, put_chunks
from sidecar_process import Client, SidecarProcess, config_for


@pytest.fixture
def sidecar(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path / "s", config_for(redis_standalone)) as process:
        yield process


@pytest.fixture
def worker(sidecar: SidecarProcess) -> Iterator[Client]:
    with Client(sidecar.socket, SHAPE) as client:
        client.say_hello()
        yield client


def fetch(client: Client, job: int, chunks: list[Chunk], deadline_ms: int = 10_000) -> None:
    client.send(Fetch(client.session, job, [chunk.key for chunk in chunks], deadline_ms))


def landed_values(client: Client, landed: Landed) -> bytes:
    assert client.landing is not None
    image = parse_image(client.landing.slot(landed.slot), client.shape)
    assert isinstance(image, ValuesImage)
    return image.values.tobytes()


def fetched(client: Client, job: int, chunks: list[Chunk]) -> dict[int, bytes]:
    """Fetch, and return the values of every chunk that landed; their slots are released."""
    fetch(client, job, chunks)
    values = {}
    for _ in chunks:
        answer = client.receive(Landed, ChunkFailed)
        if isinstance(answer, Landed):
            values[answer.index] = landed_values(client, answer)
            client.send(Release(client.session, job, [answer.slot]))
    return values


def look_up(client: Client, number: int, *ranks: list[Chunk]) -> int:
    client.send(Lookup(client.session, number, [[chunk.key for chunk in chunks] for chunks in ranks]))
    found = client.receive(Found)
    assert found.lookup == number
    return found.chunks


def test_chunks_that_one_engine_stored_are_found_and_fetched_by_another(
    tmp_path: Path, redis_standalone: RedisServer, sidecar: SidecarProcess, worker: Client
):
    chunks = make_chunks(3)
    assert worker.staging is not None
    for slot, chunk in enumerate(chunks):
        worker.staging.slot(slot)[: len(chunk.values)] = chunk.values
        worker.send(Store(worker.session, slot, chunk.key, slot == 0))
    assert {worker.receive(Stored).outcome for _ in chunks} == {"stored"}
    worker.send(Store(worker.session, 1, chunks[1].key, False))
    assert worker.receive(Stored) == Stored(1, "present")
    with (
        SidecarProcess(tmp_path / "other", config_for(redis_standalone)) as other,
        Client(other.socket, SHAPE) as reader,
    ):
        reader.say_hello()
        assert look_up(reader, 1, chunks) == 3
        assert fetched(reader, 1, chunks) == {index: chunk.values for index, chunk in enumerate(chunks)}
        assert other.metrics()['shadowserve_fetches_total{result="landed"}'] == 1
        assert other.metrics()['shadowserve_fetched_bytes_total{kind="values"}'] == 3 * SHAPE.values_bytes
    encoded = sum(int(redis_standalone.admin("STRLEN", store_key(chunk.key))) for chunk in chunks)
    assert sidecar.metrics()["shadowserve_stored_bytes_total"] == encoded

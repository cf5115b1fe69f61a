"""The sidecar with a data plane on "another machine": found by the endpoint file, lost, hung, replaced, found again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_store import RedisServer, wait_until
from sidecar_chunks import SHAPE, Chunk, make_chunks, put_chunks, values_of
from sidecar_client import Client
from sidecar_process import IMPATIENT, DataPlaneProcess, SidecarProcess, config_for

from shadowserve_dataplane.connector.messages import ChunkFailed, Landed

AT_CARD = 'shadowserve_placement_info{place="dpu"}'
AT_HOST = 'shadowserve_placement_info{place="host"}'


@pytest.fixture
def card(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[DataPlaneProcess]:
    with DataPlaneProcess(tmp_path / "card", store=redis_standalone.url) as process:
        yield process


@pytest.fixture
def sidecar(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path / "s", config=config_for(redis_standalone, limits=IMPATIENT)) as process:
        yield process


@pytest.fixture
def worker(sidecar: SidecarProcess) -> Iterator[Client]:
    with Client(sidecar.socket, SHAPE) as client:
        client.say_hello()
        yield client


@pytest.fixture
def chunks(redis_standalone: RedisServer) -> list[Chunk]:
    made = make_chunks(5)
    put_chunks(redis_standalone, made)
    return made


def test_a_data_plane_that_is_named_restores_and_its_end_is_noticed(
    sidecar: SidecarProcess, worker: Client, card: DataPlaneProcess, chunks: list[Chunk]
):
    assert worker.restore(1, chunks).values == values_of(chunks)
    assert sidecar.metrics()[AT_HOST] == 1
    sidecar.endpoint_file.write_text(f"{card.endpoint}\n")
    sidecar.wait_for_metric(AT_CARD)
    assert worker.restore(2, chunks).values == values_of(chunks)
    both_fetches = 2 * 5 * SHAPE.values_bytes
    sidecar.wait_for_metric('shadowserve_fetched_bytes_total{kind="values"}', lambda count: count == both_fetches)
    card.kill()
    sidecar.wait_for_metric(AT_HOST)
    assert worker.restore(3, chunks).values == values_of(chunks)
    card.start()
    sidecar.wait_for_metric(AT_CARD)
    assert worker.restore(4, chunks).values == values_of(chunks)
    sidecar.endpoint_file.unlink()
    sidecar.wait_for_metric(AT_HOST)
    assert sidecar.stop() == 0
    assert sidecar.files() == []


def test_chunks_that_are_missing_fail_alone_at_a_data_plane_too(
    sidecar: SidecarProcess, worker: Client, card: DataPlaneProcess, chunks: list[Chunk]
):
    sidecar.endpoint_file.write_text(card.endpoint)
    sidecar.wait_for_metric(AT_CARD)
    absent = make_chunks(2, seed=9)
    restored = worker.restore(1, [chunks[0], absent[0], chunks[1], absent[1]])
    assert restored.values == {0: chunks[0].values, 2: chunks[1].values}
    assert restored.failed == {1: "missing", 3: "missing"}


def test_a_data_plane_that_dies_during_a_fetch_fails_its_chunks_at_once(
    sidecar: SidecarProcess,
    worker: Client,
    card: DataPlaneProcess,
    chunks: list[Chunk],
    redis_standalone: RedisServer,
):
    sidecar.endpoint_file.write_text(card.endpoint)
    sidecar.wait_for_metric(AT_CARD)
    redis_standalone.pause()
    worker.fetch(1, chunks, deadline_ms=60_000)
    worker.look_up(2, chunks)
    card.kill()
    failed = [worker.receive(ChunkFailed) for _ in chunks]
    redis_standalone.resume()
    assert {failure.outcome for failure in failed} == {"place_error"}
    assert card.endpoint in failed[0].reason
    numbers = iter(range(100, 10_000))
    wait_until(lambda: worker.look_up(next(numbers), chunks) == len(chunks), "the store answers again")
    assert worker.restore(2, chunks).values == values_of(chunks)
    assert sidecar.metrics()[AT_HOST] == 1
    assert sidecar.metrics()['shadowserve_fetches_total{result="place_error"}'] == 1


def test_a_data_plane_that_hangs_costs_one_deadline_and_is_left_alone(
    sidecar: SidecarProcess, worker: Client, card: DataPlaneProcess, chunks: list[Chunk]
):
    sidecar.endpoint_file.write_text(card.endpoint)
    sidecar.wait_for_metric(AT_CARD)
    card.pause()
    worker.fetch(1, chunks, deadline_ms=300)
    assert {worker.receive(ChunkFailed).outcome for _ in chunks} == {"deadline"}
    assert worker.restore(2, chunks).values == values_of(chunks)
    assert sidecar.metrics()[AT_HOST] == 1
    card.resume()
    sidecar.wait_for_metric(AT_CARD)
    assert worker.restore(3, chunks).values == values_of(chunks)
    sidecar.wait_for_metric('shadowserve_landing_slots{state="filling"}', lambda slots: slots == 0)


def test_the_next_job_goes_to_the_data_plane_that_is_named_now(
    tmp_path: Path,
    sidecar: SidecarProcess,
    worker: Client,
    card: DataPlaneProcess,
    chunks: list[Chunk],
    redis_standalone: RedisServer,
):
    sidecar.endpoint_file.write_text(card.endpoint)
    sidecar.wait_for_metric(AT_CARD)
    with DataPlaneProcess(tmp_path / "new", store=redis_standalone.url) as new:
        redis_standalone.pause()
        worker.fetch(1, chunks)
        worker.look_up(2, chunks)
        sidecar.endpoint_file.write_text(f'shadowserve.io/data-plane="{new.endpoint}"\n')
        wait_until(lambda: any("attached" in line and new.endpoint in line for line in sidecar.log), "it moved")
        redis_standalone.resume()
        assert {worker.receive(Landed).index for _ in chunks} == {0, 1, 2, 3, 4}
        card.kill()
        numbers = iter(range(100, 10_000))
        wait_until(lambda: worker.look_up(next(numbers), chunks) == len(chunks), "the store answers again")
        assert worker.restore(3, chunks).values == values_of(chunks)
        assert sidecar.metrics()[AT_CARD] == 1


def test_where_host_cores_are_not_allowed_nothing_is_found_without_a_data_plane(
    tmp_path: Path, redis_standalone: RedisServer, card: DataPlaneProcess, chunks: list[Chunk]
):
    config = config_for(redis_standalone, placement={"order": ["DPU"], "receiverHost": "127.0.0.1"})
    with SidecarProcess(tmp_path / "s", config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
        worker.say_hello()
        assert worker.look_up(1, chunks) == 0
        worker.fetch(1, chunks)
        assert {worker.receive(ChunkFailed).outcome for _ in chunks} == {"place_error"}
        assert sidecar.metrics()['shadowserve_lookups_total{result="refused"}'] == 1
        sidecar.endpoint_file.write_text(card.endpoint)
        sidecar.wait_for_metric(AT_CARD)
        assert worker.restore(2, chunks).values == values_of(chunks)


def test_an_endpoint_where_nobody_listens_is_tried_again_and_again(
    sidecar: SidecarProcess, worker: Client, chunks: list[Chunk], tmp_path: Path, redis_standalone: RedisServer
):
    later = DataPlaneProcess(tmp_path / "later", store=redis_standalone.url)
    sidecar.endpoint_file.write_text(later.endpoint)
    wait_until(lambda: any("next try in" in line for line in sidecar.log), "it was tried")
    assert worker.restore(1, chunks).values == values_of(chunks)
    with later:
        sidecar.wait_for_metric(AT_CARD)
        assert worker.restore(2, chunks).values == values_of(chunks)

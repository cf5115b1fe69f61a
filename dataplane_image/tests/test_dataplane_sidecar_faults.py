"""What the sidecar does when the store, the engine or itself dies, stalls, or comes back."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from real_store import RedisServer, wait_until
from sidecar_chunks import SHAPE, Chunk, make_chunks, put_chunks, values_of
from sidecar_client import Client
from sidecar_process import ANSWER_SECONDS, IMPATIENT, SidecarProcess, config_for

from shadowserve_dataplane.chunks import store_key
from shadowserve_dataplane.connector.messages import ChunkFailed, Landed, SessionUnknown, Stored

LATE = 'shadowserve_lookups_total{result="late"}'
ERROR = 'shadowserve_lookups_total{result="error"}'


@pytest.fixture
def sidecar(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[SidecarProcess]:
    config = config_for(redis_standalone, tier="Balanced", limits=IMPATIENT)
    with SidecarProcess(tmp_path / "s", config=config) as process:
        yield process


@pytest.fixture
def worker(sidecar: SidecarProcess) -> Iterator[Client]:
    with Client(sidecar.socket, SHAPE) as client:
        client.say_hello()
        yield client


def all_failed(worker: Client, chunks: list[Chunk]) -> set[str]:
    return {worker.receive(ChunkFailed).outcome for _ in chunks}


def test_a_store_that_dies_is_a_miss_and_is_found_again_when_it_is_back(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    chunks = make_chunks(3)
    put_chunks(redis_standalone, chunks)
    assert worker.restore(1, chunks).values == values_of(chunks)
    redis_standalone.kill()
    assert worker.look_up(1, chunks) == 0
    assert worker.restore(2, chunks, deadline_ms=400).failed.keys() == {0, 1, 2}
    worker.stage(0, chunks[0])
    assert worker.receive(Stored) == Stored(0, "dropped:store_error")
    redis_standalone.start()
    put_chunks(redis_standalone, chunks)
    numbers = iter(range(10, 10_000))
    wait_until(lambda: worker.look_up(next(numbers), chunks) == 3, "the store is found again")
    assert worker.restore(3, chunks).values == values_of(chunks)
    metrics = sidecar.metrics()
    assert metrics.get(LATE, 0) + metrics.get(ERROR, 0) >= 1
    assert metrics['shadowserve_stores_dropped_total{reason="store_error"}'] == 1


def test_a_store_that_dies_during_a_fetch_fails_the_chunks_that_have_not_landed(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    chunks = make_chunks(6)
    put_chunks(redis_standalone, chunks)
    redis_standalone.pause()
    worker.fetch(1, chunks, deadline_ms=500)
    os.kill(redis_standalone.pid, signal.SIGKILL)
    assert all_failed(worker, chunks) <= {"store_error", "deadline"}


def test_a_store_that_accepts_and_never_answers_costs_the_deadline_and_no_more(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    chunks = make_chunks(3)
    put_chunks(redis_standalone, chunks)
    redis_standalone.pause()
    assert worker.look_up(1, chunks) == 0
    assert sidecar.metrics()[LATE] == 1
    worker.fetch(1, chunks, deadline_ms=200)
    assert all_failed(worker, chunks) == {"deadline"}
    redis_standalone.resume()
    numbers = iter(range(10, 10_000))
    wait_until(lambda: worker.look_up(next(numbers), chunks) == 3, "the store answers again")
    assert worker.restore(2, chunks).values == values_of(chunks)
    sidecar.wait_for_metric('shadowserve_landing_slots{state="quarantined"}', lambda slots: slots == 0)


def test_stores_give_way_to_fetches_and_are_bounded(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    chunks = make_chunks(8)
    redis_standalone.pause()
    worker.fetch(1, make_chunks(1, seed=5), deadline_ms=10_000)
    for slot, chunk in enumerate(chunks):
        worker.stage(slot, chunk)
    dropped = [worker.receive(Stored) for _ in range(4)]
    redis_standalone.resume()
    assert [(stored.slot, stored.outcome) for stored in dropped] == [(n, "dropped:pressure") for n in (4, 5, 6, 7)]
    assert {worker.receive(Stored).outcome for _ in range(4)} == {"stored"}
    assert sidecar.metrics()['shadowserve_stores_dropped_total{reason="pressure"}'] == 4


def test_values_that_no_lossy_tier_can_keep_are_dropped(sidecar: SidecarProcess, worker: Client):
    values = np.zeros(SHAPE.elements, np.float16)
    values[1234] = np.nan
    worker.stage(3, Chunk(make_chunks(1)[0].key, values.tobytes()))
    assert worker.receive(Stored) == Stored(3, "dropped:not_finite")
    assert sidecar.metrics()['shadowserve_stores_dropped_total{reason="not_finite"}'] == 1


def test_what_an_engine_staged_is_not_stored_once_another_one_has_its_slots(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    chunks = make_chunks(3)
    redis_standalone.pause()
    for slot, chunk in enumerate(chunks):
        worker.stage(slot, chunk)
    assert worker.look_up(1, chunks) == 0  # answered after the stores were read
    with Client(sidecar.socket, SHAPE, engine="engine-b") as other:
        other.say_hello()
        redis_standalone.resume()
        sidecar.wait_for_metric('shadowserve_stores_dropped_total{reason="shutdown"}', lambda count: count == 3)
        assert [redis_standalone.admin("EXISTS", store_key(chunk.key)) for chunk in chunks] == [0, 0, 0]
        assert other.silent(Stored)


def test_a_store_process_that_dies_is_started_again_and_ends_with_the_sidecar(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    first, second, third = make_chunks(3)
    worker.stage(0, first)
    assert worker.receive(Stored).outcome == "stored"
    [child] = sidecar.children()
    assert os.getpriority(os.PRIO_PROCESS, child) == 19
    redis_standalone.pause()
    worker.stage(1, second)
    assert worker.look_up(1, [first]) == 0  # answered after the store was begun
    os.kill(child, signal.SIGKILL)
    assert worker.receive(Stored) == Stored(1, "dropped:store_error")
    redis_standalone.resume()
    worker.stage(2, third)
    assert worker.receive(Stored) == Stored(2, "stored")
    [child] = sidecar.children()
    sidecar.kill()
    wait_until(lambda: not Path(f"/proc/{child}/stat").exists() or is_zombie(child), "the store process ends")


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_killed_sidecar_leaves_files_that_the_next_one_clears_away(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    chunks = make_chunks(2)
    put_chunks(redis_standalone, chunks)
    worker.fetch(1, chunks)
    assert {worker.receive(Landed).job for _ in chunks} == {1}, "slots are lent, and no answer of this job comes later"
    old = sidecar.files()
    sidecar.kill()
    sidecar.start()
    new = sidecar.files()
    assert len(new) == len(old) == 4
    assert {name for name in new if name.endswith(".buffer")}.isdisjoint(old)
    worker.fetch(2, chunks)
    assert worker.receive(SessionUnknown).session == worker.session
    worker.say_hello()
    assert worker.restore(3, chunks).values == values_of(chunks)


def test_sigterm_stores_what_is_queued_and_leaves_nothing_behind(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    chunks = make_chunks(4)
    redis_standalone.pause()
    worker.fetch(7, make_chunks(2, seed=5))
    for slot, chunk in enumerate(chunks):
        worker.stage(slot, chunk)
    worker.stage(4, chunks[0])
    assert worker.receive(Stored).outcome == "dropped:pressure"
    assert sidecar.process is not None
    sidecar.process.send_signal(signal.SIGTERM)
    wait_until(lambda: any("stopping" in line for line in sidecar.log), "it stops")
    redis_standalone.resume()
    assert sidecar.stop() == 0
    assert [redis_standalone.admin("EXISTS", store_key(chunk.key)) for chunk in chunks] == [1, 1, 1, 1]
    assert sidecar.files() == []


def test_a_second_sidecar_in_the_same_folder_says_who_is_there(sidecar: SidecarProcess):
    with sidecar.spawn() as second:
        output, errors = second.communicate(timeout=ANSWER_SECONDS)
        assert second.returncode == 2
        assert output == ""
        assert "another sidecar runs in" in errors
        assert "--run-dir" in errors
    assert len(sidecar.files()) == 4


def test_settings_that_cannot_work_end_the_start_with_one_line(tmp_path: Path, redis_standalone: RedisServer):
    broken = SidecarProcess(tmp_path / "s", config=config_for(redis_standalone, tier="Best"))
    broken.folder.mkdir()
    with broken.spawn() as process:
        _, errors = process.communicate(timeout=ANSWER_SECONDS)
    assert process.returncode == 2
    assert "tier" in errors
    assert "Traceback" not in errors


def test_a_volume_without_room_is_an_error_at_start(tmp_path: Path, redis_standalone: RedisServer):
    config = config_for(redis_standalone, landingBufferBytes=1 << 40)
    full = SidecarProcess(tmp_path / "s", config=config)
    full.folder.mkdir()
    with full.spawn() as process:
        _, errors = process.communicate(timeout=ANSWER_SECONDS)
    assert process.returncode == 2
    assert "landingBufferBytes" in errors
    assert full.files() == []


def test_socket_and_buffers_are_for_owner_and_group_only(sidecar: SidecarProcess):
    paths = [sidecar.socket, *sidecar.landing.iterdir()]
    assert len(paths) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o660}


def test_memory_is_flat_and_series_are_few_over_many_requests(tmp_path: Path, redis_standalone: RedisServer):
    chunks = make_chunks(2)
    put_chunks(redis_standalone, chunks)
    config = config_for(redis_standalone, tier="Balanced")
    with SidecarProcess(tmp_path / "s", config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
        worker.say_hello()
        use(worker, chunks, range(200))
        early = sidecar.resident_bytes()
        use(worker, chunks, range(200, 700))
        assert sidecar.resident_bytes() < 1.05 * early
        assert len(sidecar.metrics()) < 20


def use(worker: Client, chunks: list[Chunk], numbers: range) -> None:
    for number in numbers:
        assert worker.look_up(number, chunks) == 2
        assert len(worker.restore(number, chunks).values) == 2
        worker.stage(number % 8, chunks[0])
        assert worker.receive(Stored).outcome == "present"


def test_the_command_line_explains_itself():
    reply = subprocess.run(
        [sys.executable, "-m", "shadowserve_dataplane.sidecar", "--help"],
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"},
        check=True,
    )
    for option in ("--config", "--run-dir", "--landing-dir", "--endpoint-file", "--metrics-port-file"):
        assert option in reply.stdout

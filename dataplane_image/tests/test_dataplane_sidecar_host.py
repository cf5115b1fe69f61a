"""The sidecar with the pipeline inside, as a connector sees it: real process, real store, real buffers."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from real_store import RedisCluster, RedisServer
from sidecar_chunks import SHAPE, make_chunks, put_chunks, values_of
from sidecar_client import Client
from sidecar_process import SidecarProcess, config_for

from shadowserve_dataplane.chunks import KvDtype, KvShape, store_key
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage, parse_image
from shadowserve_dataplane.connector.messages import (
    PROTOCOL,
    Buffer,
    Cancel,
    ChunkFailed,
    Fetch,
    Landed,
    Refused,
    Stored,
)
from shadowserve_dataplane.landing import LandingBuffer
from shadowserve_dataplane.sidecar.landing_slots import LandingSlots
from shadowserve_dataplane.sidecar.staging import round_to_pages

SLOT_BYTES = round_to_pages(LandedLayout.max_bytes(SHAPE))


@pytest.fixture
def sidecar(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path / "s", config=config_for(redis_standalone)) as process:
        yield process


@pytest.fixture
def worker(sidecar: SidecarProcess) -> Iterator[Client]:
    with Client(sidecar.socket, SHAPE) as client:
        client.say_hello()
        yield client


def test_chunks_that_one_engine_stored_are_found_and_fetched_by_another(
    tmp_path: Path, redis_standalone: RedisServer, sidecar: SidecarProcess, worker: Client
):
    chunks = make_chunks(3)
    for slot, chunk in enumerate(chunks):
        worker.stage(slot, chunk, first=slot == 0)
    assert {worker.receive(Stored).outcome for _ in chunks} == {"stored"}
    worker.stage(1, chunks[1])
    assert worker.receive(Stored) == Stored(1, "present")
    encoded = sum(int(redis_standalone.admin("STRLEN", store_key(chunk.key))) for chunk in chunks)
    assert sidecar.metrics()["shadowserve_stored_bytes_total"] == encoded

    other = SidecarProcess(tmp_path / "other", config=config_for(redis_standalone))
    with other, Client(other.socket, SHAPE) as reader:
        reader.say_hello()
        assert reader.look_up(1, chunks) == 3
        assert reader.restore(1, chunks).values == values_of(chunks)
        metrics = other.metrics()
    assert metrics['shadowserve_fetches_total{result="landed"}'] == 1
    assert metrics['shadowserve_fetched_bytes_total{kind="encoded"}'] == encoded
    assert metrics['shadowserve_fetched_bytes_total{kind="values"}'] == 3 * SHAPE.values_bytes


def test_look_ups_count_leading_chunks_of_all_ranks(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    first, second = make_chunks(4, seed=1), make_chunks(4, seed=2)
    put_chunks(redis_standalone, [*first, second[0], second[1], second[3]])
    assert worker.look_up(1, first) == 4
    assert worker.look_up(2, first, second) == 2
    assert worker.look_up(3, make_chunks(2, seed=3)) == 0
    metrics = sidecar.metrics()
    for result in ("hit", "partial", "miss"):
        assert metrics[f'shadowserve_lookups_total{{result="{result}"}}'] == 1
    assert metrics["shadowserve_lookup_seconds_count"] == 3


def test_chunks_that_are_not_there_or_damaged_fail_alone(
    sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer
):
    chunks = make_chunks(5)
    put_chunks(redis_standalone, [chunks[0], chunks[2], chunks[3], chunks[4]])
    redis_standalone.admin("SETRANGE", store_key(chunks[2].key), 4000, b"\xff\x00\xff\x00")
    redis_standalone.admin("SET", store_key(chunks[3].key), chunks[4].encoded())
    restored = worker.restore(1, chunks)
    assert restored.values == {0: chunks[0].values, 4: chunks[4].values}
    assert restored.failed == {1: "missing", 2: "damaged", 3: "refused"}
    sidecar.wait_for_metric('shadowserve_landing_slots{state="free"}', lambda free: free == (4 << 20) // SLOT_BYTES)
    assert sidecar.metrics()['shadowserve_fetches_total{result="damaged"}'] == 1


def test_a_job_larger_than_the_landing_buffer_goes_on_as_slots_come_back(tmp_path: Path, redis_standalone: RedisServer):
    chunks = make_chunks(7)
    put_chunks(redis_standalone, chunks)
    config = config_for(redis_standalone, landingBufferBytes=2 * SLOT_BYTES)
    with SidecarProcess(tmp_path / "s", config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
        worker.say_hello()
        worker.fetch(1, chunks)
        held = [worker.receive(Landed), worker.receive(Landed)]
        assert {landed.index for landed in held} == {0, 1}
        assert worker.look_up(1, chunks) == 7
        assert worker.silent(Landed, ChunkFailed)
        values = {}
        while len(values) < 7:
            landed = held.pop(0) if held else worker.receive(Landed)
            values[landed.index] = worker.values(landed.slot)
            worker.release(1, landed.slot)
    assert values == values_of(chunks)


def test_a_worker_that_keeps_all_slots_gets_failures_at_the_deadline_and_can_go_on(
    tmp_path: Path, redis_standalone: RedisServer
):
    chunks = make_chunks(4)
    put_chunks(redis_standalone, chunks)
    config = config_for(redis_standalone, landingBufferBytes=2 * SLOT_BYTES)
    with SidecarProcess(tmp_path / "s", config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
        worker.say_hello()
        worker.restore(0, chunks[:1])  # with a store known and a shape met, two chunks take milliseconds
        worker.fetch(1, chunks, deadline_ms=2000)
        held = [worker.receive(Landed), worker.receive(Landed)]
        failed = [worker.receive(ChunkFailed), worker.receive(ChunkFailed)]
        assert [(failure.index, failure.outcome) for failure in failed] == [(2, "deadline"), (3, "deadline")]
        assert "landing slot" in failed[0].reason
        worker.release(1, *(landed.slot for landed in held))
        assert worker.restore(2, chunks).values == values_of(chunks)


def test_a_cancelled_job_gives_its_slots_back(sidecar: SidecarProcess, worker: Client, redis_standalone: RedisServer):
    chunks = make_chunks(6)
    put_chunks(redis_standalone, chunks)
    redis_standalone.pause()
    worker.fetch(1, chunks)
    worker.send(Cancel(worker.session, 1))
    outcomes = {worker.receive(ChunkFailed).outcome for _ in chunks}
    redis_standalone.resume()
    assert outcomes == {"cancelled"}
    assert worker.restore(2, chunks).values == values_of(chunks)
    sidecar.wait_for_metric('shadowserve_landing_slots{state="filling"}', lambda filling: filling == 0)


def test_a_worker_that_says_hello_again_frees_what_it_held(tmp_path: Path, redis_standalone: RedisServer):
    chunks = make_chunks(2)
    put_chunks(redis_standalone, chunks)
    config = config_for(redis_standalone, landingBufferBytes=2 * SLOT_BYTES)
    with SidecarProcess(tmp_path / "s", config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
        first = worker.say_hello()
        worker.fetch(1, chunks)
        assert {worker.receive(Landed).index for _ in chunks} == {0, 1}
        second = worker.say_hello()
        assert second.session != first.session
        assert worker.restore(1, chunks).values == values_of(chunks)


def test_a_new_engine_finds_zeros_where_another_one_worked(sidecar: SidecarProcess, redis_standalone: RedisServer):
    chunks = make_chunks(3)
    put_chunks(redis_standalone, chunks)
    with Client(sidecar.socket, SHAPE) as old, Client(sidecar.socket, SHAPE, engine="engine-b") as new:
        old.say_hello()
        assert len(old.restore(1, chunks).values) == 3
        assert old.staging is not None
        old.staging.slot(0)[:4] = b"mine"
        new.say_hello()
        assert new.staging is not None
        assert not any(bytes(new.staging.slot(0)))
        new.fetch(1, make_chunks(1, seed=9))
        assert new.receive(ChunkFailed).outcome == "missing"
        assert new.landing is not None
        sidecar.wait_for_metric('shadowserve_landing_slots{state="free"}', lambda free: free == len(new.landing.slots))
        old.fetch(2, chunks)
        assert old.receive(msgspec.Struct).session == old.session
        assert new.restore(3, chunks).values == values_of(chunks)


def test_an_engine_of_another_shape_gets_a_buffer_cut_for_it(sidecar: SidecarProcess, redis_standalone: RedisServer):
    larger = KvShape(3, 4, 16, KvDtype.FLOAT16, 64)
    chunks = make_chunks(2, larger)
    put_chunks(redis_standalone, chunks, larger)
    with Client(sidecar.socket, SHAPE) as old, Client(sidecar.socket, larger, engine="engine-b") as new:
        old.say_hello()
        welcome = new.say_hello()
        assert welcome.landing is not None
        assert welcome.landing.slot_bytes >= larger.values_bytes + 64
        assert new.restore(1, chunks).values == values_of(chunks)


def test_messages_that_make_no_sense_are_counted_and_harm_nobody(sidecar: SidecarProcess, worker: Client):
    chunks = make_chunks(1)
    with Client(sidecar.socket, SHAPE, role="scheduler") as scheduler:
        scheduler.say_hello()
        assert scheduler.welcome is not None
        assert (scheduler.welcome.landing, scheduler.welcome.staging) == (None, None)
        for frame in (b"", b"nonsense", bytes(1000), msgspec.msgpack.encode({"type": "later"})):
            scheduler.send_frame(frame)
        scheduler.fetch(1, chunks)
        worker.send(Fetch(worker.session, 1, [b"short"], 1000))
        assert worker.receive(ChunkFailed).outcome == "refused"
        worker.stage(99 % 8, chunks[0])
        assert worker.receive(Stored).outcome == "stored"
        worker.release(1, 5, 10_000_000)
        sidecar.wait_for_metric("shadowserve_messages_refused_total", lambda count: count == 7)
        assert scheduler.look_up(1, chunks) == 1


def test_a_connector_of_another_protocol_is_told_what_to_change(sidecar: SidecarProcess, worker: Client):
    with Client(sidecar.socket, SHAPE, protocol=PROTOCOL + 1) as newer:
        newer.send(newer.hello)
        assert f"speaks protocol {PROTOCOL + 1}, this sidecar protocol {PROTOCOL}" in newer.receive(Refused).reason
        newer.send_frame(msgspec.msgpack.encode({"type": "hello", "protocol": 99, "layers": "many"}))
        assert "speaks protocol 99" in newer.receive(Refused).reason
    assert sidecar.metrics()["shadowserve_messages_refused_total"] == 2
    assert any("same release" in line for line in sidecar.log)
    assert worker.look_up(1, make_chunks(1)) == 0


def test_a_model_too_large_for_the_landing_buffer_is_told_the_size_it_needs(sidecar: SidecarProcess):
    with Client(sidecar.socket, KvShape(80, 8, 128)) as client:
        client.send(client.hello)
        reason = client.receive(Refused).reason
    assert "landingBufferBytes" in reason
    assert "at least" in reason


def test_both_halves_are_told_deadlines_isolation_and_salt(tmp_path: Path, redis_standalone: RedisServer):
    salt = tmp_path / "salt"
    salt.write_bytes(b"pool-a")
    config = config_for(redis_standalone, isolation="PerTenant", saltFile=str(salt))
    with SidecarProcess(tmp_path / "s", config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
        welcome = worker.say_hello()
    assert (welcome.lookup_deadline_ms, welcome.fetch_deadline_ms) == (30_000, 30_000)
    assert (welcome.isolation, welcome.salt) == ("PerTenant", b"pool-a")


def test_sidecars_of_another_pool_give_their_engines_another_salt(
    tmp_path: Path, redis_standalone: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    salt = tmp_path / "salt"
    salt.write_bytes(b"secret")
    salts = []
    for start, pool in enumerate(("pool-a", "pool-b", "pool-a")):
        monkeypatch.setenv("SHADOWSERVE_SCOPE", pool)
        config = config_for(redis_standalone, saltFile=str(salt))
        with SidecarProcess(tmp_path / str(start), config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
            salts.append(worker.say_hello().salt)
    assert salts[0] == salts[2], "a restart changes nothing"
    assert salts[0] != salts[1]


def test_ranks_share_the_buffers_and_have_staging_slots_of_their_own(
    sidecar: SidecarProcess, redis_standalone: RedisServer
):
    chunks = make_chunks(2)
    with Client(sidecar.socket, SHAPE, world=2) as first, Client(sidecar.socket, SHAPE, world=2, rank=1) as second:
        slots = [client.say_hello().staging for client in (first, second)]
        assert all(staging is not None and len(staging.slots) == 4 for staging in slots)
        for client, chunk in zip((first, second), chunks, strict=True):
            assert client.staging is not None
            client.stage(client.staging.slots[0], chunk)
            assert client.receive(Stored).outcome == "stored"
        assert first.look_up(1, chunks[:1], chunks[1:]) == 1
        assert [client.restore(1, [chunk]).values for client, chunk in zip((first, second), chunks, strict=True)] == [
            {0: chunks[0].values},
            {0: chunks[1].values},
        ]


@pytest.mark.parametrize(("landing", "kind"), [("Codes", CodesImage), ("Values", ValuesImage)])
def test_lossy_chunks_land_as_the_settings_say(tmp_path: Path, redis_standalone: RedisServer, landing: str, kind: type):
    [chunk] = make_chunks(1)
    config = config_for(redis_standalone, tier="High", landing=landing)
    with SidecarProcess(tmp_path / "s", config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
        worker.say_hello()
        worker.stage(0, chunk, first=True)
        assert worker.receive(Stored).outcome == "stored"
        worker.fetch(1, [chunk])
        landed = worker.receive(Landed)
        assert worker.landing is not None
        assert isinstance(parse_image(worker.landing.slot(landed.slot), SHAPE), kind)


def test_a_cluster_of_shards_serves_all_three_paths(tmp_path: Path, redis_cluster: RedisCluster):
    chunks = make_chunks(8)
    store = {"endpoints": [str(shard.address) for shard in redis_cluster.shards], "topology": "Cluster"}
    config = config_for(redis_cluster.shards[0], store=store)
    with SidecarProcess(tmp_path / "s", config=config) as sidecar, Client(sidecar.socket, SHAPE) as worker:
        worker.say_hello()
        for slot, chunk in enumerate(chunks):
            worker.stage(slot, chunk)
        assert {worker.receive(Stored).outcome for _ in chunks} == {"stored"}
        assert worker.look_up(1, chunks) == 8
        assert worker.restore(1, chunks).values == values_of(chunks)


def test_a_buffer_with_slots_in_use_is_not_cut_anew():
    landing = LandingBuffer(20 * SLOT_BYTES)
    slots = LandingSlots(landing)
    assert isinstance(slots.carve_for(SHAPE), Buffer)
    ref = landing.lease(b"engine-a")
    assert ref is not None
    larger = KvShape(3, 4, 16, KvDtype.FLOAT16, 64)
    assert slots.carve_for(larger) is None
    landing.release(ref.lease)
    assert isinstance(slots.carve_for(larger), Buffer)

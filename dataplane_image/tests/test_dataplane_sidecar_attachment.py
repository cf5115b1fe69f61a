"""What a sidecar tells of its engine: whether it attached, why not, and with what the engine shares chunks."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from connector_fakes import GEOMETRY
from connector_fakes import SHAPE as ENGINE_SHAPE
from connector_fakes import hello as hello_of
from real_store import RedisServer, wait_until
from sidecar_chunks import SHAPE
from sidecar_client import Client
from sidecar_process import SidecarProcess, config_for
from stub_sidecar import StubSidecar

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.identity import CacheIdentity, ModelSource
from shadowserve_dataplane.connector.messages import PROTOCOL, Contract, Refused, Welcome
from shadowserve_dataplane.connector.scheduler import SchedulerHalf
from shadowserve_dataplane.connector.settings import ConnectorSettings

LARGE = KvShape(80, 8, 128)


@pytest.fixture
def sidecar(tmp_path: Path, redis_standalone: RedisServer) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path / "s", config=config_for(redis_standalone)) as process:
        yield process


def told(sidecar: SidecarProcess) -> dict[str, Any]:
    port = (sidecar.folder / "metrics-port").read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/attachment", timeout=10) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def test_an_engine_has_attached_when_all_of_its_halves_have(sidecar: SidecarProcess) -> None:
    assert told(sidecar)["state"] == "Waiting"
    with (
        Client(sidecar.socket, SHAPE, role="scheduler", world=2) as scheduler,
        Client(sidecar.socket, SHAPE, world=2) as first,
        Client(sidecar.socket, SHAPE, world=2, rank=1) as second,
    ):
        for half in (scheduler, first):
            half.say_hello()
        assert told(sidecar)["state"] == "Waiting"
        second.say_hello()
        assert told(sidecar)["state"] == "Attached"
        scheduler.send(Contract(scheduler.session, b"\x01\x02"))
        wait_until(lambda: told(sidecar)["contract"] == "0102", "the contract")
    with Client(sidecar.socket, SHAPE, engine="engine-b") as other:
        other.say_hello()
        assert (told(sidecar)["state"], told(sidecar)["contract"]) == ("Waiting", ""), "another engine begins anew"


def test_the_answer_is_the_one_that_the_operator_reads(tmp_path: Path, redis_standalone: RedisServer) -> None:
    wanted = json.loads((Path(__file__).parent / "fixtures/attachment.json").read_text())
    config = config_for(redis_standalone, settings=wanted["settings"])
    with (
        SidecarProcess(tmp_path / "s", config=config) as sidecar,
        Client(sidecar.socket, SHAPE, role="scheduler") as scheduler,
        Client(sidecar.socket, SHAPE, dtype="int4") as worker,
    ):
        scheduler.say_hello()
        scheduler.send(Contract(scheduler.session, bytes.fromhex(wanted["contract"])))
        worker.send(worker.hello)
        worker.receive(Refused)
        wait_until(lambda: told(sidecar)["contract"] == wanted["contract"], "the contract")
        found = told(sidecar)
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in wanted.items()}
    same = ("state", "contract", "settings")
    assert [found[key] for key in same] == [wanted[key] for key in same]


def test_a_landing_buffer_for_fewer_chunks_than_a_fetch_wants_is_told_with_what_it_needs(
    tmp_path: Path, redis_standalone: RedisServer
) -> None:
    slots = 3
    with SidecarProcess(tmp_path / "roomy", config=config_for(redis_standalone)) as roomy:
        with Client(roomy.socket, SHAPE) as worker:
            worker.say_hello()
        wanted = told(roomy)["wantedBytes"]
        assert told(roomy)["chunks"] > 8
    config = config_for(redis_standalone, landingBufferBytes=slots * wanted // 8)
    with SidecarProcess(tmp_path / "small", config=config) as small, Client(small.socket, SHAPE) as worker:
        worker.say_hello()
        found = told(small)
    assert (found["state"], found["chunks"], found["wantedBytes"]) == ("LandingBufferTooSmall", slots, wanted)


def test_a_model_of_which_no_chunk_fits_is_told_also_while_the_other_half_is_welcome(sidecar: SidecarProcess) -> None:
    with Client(sidecar.socket, LARGE) as worker, Client(sidecar.socket, LARGE, role="scheduler") as scheduler:
        worker.send(worker.hello)
        worker.receive(Refused)
        scheduler.say_hello()
        found = told(sidecar)
    assert (found["state"], found["chunks"]) == ("LandingBufferTooSmall", 0)
    assert found["wantedBytes"] > 4 << 20


def test_an_engine_that_is_refused_is_told_with_the_reason_until_it_is_welcome(sidecar: SidecarProcess) -> None:
    with Client(sidecar.socket, SHAPE, protocol=PROTOCOL + 1) as newer, Client(sidecar.socket, SHAPE) as worker:
        newer.send(newer.hello)
        newer.receive(Refused)
        found = told(sidecar)
        assert found["state"] == "EngineRefused"
        assert "use the connector of the same release" in found["detail"]
        newer.send_frame(msgspec.msgpack.encode({"type": "hello", "protocol": 99, "layers": "many"}))
        newer.receive(Refused)
        worker.say_hello()
        assert (told(sidecar)["state"], told(sidecar)["detail"]) == ("Waiting", ""), "its scheduler half is missing"


def test_a_new_engine_of_which_one_half_is_refused_has_not_attached(sidecar: SidecarProcess) -> None:
    with Client(sidecar.socket, SHAPE) as worker, Client(sidecar.socket, SHAPE, role="scheduler") as scheduler:
        worker.say_hello()
        scheduler.say_hello()
        assert told(sidecar)["state"] == "Attached"
    newer = {"engine": "engine-b"}
    with (
        Client(sidecar.socket, SHAPE, dtype="int4", **newer) as worker,
        Client(sidecar.socket, SHAPE, role="scheduler", **newer) as scheduler,
    ):
        worker.send(worker.hello)
        worker.receive(Refused)
        scheduler.say_hello()
        found = told(sidecar)
    assert (found["state"], "int4" in found["detail"]) == ("EngineRefused", True)


WELCOME = Welcome(PROTOCOL, 1, None, None, 20, 5000, "PerPool", b"salt")


def identity_of(model: bytes, shape: KvShape = ENGINE_SHAPE, world: int = 1) -> CacheIdentity:
    return CacheIdentity(ModelSource(list, given=model), shape, world)


def test_engines_say_the_same_if_and_only_if_they_share_chunks() -> None:
    mine = identity_of(b"model").contract(WELCOME)
    assert mine is not None
    assert identity_of(b"model").contract(WELCOME) == mine
    others = [
        identity_of(b"another").contract(WELCOME),
        identity_of(b"model", KvShape(2, 1, 16)).contract(WELCOME),
        identity_of(b"model", world=2).contract(WELCOME),
        identity_of(b"model").contract(msgspec.structs.replace(WELCOME, salt=b"of another pool")),
    ]
    assert len({mine, *others}) == 5
    assert mine not in (identity_of(b"model").roots(WELCOME, None, None) or ())


@pytest.mark.parametrize("late", [False, True])
def test_the_engine_says_it_whenever_its_model_is_hashed(tmp_path: Path, late: bool) -> None:
    model = tmp_path / "model"
    identity = CacheIdentity(ModelSource(lambda: [model]), ENGINE_SHAPE, 1)
    model.mkdir()
    (model / "config.json").write_text("{}")
    if not late:
        identity.start()
        wait_until(lambda: identity.contract(WELCOME) is not None, "the model is hashed")
    stub = StubSidecar(str(tmp_path / "s"))
    half = SchedulerHalf(ConnectorSettings(str(tmp_path / "s")), hello_of("scheduler"), GEOMETRY, identity)
    half.start()
    try:
        said = stub.wait_for(Contract)[-1]
        assert said.digest == identity.contract(WELCOME)
    finally:
        half.close()
        stub.close()

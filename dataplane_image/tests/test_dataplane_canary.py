"""Round trips of a small chunk: what they prove, what they name when something is broken, and who hears of it."""

import json
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry
from real_store import Certificate, RedisCluster, RedisServer, wait_until
from sidecar_chunks import SHAPE as CHUNK_SHAPE
from sidecar_client import Client
from sidecar_process import DataPlaneProcess, SecureDataPlane, SidecarProcess, config_for

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.fetch.canary import SHAPE, Canary, CanaryLanding, RoundTrip, Stage, keys_by_shard
from shadowserve_dataplane.fetch.pipeline import Pipeline, PipelineSettings
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.fetch.verdicts import Verdicts
from shadowserve_dataplane.landing import SlotRef
from shadowserve_dataplane.place.base import Placement, PlacementTarget
from shadowserve_dataplane.place.loopback import Fault, FaultPlan, LoopbackTarget
from shadowserve_dataplane.service.metrics import DataPlaneMetrics
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import SLOTS, Address, SlotMap

SECONDS = 60.0


class Counting:
    """An observer that counts."""

    def __init__(self) -> None:
        self.heard = 0

    def chunk_began(self) -> None:
        self.heard += 1

    def chunk_ended(self, result: ChunkResult) -> None:
        self.heard += 1


class Telling:
    """A target in this process that tells the landing of what came whole, as a receiver does."""

    def __init__(self, landing: CanaryLanding, faults: FaultPlan) -> None:
        self._inner = LoopbackTarget(landing.buffer, faults)
        self._landing = landing

    def open(self) -> Placement:
        placement = self._inner.open()
        finish = placement.finish

        def tell(ref: SlotRef, total_bytes: int) -> None:
            finish(ref, total_bytes)
            self._landing.came(ref)

        placement.finish = tell  # type: ignore[method-assign]
        return placement


@contextmanager
def canary_over(store: StoreSettings, faults: FaultPlan = FaultPlan()) -> Iterator[tuple[Canary, Counting]]:
    observer = Counting()
    pipeline = Pipeline(PipelineSettings(2, 1 << 20, 3), store, topology_source(store), observer)
    landing = CanaryLanding()
    target: PlacementTarget = Telling(landing, faults)
    try:
        yield Canary(pipeline, store, "a data plane", landing, target), observer
    finally:
        pipeline.close(Deadline.after(0))


def test_a_chunk_comes_back_as_it_was_and_is_not_counted(redis_standalone: RedisServer) -> None:
    with canary_over(redis_standalone.settings()) as (canary, observer):
        assert [canary.round_trip(SECONDS) for _ in range(3)] == [RoundTrip(1)] * 3
    assert observer.heard == 0
    [left] = redis_standalone.admin("KEYS", "*")
    assert 0 < redis_standalone.admin("PTTL", left) <= 600_000


def test_every_shard_of_a_cluster_is_tried(redis_cluster: RedisCluster) -> None:
    with canary_over(redis_cluster.settings()) as (canary, _):
        assert canary.round_trip(SECONDS) == RoundTrip(3)


def test_a_store_that_is_gone_is_named(redis_standalone: RedisServer) -> None:
    with canary_over(redis_standalone.settings()) as (canary, _):
        redis_standalone.kill()
        trip = canary.round_trip(SECONDS)
        assert (trip.failed, str(redis_standalone.address) in trip.detail) == (Stage.STORE, True)
        redis_standalone.start()
        assert canary.round_trip(SECONDS) == RoundTrip(1)


def test_a_user_who_may_not_store_is_told_what_is_missing(redis_standalone: RedisServer) -> None:
    rules = ["on", ">secret", "~shadowserve:*", "-@all", "+get", "+ping"]
    redis_standalone.admin("ACL", "SETUSER", "reader", *rules)
    with canary_over(redis_standalone.settings(username="reader", password="secret")) as (canary, _):
        trip = canary.round_trip(SECONDS)
    assert trip.failed is Stage.STORE
    assert "rights" in trip.detail


def test_values_that_changed_on_the_way_are_noticed(redis_standalone: RedisServer) -> None:
    with canary_over(redis_standalone.settings(), FaultPlan({1: Fault.CORRUPT})) as (canary, _):
        trip = canary.round_trip(SECONDS)
        assert (trip.failed, trip.shards) == (Stage.COMPARE, 1)
        assert canary.round_trip(SECONDS) == RoundTrip(1)


def test_a_placement_that_fails_is_named(redis_standalone: RedisServer) -> None:
    with canary_over(redis_standalone.settings(), FaultPlan({0: Fault.FAIL})) as (canary, _):
        trip = canary.round_trip(SECONDS)
    assert trip.failed is Stage.FETCH
    assert "place_error" in trip.detail


def test_a_pipeline_that_hangs_ends_in_time(redis_standalone: RedisServer) -> None:
    with canary_over(redis_standalone.settings(), FaultPlan(gate=threading.Event())) as (canary, _):
        assert canary.round_trip(2.0).failed is Stage.FETCH


def test_a_shard_with_few_slots_gets_its_chunk() -> None:
    large, small = Address("a", 1), Address("b", 1)
    owners = (large,) * (SLOTS - 40) + (small,) * 40
    assert set(keys_by_shard("name", SlotMap(owners))) == {large, small}


def test_a_named_change_makes_one_round_trip_and_no_more() -> None:
    trips: list[float] = []
    time = [0.0]

    def make(seconds: float) -> RoundTrip:
        trips.append(seconds)
        return RoundTrip(1)

    verdicts = Verdicts(make, clock=lambda: time[0])
    assert verdicts.after("one").document()["verdict"] == "Verified"
    assert verdicts.after("one").change == "one"
    assert len(trips) == 1
    assert verdicts.after("two").change == "one", "a moment later the last one has to do"
    time[0] = 2.0
    assert verdicts.after("two").change == "two"
    assert len(trips) == 2


def test_a_round_trip_is_a_metric_only_once_one_was_made() -> None:
    registry = CollectorRegistry()
    metrics = DataPlaneMetrics(registry)
    name = "shadowserve_round_trip_verified"
    assert registry.get_sample_value(name) is None, "0 would be an alert about nothing"
    for verified in (False, True, False):
        metrics.round_trip(verified)
        assert registry.get_sample_value(name) == verified


def ask(server: str, change: str) -> dict[str, object]:
    url = f"{server}/round-trip?change={urllib.parse.quote(change)}"
    with urllib.request.urlopen(url, timeout=SECONDS) as reply:
        document: dict[str, object] = json.loads(reply.read())
    return document


def test_the_process_tells_its_verdict_over_http(tmp_path: Path, redis_standalone: RedisServer) -> None:
    with DataPlaneProcess(tmp_path / "plane", store=redis_standalone.url) as process:
        first = ask(process.metrics_url, "now")
        assert (first["verdict"], first["shards"]) == ("Verified", 1)
        assert process.metric("shadowserve_round_trip_verified") == 1
        assert process.metric('shadowserve_chunks_total{result="landed"}') == 0


def test_the_process_sends_canaries_with_mutual_tls(
    tmp_path: Path, redis_standalone: RedisServer, certificate: Certificate
) -> None:
    with SecureDataPlane(tmp_path / "plane", store=redis_standalone.url, files=certificate) as process:
        assert ask(process.metrics_url, "now")["verdict"] == "Verified"


def test_a_sidecar_tells_of_its_own_pipeline_once_an_engine_is_there(
    tmp_path: Path, redis_standalone: RedisServer
) -> None:
    config = config_for(redis_standalone, placement={"order": ["Host"]})
    with SidecarProcess(tmp_path / "sidecar", config=config) as sidecar:
        url = f"http://127.0.0.1:{(sidecar.folder / 'metrics-port').read_text()}"
        assert ask(url, "now")["verdict"] == "Pending"
        client = Client(sidecar.socket, CHUNK_SHAPE)
        try:
            client.say_hello()
            wait_until(lambda: ask(url, "now")["verdict"] == "Verified", "the canary came back")
            redis_standalone.kill()
            wait_until(lambda: ask(url, "later")["verdict"] == "Failed", "the canary did not come back")
        finally:
            client.close()


def test_values_are_small() -> None:
    assert SHAPE.values_bytes == 2048

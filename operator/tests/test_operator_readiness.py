"""Whether an operator is ready, as a kubelet asks: over HTTP."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import pytest
from fakes import FakeCluster

from shadowserve_operator.errors import ApiUnavailable
from shadowserve_operator.kinds import Json, Ref
from shadowserve_operator.leader import acquire, lease_manifest
from shadowserve_operator.metrics import OperatorMetrics
from shadowserve_operator.readiness import PATH, Readiness, told_over_http

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
READY = (200, "ok")


class Operator:
    """An operator as its kubelet sees it, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = NOW
        self.readiness = Readiness(lambda: self.now)
        self.port = 0

    def asked(self, path: str = PATH) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture
def operator() -> Iterator[Operator]:
    made = Operator()
    with told_over_http(0, OperatorMetrics().registry, made.readiness) as made.port:
        yield made


class Silent(FakeCluster):
    """A cluster whose API server does not answer; `asked` once it was."""

    def __init__(self) -> None:
        super().__init__("system")
        self.asked = asyncio.Event()

    async def get(self, ref: Ref) -> Json | None:
        self.asked.set()
        raise ApiUnavailable("refused")


async def waits_for_its_turn(cluster: FakeCluster, operator: Operator, until: asyncio.Event) -> None:
    """Have it wait to be the leader, until it has come so far."""

    def looked() -> None:
        operator.readiness.looked()
        until.set()

    waiting = asyncio.create_task(acquire(cluster, "system", "me", lambda: operator.now, looked))
    async with asyncio.timeout(60):
        await until.wait()
    assert not waiting.done(), "it does not lead"
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_standby_is_ready(operator: Operator) -> None:
    assert operator.asked() == (503, "the Lease was not read yet: see the log")
    cluster = FakeCluster("system")
    cluster.put(lease_manifest("system", "other", NOW, None))
    await waits_for_its_turn(cluster, operator, asyncio.Event())
    assert operator.asked() == READY


async def test_one_that_reaches_no_api_server_is_not(operator: Operator) -> None:
    cluster = Silent()
    await waits_for_its_turn(cluster, operator, cluster.asked)
    assert operator.asked()[0] == 503


def test_one_that_has_not_looked_for_long_is_not_until_it_looks_again(operator: Operator) -> None:
    operator.readiness.looked()
    operator.now += timedelta(seconds=20)
    assert operator.asked() == READY
    operator.now += timedelta(seconds=20)
    assert operator.asked() == (503, "the Lease was last read 40 s ago: see the log")
    operator.readiness.looked()
    assert operator.asked() == READY


def test_metrics_are_told_whether_it_is_ready_or_not(operator: Operator) -> None:
    status, text = operator.asked("/metrics")
    assert status == 200
    assert "shadowserve_operator_leader 0.0" in text

"""How often a worker looks again, and what it says of what went wrong."""

import asyncio
import contextlib

import pytest

from shadowserve_operator.errors import Forbidden
from shadowserve_operator.metrics import OperatorMetrics
from shadowserve_operator.reconcile import Result
from shadowserve_operator.worker import Pace, Pokes, keep

INTERVAL = 60.0
WAITING, PROGRESS, SETTLED = Result(settled=False), Result(writes=1, settled=False), Result()


def delays(*results: Result) -> list[float]:
    pace = Pace(INTERVAL)
    return [pace.after(result) for result in results]


def test_what_is_settled_is_looked_at_rarely() -> None:
    assert delays(SETTLED, SETTLED) == [INTERVAL, INTERVAL]


def test_what_is_not_is_looked_at_soon_and_ever_less_often() -> None:
    assert delays(*[WAITING] * 6) == [5, 10, 20, 40, INTERVAL, INTERVAL]


def test_progress_makes_it_look_soon_again() -> None:
    assert delays(WAITING, WAITING, PROGRESS, WAITING, WAITING) == [5, 10, 5, 5, 10]


def test_a_poke_makes_it_look_soon_again() -> None:
    pace = Pace(INTERVAL)
    assert [pace.after(WAITING) for _ in range(3)] == [5, 10, 20]
    pace.poked()
    assert pace.after(WAITING) == 5


def test_a_silent_api_server_is_asked_ever_less_often() -> None:
    pace = Pace(INTERVAL)
    assert [pace.after_failure() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_right_that_was_taken_away_is_no_mistake_of_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    asked = asyncio.Event()

    async def reconcile() -> Result:
        asked.set()
        raise Forbidden('secrets "prefixes" is forbidden')

    worker = asyncio.create_task(keep(("PrefixCache", "chat", "prefixes"), reconcile, Pokes(), OperatorMetrics(), 60.0))
    await asked.wait()
    worker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker
    [said] = caplog.records
    assert said.exc_info is None
    assert "PrefixCache chat/prefixes: the operator lacks a right: apply what you installed again" in said.getMessage()
    assert 'secrets "prefixes" is forbidden; again in 1 s' in said.getMessage()

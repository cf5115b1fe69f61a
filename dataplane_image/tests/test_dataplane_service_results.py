"""Results of a fetch go out together, but a failure never waits."""

import asyncio

from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.service.server import worth_telling


def result(index: int, outcome: ChunkOutcome = ChunkOutcome.LANDED) -> ChunkResult:
    return ChunkResult(1, index, outcome)


async def test_what_landed_waits_for_the_last_chunk() -> None:
    results: asyncio.Queue[ChunkResult] = asyncio.Queue()
    told = asyncio.ensure_future(worth_telling(results, 3))
    for index in (2, 0):
        results.put_nowait(result(index))
        await asyncio.sleep(0)
    assert not told.done(), "the placement stream says it; another message would only cost time"
    results.put_nowait(result(1))
    assert [each.index for each in await told] == [2, 0, 1]


async def test_a_failure_goes_out_at_once_and_takes_along_what_landed() -> None:
    results: asyncio.Queue[ChunkResult] = asyncio.Queue()
    for index, outcome in enumerate((ChunkOutcome.LANDED, ChunkOutcome.MISSING, ChunkOutcome.DAMAGED)):
        results.put_nowait(result(index, outcome))
    assert [each.index for each in await worth_telling(results, 9)] == [0, 1]
    assert [each.index for each in await worth_telling(results, 7)] == [2]

"""Data planes are asked over HTTP: the real network against a real server that answers as a data plane does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from shadowserve_lab.processes import free_port
from shadowserve_operator.desired.round_trip import Plane, Word
from shadowserve_operator.network import PodNetwork


@asynccontextmanager
async def a_server(answers: list[object]) -> AsyncIterator[tuple[Plane, list[str]]]:
    """Yield where it listens, and the changes that it was asked for; it says `answers` one after the other."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query["change"])
        return web.json_response(answers.pop(0) if len(answers) > 1 else answers[0])

    application = web.Application()
    application.router.add_get("/round-trip", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield Plane("the data plane on card", f"127.0.0.1:{port}"), asked
    finally:
        await runner.cleanup()


def says(verdict: str, change: str = "now", **more: str) -> dict[str, str]:
    return {"change": change, "verdict": verdict, "stage": "", "detail": "", **more}


async def test_a_verdict_is_passed_on() -> None:
    async with a_server([says("Failed", stage="store", detail="refused")]) as (plane, asked):
        [answer] = await PodNetwork().round_trips([plane], "now")
    assert (answer.word, answer.stage, answer.detail, asked) == (Word.FAILED, "store", "refused", ["now"])


async def test_a_verdict_of_an_earlier_change_is_asked_for_again() -> None:
    async with a_server([says("Verified", "before"), says("Verified")]) as (plane, asked):
        [answer] = await PodNetwork().round_trips([plane], "now")
    assert (answer.word, len(asked)) == (Word.VERIFIED, 2)


async def test_a_data_plane_that_is_still_behind_is_pending() -> None:
    async with a_server([says("Verified", "before")]) as (plane, _):
        [answer] = await PodNetwork().round_trips([plane], "now")
    assert answer.word is Word.PENDING


async def test_what_is_no_data_plane_and_what_is_not_there_are_unreachable() -> None:
    async with a_server([["something else"]]) as (plane, _):
        nobody = Plane("nobody", f"127.0.0.1:{free_port()}")
        other, gone = await PodNetwork().round_trips([plane, nobody], "now")
    assert (other.word, gone.word) == (Word.UNREACHABLE, Word.UNREACHABLE)
    assert "no data plane" in other.detail
    assert gone.detail

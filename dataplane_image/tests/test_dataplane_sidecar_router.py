"""The unix socket: every message is read, whatever the order of reads and sends; files come and go."""

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.sidecar.router import Router


@pytest.fixture
def dealer() -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        yield socket


def echo_every_message(path: Path) -> Router:
    router = Router(path, 0o660, lambda peer, frame: reply(peer, frame))

    def reply(peer: bytes, frame: bytes) -> None:
        assert router.send(peer, frame)

    return router


async def test_thousands_of_messages_in_one_burst_are_all_answered(tmp_path: Path, dealer: "zmq.Socket[bytes]"):
    path = tmp_path / "s"
    router = echo_every_message(path)
    dealer.connect(f"ipc://{path}")
    received = await asyncio.to_thread(burst, dealer, 5000)
    router.close()
    assert received == list(range(5000))


def burst(dealer: "zmq.Socket[bytes]", messages: int) -> list[int]:
    for number in range(messages):
        dealer.send(number.to_bytes(4, "big"))
    return [int.from_bytes(receive(dealer), "big") for _ in range(messages)]


def receive(dealer: "zmq.Socket[bytes]") -> bytes:
    assert dealer.poll(10_000), "no answer within 10 s"
    return dealer.recv()


async def test_messages_that_arrive_during_sends_are_not_forgotten(tmp_path: Path, dealer: "zmq.Socket[bytes]"):
    path = tmp_path / "s"
    router = echo_every_message(path)
    dealer.connect(f"ipc://{path}")
    await asyncio.to_thread(one_after_the_other, dealer, 1000)
    router.close()


def one_after_the_other(dealer: "zmq.Socket[bytes]", messages: int) -> None:
    for number in range(messages):
        dealer.send(number.to_bytes(4, "big"))
        assert receive(dealer) == number.to_bytes(4, "big")


async def test_a_peer_that_is_gone_is_no_error(tmp_path: Path):
    router = echo_every_message(tmp_path / "s")
    assert not router.send(b"nobody", b"hello")
    router.close()


async def test_the_socket_file_has_the_mode_and_goes_with_the_router(tmp_path: Path):
    path = tmp_path / "s"
    path.write_text("left by a predecessor")
    router = echo_every_message(path)
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    router.close()
    assert not path.exists()


async def test_a_path_that_is_too_long_is_refused_with_the_fix(tmp_path: Path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with pytest.raises(SettingsError, match="--run-dir names a short"):
        echo_every_message(folder / "sidecar.sock")

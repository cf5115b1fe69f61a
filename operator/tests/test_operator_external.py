"""External stores as they are met in the field: real servers, each right or wrong in one way."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from store_pods import SERVER, StorePods

from shadowserve_lab.processes import free_port
from shadowserve_operator.desired.external_store import Finding
from shadowserve_operator.store_admin import ExternalAccess, find_out

pytestmark = pytest.mark.skipif(SERVER is None, reason="no valkey-server or redis-server on PATH")
USER = "shadowserve-sidecar"


@contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    assert SERVER is not None
    port = free_port()
    folder.mkdir(exist_ok=True)
    command = [SERVER, "--port", str(port), "--dir", str(folder), "--save", "", "--bind", "127.0.0.1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("eady to accept" in line for line in process.stdout)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


@asynccontextmanager
async def listener(answer: bytes) -> AsyncIterator[str]:
    """Yield the address of something that is no store."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    there = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{there.sockets[0].getsockname()[1]}"
    finally:
        there.close()
        await there.wait_closed()


async def found(endpoint: str, access: ExternalAccess = ExternalAccess()) -> Finding:
    [seen] = await find_out([endpoint], access)
    return seen.finding


async def test_one_server_and_a_cluster_are_told_apart(tmp_path: Path) -> None:
    with server(tmp_path) as endpoint:
        assert await found(endpoint) is Finding.STANDALONE
    with server(tmp_path, "--cluster-enabled", "yes") as endpoint:
        assert await found(endpoint) is Finding.CLUSTER


async def test_who_needs_a_password_says_so_and_takes_the_right_one(tmp_path: Path) -> None:
    with server(tmp_path, "--requirepass", "secret") as endpoint:
        assert await found(endpoint) is Finding.NOT_LET_IN
        assert await found(endpoint, ExternalAccess(password="wrong")) is Finding.NOT_LET_IN
        assert await found(endpoint, ExternalAccess(password="secret")) is Finding.STANDALONE


async def test_a_user_of_least_rights_is_enough(tmp_path: Path) -> None:
    user = ("--user", "me", "on", ">secret", "~shadowserve:*", "-@all", "+get", "+set", "+exists", "+ping")
    with server(tmp_path, *user) as endpoint:
        assert await found(endpoint, ExternalAccess("me", "secret")) is Finding.STANDALONE


async def test_who_is_not_there_is_silent() -> None:
    [seen] = await find_out([f"127.0.0.1:{free_port()}"], ExternalAccess())
    assert (seen.finding, bool(seen.detail)) == (Finding.SILENT, True)


async def test_something_else_is_no_store(tmp_path: Path) -> None:
    async with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as endpoint:
        assert await found(endpoint) is Finding.NO_STORE
    with server(tmp_path) as endpoint:
        assert await found(endpoint, ExternalAccess(encrypted=True)) is Finding.NO_STORE


async def test_an_authority_that_is_not_known_is_not_trusted(tmp_path: Path) -> None:
    store = StorePods(tmp_path)
    try:
        await store.start(0)
        assert store.files is not None
        endpoint = f"{store.member(0).address}:{store.port}"
        [seen] = await find_out([endpoint], ExternalAccess(USER, "sidecar-secret", True))
        assert seen.finding is Finding.NOT_TRUSTED
        assert await found(endpoint, ExternalAccess(USER, "sidecar-secret", True, b"nonsense")) is Finding.NOT_TRUSTED
        assert await found(endpoint, ExternalAccess(USER, "sidecar-secret")) is Finding.NO_STORE
    finally:
        store.stop()

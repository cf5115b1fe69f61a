"""The real client against API servers that misbehave: every failure has a name of ours, nothing hangs."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shadowserve_operator.cluster import ApiCluster
from shadowserve_operator.errors import ApiUnavailable, Conflict, Forbidden, NotServed, OperatorError, Refused
from shadowserve_operator.kinds import CONFIG_MAP, Ref

THING = Ref(CONFIG_MAP, "default", "thing")
Answer = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def api_server(answer: Answer, folder: Path) -> AsyncIterator[ApiCluster]:
    """Serve plain HTTP that answers the n-th request, counted from 0, and connect to it."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                count += 1
                await answer(writer, count - 1)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    named = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [named],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "c", "user": {}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    async with server, ApiCluster(str(path)) as cluster:
        yield cluster


def saying(status: int, message: str = "words", **headers: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(http(status, message, **headers))
        await writer.drain()

    return answer


def http(status: int, message: str, **headers: str) -> bytes:
    body = json.dumps({"kind": "Status", "message": message}).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Refused),
        (403, Forbidden),
        (404, NotServed),
        (409, Conflict),
        (422, Refused),
        (500, ApiUnavailable),
        (503, ApiUnavailable),
    ],
)
async def test_every_refusal_has_a_name(status: int, error: type[OperatorError], tmp_path: Path) -> None:
    async with api_server(saying(status), tmp_path) as cluster:
        with pytest.raises(error, match="words"):
            await cluster.list(CONFIG_MAP, "default")


async def test_a_connection_that_is_dropped_is_an_absent_api_server(tmp_path: Path) -> None:
    async def drop(writer: asyncio.StreamWriter, number: int) -> None:
        writer.close()

    async with api_server(drop, tmp_path) as cluster:
        with pytest.raises(ApiUnavailable):
            await cluster.get(THING)


async def test_a_read_is_tried_again_when_the_api_server_asks_for_it(tmp_path: Path) -> None:
    async def busy_once(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(http(429, "later", Retry_After="0") if number == 0 else http(200, "now"))
        await writer.drain()

    async with api_server(busy_once, tmp_path) as cluster:
        found = await cluster.get(THING)
    assert found is not None
    assert found["message"] == "now"

"""Connections to the store: none is left behind, whenever a call or the closing itself is given up."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest
from real_store import Certificate, RedisCluster, RedisServer, wait_until

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import DeadlineExceeded
from shadowserve_dataplane.store.client import StoreClient

STEPS = range(1, 25)
"""Turns of the event loop after which a call is given up: from just begun to after its end."""


async def given_up_after(steps: int, call: Awaitable[object]) -> None:
    task = asyncio.ensure_future(call)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def hung_up(server: RedisServer) -> bool:
    """Return whether the server has no client but the one that asks."""
    return len(server.admin("CLIENT", "LIST").splitlines()) == 1


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_closing_that_is_given_up_has_closed(
    store_binary: str, tmp_path: Path, certificate: Certificate, tls: bool
) -> None:
    with RedisServer(tmp_path, tls=certificate if tls else None) as server:
        for steps in STEPS:
            client = StoreClient(server.settings())
            await client.ping(Deadline.after(60))
            await given_up_after(steps, client.close())
            await asyncio.to_thread(wait_until, lambda: hung_up(server), f"closed after {steps} turns")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_calls_that_are_given_up_at_any_moment_leave_no_connection(
    store_binary: str, tmp_path: Path, certificate: Certificate, tls: bool
) -> None:
    with RedisServer(tmp_path, tls=certificate if tls else None) as server:
        for steps in STEPS:
            client = StoreClient(server.settings())
            calls = (client.ping(Deadline.after(60)) for _ in range(3))
            await given_up_after(steps, asyncio.gather(*calls))
            await client.close()
            await asyncio.to_thread(wait_until, lambda: hung_up(server), f"closed after {steps} turns")


async def test_closing_ends_what_is_still_connecting(redis_standalone: RedisServer) -> None:
    for steps in STEPS:
        client = StoreClient(redis_standalone.settings())
        call = asyncio.ensure_future(client.ping(Deadline.after(60)))
        for _ in range(steps):
            await asyncio.sleep(0)
        await client.close()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.to_thread(wait_until, lambda: hung_up(redis_standalone), f"closed after {steps} turns")


async def test_one_dead_shard_leaves_no_ping_behind(redis_cluster: RedisCluster) -> None:
    client = StoreClient(redis_cluster.settings())
    await client.topology(Deadline.after(60))
    redis_cluster.shards[0].kill()
    redis_cluster.shards[2].pause()
    with pytest.raises(DeadlineExceeded):
        await client.ping(Deadline.after(0.5))
    await client.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}

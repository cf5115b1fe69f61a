"""The operator's access list on a real store: sidecars read and write chunks, and can do nothing else."""

import pytest
import valkey
from real_store import RedisServer

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.store.client import PutOutcome, StoreClient
from shadowserve_operator.desired.secrets import SecretValues, access_list

VALUES = SecretValues("sidecar-password", "admin-password", b"salt")
USER = "shadowserve-sidecar"
KEY = ChunkKey(bytes(32))


async def test_the_sidecars_user_stores_and_finds_chunks(redis_standalone: RedisServer) -> None:
    allow(redis_standalone)
    client = StoreClient(redis_standalone.settings(username=USER, password=VALUES.sidecar_password))
    try:
        await client.ping(Deadline.after(60))
        assert await client.put(KEY, b"chunk", Deadline.after(60)) is PutOutcome.STORED
        assert await client.exists([KEY], Deadline.after(60)) == [True]
    finally:
        await client.close()


FORBIDDEN = ["CONFIG GET maxmemory", "FLUSHALL", "KEYS *", "ACL LIST", "SHUTDOWN", "DEL shadowserve:1"]
OTHER_KEYS = ["GET other", "SET other 1"]


@pytest.mark.parametrize("command", FORBIDDEN + OTHER_KEYS)
def test_the_sidecars_user_can_do_nothing_else(redis_standalone: RedisServer, command: str) -> None:
    allow(redis_standalone)
    client = valkey.Valkey(
        "127.0.0.1", redis_standalone.port, username=USER, password=VALUES.sidecar_password, socket_timeout=60
    )
    with client, pytest.raises(valkey.exceptions.NoPermissionError):
        client.execute_command(*command.split())


def test_a_strangers_password_is_refused(redis_standalone: RedisServer) -> None:
    allow(redis_standalone)
    client = valkey.Valkey("127.0.0.1", redis_standalone.port, username=USER, password="guess", socket_timeout=60)
    with client, pytest.raises(valkey.exceptions.AuthenticationError):
        client.ping()


def allow(server: RedisServer) -> None:
    """Set the users as the access list says, but for the default one, by which the test itself gets in."""
    for line in access_list(VALUES).splitlines():
        name, *rules = line.split()[1:]
        if name != "default":
            server.admin("ACL", "SETUSER", name, "reset", *rules)

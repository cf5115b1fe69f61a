"""Shards of a managed store on real servers with TLS and users: formed, grown, shrunk, healed, stopped in between."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from store_pods import SERVER, StorePods

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.renewal import CertificateFiles, RenewedContext
from shadowserve_dataplane.store.client import StoreClient
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address, Topology
from shadowserve_operator import store_admin
from shadowserve_operator.desired.shard_views import SLOTS, Member
from shadowserve_operator.desired.sharding import Move, ShardPlan, Wish, plan_shards
from shadowserve_operator.store_admin import Access, Looked, StoreTrouble, look, shard

pytestmark = [
    pytest.mark.skipif(SERVER is None, reason="no valkey-server or redis-server on PATH"),
    pytest.mark.timeout(180),
]
_SECONDS = 60.0
KEYS = [ChunkKey(number.to_bytes(32, "big")) for number in range(600)]


@pytest.fixture(params=["MutualTLS", "Plaintext"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorePods]:
    pods = StorePods(tmp_path, request.param)
    try:
        yield pods
    finally:
        pods.stop()


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[StorePods]:
    pods = StorePods(tmp_path)
    try:
        yield pods
    finally:
        pods.stop()


async def reach(store: StorePods, shards: int, replicas: int = 0) -> ShardPlan:
    """Carry out plans until nothing is left to do."""
    wish = Wish(shards, replicas, len(store.running))
    until = time.monotonic() + _SECONDS
    while True:  # a busy machine may keep a server from answering in time, as it may keep those of users
        try:
            seen = await shard(store.members(), store.access, wish, _SECONDS)
        except StoreTrouble:
            if time.monotonic() > until:
                raise
        else:
            if not seen.silent or time.monotonic() > until:
                break
    assert (seen.plan.steps, seen.plan.waiting) == ((), ""), seen.silent
    return seen.plan


def client_of(store: StorePods) -> StoreClient:
    """Return the sidecars' own client; it is told of one server."""
    tls = None
    if store.files is not None:
        folder = store.folder / "kv-sidecar-tls"
        tls = RenewedContext(CertificateFiles(*(folder / name for name in ("ca.crt", "tls.crt", "tls.key"))))
        tls.check_hostname = False
    endpoint = Address(store.members()[0].address, store.port)
    return StoreClient(StoreSettings((endpoint,), Topology.CLUSTER, "shadowserve-sidecar", "sidecar-secret", tls))


async def by_address(store: StorePods) -> None:
    """Have servers tell their addresses to clients: this machine has no DNS for pods."""
    for member in store.members():
        context = store.access.context()
        async with store_admin._Link(member, store.access, context) as link:
            await link.run([("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")])


async def fill(store: StorePods) -> None:
    await by_address(store)
    client = client_of(store)
    try:
        for key in KEYS:
            await client.put(key, bytes(key) * 64, Deadline.after(_SECONDS))
    finally:
        await client.close()


async def present(store: StorePods) -> int:
    await by_address(store)
    client = client_of(store)
    try:
        return sum(await client.exists(KEYS, Deadline.after(_SECONDS)))
    finally:
        await client.close()


async def looked_at(store: StorePods) -> Looked:
    """Look until all servers answer: a busy machine may keep one from it in time."""
    until = time.monotonic() + _SECONDS
    while (looked := await look(store.members(), store.access)).silent and time.monotonic() < until:
        pass
    assert not looked.silent
    return looked


async def slots(store: StorePods) -> list[int]:
    looked = await looked_at(store)
    return [len(view.slots) for view in sorted(looked.views, key=lambda view: view.member.number)]


async def test_one_server_becomes_a_store_at_once(store: StorePods) -> None:
    await store.start(0)
    plan = await reach(store, 1)
    assert (plan.serving, plan.servers, plan.covered) == (1, 1, True)
    await fill(store)
    assert await present(store) == len(KEYS)


async def test_it_grows_and_shrinks_without_losing_anything(secured: StorePods) -> None:
    store = secured
    await store.start(0)
    await reach(store, 1)
    await fill(store)
    await store.start(1, 2)
    await reach(store, 3)
    assert await slots(store) == [5462, 5461, 5461]
    assert await present(store) == len(KEYS)
    await store.start(3)
    await reach(store, 4)
    assert await slots(store) == [4096] * 4
    assert await present(store) == len(KEYS)
    assert (await reach(store, 2)).servers == 2, "only now may pods go"
    assert await slots(store) == [8192, 8192, 0, 0]
    store.end(2, 3)
    await reach(store, 2)
    assert await present(store) == len(KEYS)
    looked = await looked_at(store)
    assert [len(view.known) for view in looked.views] == [2, 2], "those that went are forgotten"


async def test_pods_stay_while_they_have_slots(secured: StorePods) -> None:
    await secured.start(0, 1)
    await reach(secured, 2)
    looked = await looked_at(secured)
    plan = plan_shards(Wish(1, 0, 2), looked.views)
    assert (plan.servers, plan.covered) == (2, True)
    assert all(isinstance(step, Move) for step in plan.steps)
    alone = plan_shards(Wish(2, 0, 2), looked.views[:1])
    assert not alone.covered, "half of the slots are where nobody answers"
    assert "8192 slots move" in plan.waiting


class _Stopped(BaseException):
    """The operator's process ended here."""


@pytest.mark.parametrize("batch", [13, 40])
async def test_stopped_between_any_two_commands_it_goes_on(
    secured: StorePods, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    await secured.start(0)
    await reach(secured, 1)
    await fill(secured)
    await secured.start(1, 2)
    plain, sent = store_admin._Link.run, [0]

    async def run(link: store_admin._Link, commands: object) -> object:
        sent[0] += 1
        if sent[0] % (7 + batch) == 0:
            raise _Stopped
        return await plain(link, commands)  # type: ignore[arg-type]

    monkeypatch.setattr(store_admin._Link, "run", run)
    stops = 0
    for _ in range(400):
        try:
            await reach(secured, 3)
            break
        except (_Stopped, StoreTrouble):
            stops += 1
    monkeypatch.undo()
    assert stops > 3
    await reach(secured, 3)
    assert sum(await slots(secured)) == SLOTS
    assert await present(secured) == len(KEYS)


@pytest.mark.parametrize("done", ["importing", "migrating", "given"])
async def test_a_half_moved_slot_is_ended(secured: StorePods, done: str) -> None:
    await secured.start(0, 1)
    await reach(secured, 2)
    await fill(secured)
    looked = await looked_at(secured)
    source, target = sorted(looked.views, key=lambda view: view.member.number)
    slot = str(min(source.slots))
    context = secured.access.context()
    async with (
        store_admin._Link(source.member, secured.access, context) as there,
        store_admin._Link(target.member, secured.access, context) as here,
    ):
        await here.run([("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)])
        if done != "importing":
            await there.run([("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)])
        if done == "given":
            await store_admin._move_keys(Move(source, target, (int(slot),), ""), [slot], there, secured.access)
            await here.run([("CLUSTER", "SETSLOT", slot, "NODE", target.id)])
    await reach(secured, 2)
    looked = await looked_at(secured)
    assert not any(view.migrating or view.importing for view in looked.views)
    assert sum(await slots(secured)) == SLOTS
    assert await present(secured) == len(KEYS)


async def test_a_pod_that_is_made_anew_gets_its_part_back_empty(secured: StorePods) -> None:
    await secured.start(0, 1, 2)
    await reach(secured, 3)
    await fill(secured)
    await secured.replace(1)
    await reach(secured, 3)
    assert sorted(await slots(secured)) == [5461, 5461, 5462]
    assert len(KEYS) // 2 < await present(secured) < len(KEYS)


async def test_with_replicas_a_lost_pod_loses_nothing(secured: StorePods) -> None:
    await secured.start(0, 1, 2, 3)
    await reach(secured, 2, replicas=1)
    await fill(secured)
    looked = await looked_at(secured)
    assert [bool(view.follows) for view in looked.views] == [False, False, True, True]
    await _copied(secured)
    await secured.replace(0)
    await reach(secured, 2, replicas=1)
    assert sorted(await slots(secured)) == [0, 0, 8192, 8192]
    assert await present(secured) == len(KEYS)


async def _copied(store: StorePods) -> None:
    """Return when every replica is up to date."""
    context = store.access.context()
    for member in store.members()[2:]:
        async with store_admin._Link(member, store.access, context) as link:
            while True:
                [reply] = await link.run([("INFO", "replication")])
                if b"master_link_status:up" in reply and b"master_sync_in_progress:0" in reply:  # type: ignore[operator]
                    break
                await asyncio.sleep(0.1)


async def test_replicas_come_and_go(secured: StorePods) -> None:
    await secured.start(0, 1)
    await reach(secured, 2)
    await fill(secured)
    await secured.start(2, 3)
    await reach(secured, 2, replicas=1)
    assert (await reach(secured, 4)).serving == 4
    assert (await reach(secured, 2)).servers == 2
    assert await present(secured) == len(KEYS)


async def test_a_server_that_does_not_answer_is_named_and_nothing_is_done(secured: StorePods) -> None:
    await secured.start(0, 1)
    await reach(secured, 2)
    members = secured.members()
    secured.end(1)
    seen = await shard(members, secured.access, Wish(1, 0, 2), 5.0)
    assert seen.plan.steps == ()
    assert seen.plan.servers == 2
    assert seen.plan.waiting == "1 of 2 store servers answer"
    assert "kv-store-1 at 127.0." in seen.silent["kv-store-1"]


async def test_a_server_that_is_busy_for_a_moment_is_asked_again(
    secured: StorePods, monkeypatch: pytest.MonkeyPatch
) -> None:
    await secured.start(0, 1)
    await reach(secured, 2)
    plain, busy, looks = store_admin.look, secured.running[1], list[Looked]()

    async def look_and_go_on(members: Sequence[Member], access: Access) -> Looked:
        looks.append(await plain(members, access))
        busy.send_signal(signal.SIGCONT)
        return looks[-1]

    monkeypatch.setattr(store_admin, "look", look_and_go_on)
    busy.send_signal(signal.SIGSTOP)
    await shard(secured.members(), secured.access, Wish(2, 0, 2), _SECONDS)
    assert "kv-store-1" in looks[0].silent
    assert len(looks) > 1, "before anybody is told that it is silent"
    assert (await reach(secured, 2)).covered


async def test_another_eviction_policy_is_taken_without_a_restart(secured: StorePods) -> None:
    await secured.start(0)
    await reach(secured, 1)
    await fill(secured)
    for policy in ("allkeys-lru", "allkeys-lfu"):
        seen = await shard(secured.members(), secured.access, Wish(1, 0, 1, policy), _SECONDS)
        assert (seen.plan.steps, seen.plan.waiting) == ((), "")
        [view] = (await looked_at(secured)).views
        assert view.policy == policy
    assert await present(secured) == len(KEYS)


async def test_a_wrong_password_is_said(secured: StorePods) -> None:
    await secured.start(0)
    looked = await look(secured.members(), replace(secured.access, password="wrong"))
    assert "password" in looked.silent["kv-store-0"]

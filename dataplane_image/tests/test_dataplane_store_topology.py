"""Slot maps and redirects, without a cluster."""

import pytest

from shadowserve_dataplane.chunks import ChunkKey, store_key
from shadowserve_dataplane.errors import PeerProtocolError
from shadowserve_dataplane.store.topology import (
    SLOTS,
    Address,
    Redirect,
    SlotMap,
    SlotRange,
    parse_cluster_slots,
    slot_of,
)

HERE = Address("10.0.0.1", 7000)
THERE = Address("10.0.0.2", 7001)


def test_slots_are_those_of_the_cluster_specification() -> None:
    assert slot_of(b"123456789") == 0x31C3 % SLOTS
    assert slot_of(b"a{tag}b") == slot_of(b"tag")
    assert slot_of(store_key(ChunkKey(bytes(32)))) == slot_of(b"shadowserve:" + b"0" * 64)


def test_a_map_knows_the_shard_of_every_slot() -> None:
    slot_map = SlotMap.of([SlotRange(0, 99, HERE), SlotRange(200, SLOTS - 1, THERE)])
    assert [slot_map.address_of(slot) for slot in (0, 99, 100, 199, 200, SLOTS - 1)] == [
        HERE, HERE, None, None, THERE, THERE,
    ]  # fmt: skip
    assert slot_map.addresses == (HERE, THERE)
    moved = slot_map.moved(150, THERE)
    assert (moved.address_of(150), moved.address_of(151), slot_map.address_of(150)) == (THERE, None, None)


@pytest.mark.parametrize(
    ("message", "redirect"),
    [
        ("MOVED 3999 10.0.0.2:7001", Redirect(3999, THERE, ask=False)),
        ("ASK 0 10.0.0.2:7001", Redirect(0, THERE, ask=True)),
        ("MOVED 7 :6381", Redirect(7, Address("10.0.0.1", 6381), ask=False)),
        ("MOVED 7 [::1]:6381", Redirect(7, Address("::1", 6381), ask=False)),
        ("MOVED 7 ::1:6381", Redirect(7, Address("::1", 6381), ask=False)),
        ("MOVED 7 shard.store.svc:6381", Redirect(7, Address("shard.store.svc", 6381), ask=False)),
        ("MOVED 16384 10.0.0.2:7001", None),
        ("MOVED -1 10.0.0.2:7001", None),
        ("MOVED 7 10.0.0.2:", None),
        ("MOVED 7 10.0.0.2:0", None),
        ("MOVED 7 10.0.0.2:99999999", None),
        ("MOVED 7", None),
        ("ERR MOVED 7 10.0.0.2:7001", None),
        ("", None),
    ],
)
def test_redirects(message: str, redirect: Redirect | None) -> None:
    assert Redirect.parse(message, HERE) == redirect


def test_cluster_slots_reply() -> None:
    reply = [
        [0, 99, [b"10.0.0.2", 7001, b"id", []], [b"10.0.0.3", 7002, b"replica", []]],
        [100, 199, [b"", 7003, b"id"]],
    ]
    slot_map = parse_cluster_slots(reply, HERE)
    assert slot_map.addresses == (THERE, Address("10.0.0.1", 7003))


@pytest.mark.parametrize(
    "reply",
    [
        b"OK",
        None,
        [[0, 99]],
        [[0, 99, [b"h", "x"]]],
        [[0, SLOTS, [b"h", 1]]],
        [[9, 8, [b"h", 1]]],
        [[0, 1, [b"h", 0]]],
        [7],
    ],
)
def test_what_is_no_cluster_slots_reply_is_refused(reply: object) -> None:
    with pytest.raises(PeerProtocolError, match=r"10\.0\.0\.1:7000"):
        parse_cluster_slots(reply, HERE)


def test_addresses_are_shown_as_they_are_written() -> None:
    assert (str(HERE), str(Address("::1", 5))) == ("10.0.0.1:7000", "[::1]:5")

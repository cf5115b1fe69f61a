"""Bulk reads from stores that break the rules or their connections."""

from collections.abc import Callable

import pytest
from chunk_sinks import RecordingSink
from scripted_store import Peer, Script, ScriptedStore

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import DeadlineExceeded, NetworkError, PeerProtocolError, StoreRefused
from shadowserve_dataplane.pool import BufferPool
from shadowserve_dataplane.store.bulk import BulkGetter, BulkRequest
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address, SlotMap, Topology, slot_of
from shadowserve_lab.processes import free_port

REQUESTS = [BulkRequest(number, ChunkKey(number.to_bytes(32, "big"))) for number in range(3)]


def read(scripts: list[Script], seconds: float = 60.0, **changes: object) -> RecordingSink:
    """Return what becomes of three requests to a store that plays `scripts`."""
    buffers = BufferPool(1 << 16, 1, "test")
    sink = RecordingSink()
    with ScriptedStore(scripts) as store:
        settings = StoreSettings(**{"endpoints": (store.address,), **changes})  # type: ignore[arg-type]
        getter = BulkGetter(settings, topology_source(settings), buffers)
        getter.get(REQUESTS, sink, Deadline.after(seconds))
        getter.close()
    assert buffers.free == 1
    assert sorted(sink.order) == [0, 1, 2]
    return sink


def serve(peer: Peer) -> None:
    """Answer every GET with the key's last byte, as a healthy store would."""
    while command := peer.command():
        peer.send_value(command[1][-1:])


def half(peer: Peer) -> None:
    peer.command()
    peer.send(b"$1000\r\n" + bytes(500))


def header_only(peer: Peer) -> None:
    peer.command()
    peer.send(b"$1")


def answers(reply: bytes) -> Script:
    def script(peer: Peer) -> None:
        peer.command()
        peer.send(reply)
        peer.wait_for_hang_up()

    return script


def test_half_a_value_then_gone_fails_that_chunk_and_asks_for_the_others_again() -> None:
    sink = read([half, serve])
    assert {index: type(error) for index, error in sink.errors.items()} == {0: NetworkError}
    assert sink.values == {1: b"1", 2: b"2"}


@pytest.mark.parametrize("script", [header_only, Peer.command, lambda peer: None])
def test_gone_before_the_value_began_is_asked_again(script: Callable[[Peer], None]) -> None:
    sink = read([script, serve])
    assert sink.values == {0: b"0", 1: b"1", 2: b"2"}


def test_gone_again_and_again_is_a_network_error() -> None:
    sink = read([header_only] * 4)
    assert {index: type(error) for index, error in sink.errors.items()} == dict.fromkeys(range(3), NetworkError)


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$1x\r\n", b"$99999999999\r\n", b"+OK\r\n", b"$3\r\nabcd\r\n", b":1\r\n"],
)
def test_what_is_no_reply_fails_what_was_asked_there(garbage: bytes) -> None:
    sink = read([answers(garbage), serve])
    assert type(sink.errors[0]) is PeerProtocolError
    assert sink.values.keys() | sink.errors.keys() == {0, 1, 2}
    assert sink.values[2] == b"2", "what was not asked yet is asked on a new connection"


def test_a_reply_nobody_asked_for_is_noticed() -> None:
    def chatty(peer: Peer) -> None:
        for _ in range(3):
            peer.send_value(peer.command()[1][-1:])
        peer.send(b"$1\r\nx\r\n")
        peer.wait_for_hang_up()

    sink = read([chatty])
    assert sink.values == {0: b"0", 1: b"1", 2: b"2"}


def test_an_error_reply_fails_its_own_chunk() -> None:
    def script(peer: Peer) -> None:
        peer.command()
        peer.send(b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n")
        serve(peer)

    sink = read([script])
    assert {index: type(error) for index, error in sink.errors.items()} == {0: StoreRefused}
    assert "WRONGTYPE" in str(sink.errors[0])
    assert sink.values == {1: b"1", 2: b"2"}


@pytest.mark.parametrize("passing", [b"LOADING Redis is loading", b"TRYAGAIN", b"CLUSTERDOWN", b"BUSY a script runs"])
def test_passing_trouble_is_asked_again(passing: bytes) -> None:
    def script(peer: Peer) -> None:
        for _ in range(2):
            peer.command()
            peer.send(b"-%b\r\n" % passing)
        serve(peer)

    assert read([script]).values == {0: b"0", 1: b"1", 2: b"2"}


def test_trouble_that_does_not_pass_is_told() -> None:
    def script(peer: Peer) -> None:
        while peer.command():
            peer.send(b"-LOADING Redis is loading the dataset in memory\r\n")

    sink = read([script])
    assert "LOADING" in str(sink.errors[0])
    assert {type(error) for error in sink.errors.values()} == {StoreRefused}


def test_silence_longer_than_the_read_timeout_ends_the_connection() -> None:
    def silent(peer: Peer) -> None:
        peer.wait_for_hang_up()

    sink = read([silent, serve], read_timeout=1.0)
    assert sink.values == {0: b"0", 1: b"1", 2: b"2"}


def test_silence_after_auth_counts_against_the_connect_timeout() -> None:
    def silent(peer: Peer) -> None:
        peer.wait_for_hang_up()

    sink = read([silent] * 4, password="secret", connect_timeout=0.3)
    assert {type(error) for error in sink.errors.values()} == {NetworkError}
    assert "did not let us in" in str(sink.errors[0])


class Takeover:
    """A topology that names `first` until it is suspected, and `then` afterwards; takes note of MOVED."""

    def __init__(self, first: Address, then: Address) -> None:
        self.current = SlotMap.single(first)
        self._then = then

    def slot_map(self, deadline: Deadline) -> SlotMap:
        return self.current

    def moved(self, slot: int, address: Address) -> None:
        self.current = self.current.moved(slot, address)

    def suspect(self) -> None:
        self.current = SlotMap.single(self._then)


class Uncovered(Takeover):
    """A topology without any shard."""

    def __init__(self) -> None:
        self.current = SlotMap.of([])

    def suspect(self) -> None:
        self.current = SlotMap.of([])


def read_cluster(first: Address, then: Address) -> RecordingSink:
    settings = StoreSettings(endpoints=(first,), topology=Topology.CLUSTER)
    getter = BulkGetter(settings, Takeover(first, then), BufferPool(1 << 16, 1, "test"))
    sink = RecordingSink()
    getter.get(REQUESTS, sink, Deadline.after(60))
    getter.close()
    return sink


def test_when_another_shard_has_taken_over_it_is_asked_instead() -> None:
    with ScriptedStore([serve]) as alive:
        sink = read_cluster(Address("127.0.0.1", free_port()), alive.address)
    assert sink.values == {0: b"0", 1: b"1", 2: b"2"}


def test_shards_that_send_each_other_the_blame_are_not_followed_for_ever() -> None:
    def blame(peer: Peer) -> None:
        while command := peer.command():
            peer.send(b"-MOVED %d :%d\r\n" % (slot_of(command[1]), store.address.port))

    with ScriptedStore([blame]) as store:
        sink = read_cluster(store.address, store.address)
    assert {index: type(error) for index, error in sink.errors.items()} == dict.fromkeys(range(3), StoreRefused)
    assert "redirected" in str(sink.errors[0])


def test_a_slot_that_nobody_serves_is_told() -> None:
    with ScriptedStore([]) as store:
        settings = StoreSettings(endpoints=(store.address,), topology=Topology.CLUSTER)
        getter = BulkGetter(settings, Uncovered(), BufferPool(1 << 16, 1, "test"))
        sink = RecordingSink()
        getter.get(REQUESTS[:1], sink, Deadline.after(60))
        getter.close()
    assert "no shard of the cluster serves slot" in str(sink.errors[0])


def test_a_trickle_does_not_outlive_the_deadline() -> None:
    def trickle(peer: Peer) -> None:
        peer.command()
        peer.send(b"$60000\r\n")
        try:
            while True:
                peer.send(b"x")
                peer.pause(0.01)
        except OSError:
            return

    sink = read([trickle], seconds=0.3)
    assert {index: type(error) for index, error in sink.errors.items()} == dict.fromkeys(range(3), DeadlineExceeded)

"""A sidecar for tests of the connector: speaks its messages, keeps chunks in a dict, misbehaves on request."""

import mmap
import queue
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from shadowserve_dataplane.connector import messages as m

HEADER = struct.Struct("<4sHBBHHIHHIIIQ24x")
DTYPES = {"bfloat16": 1, "float16": 2, "float32": 3}


def values_image(hello: m.Hello, values: bytes) -> bytes:
    """A landed image that holds finished values."""
    head = HEADER.pack(
        b"SSLD", 1, 2, DTYPES[hello.dtype], 2 * hello.layers, hello.chunk_tokens, hello.kv_heads * hello.head_dim,
        0, 0, 0, 0, 64, 64 + len(values),
    )  # fmt: skip
    return head + values


def chunk_bytes(hello: m.Hello) -> int:
    item = 4 if hello.dtype == "float32" else 2
    return 2 * hello.layers * hello.chunk_tokens * hello.kv_heads * hello.head_dim * item


@dataclass
class Behaviour:
    """What the stub does; tests change it between messages."""

    lookup_deadline_ms: int = 600_000
    fetch_deadline_ms: int = 600_000
    isolation: str = "PerPool"
    refuse: str = ""
    protocol: int = m.PROTOCOL
    answer_lookups: bool = True
    small_slots: bool = False
    fetch: Callable[[int, int, bytes], str] = lambda job, index, key: "land"
    """Per chunk: `land`, `hold` (until `release_held`), or a ChunkOutcome."""
    store: Callable[[bytes], str] = lambda key: "stored"
    damage: Callable[[int, bytearray], None] = lambda index, image: None


class _Files:
    def __init__(self, folder: str, session: int, hello: m.Hello, slots: int) -> None:
        self.slot_bytes = -(-(chunk_bytes(hello) + 4096) // 4096) * 4096
        self.slots = slots
        self.paths = [Path(folder) / f"{session}-{kind}" for kind in ("landing", "staging")]
        self.maps = []
        for path in self.paths:
            path.write_bytes(b"\0" * (self.slot_bytes * slots))
            with path.open("r+b") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0))

    def buffer(self, kind: int, small: bool = False) -> m.Buffer:
        slot_bytes = 128 if small else self.slot_bytes
        return m.Buffer(str(self.paths[kind]), self.slot_bytes * self.slots, slot_bytes, list(range(self.slots)))


@dataclass
class _Peer:
    hello: m.Hello
    files: _Files | None
    free: set[int] = field(default_factory=set)
    waiting: list[tuple[int, int, bytes]] = field(default_factory=list)


class StubSidecar:
    """Serves any number of connectors at `socket`; `seen` collects every message it got."""

    def __init__(
        self, socket: str, behaviour: Behaviour | None = None, slots: int = 16, first_session: int = 1
    ) -> None:
        self.socket = socket
        self.behaviour = behaviour or Behaviour()
        self.chunks: dict[bytes, bytes] = {}
        self.seen: list[m.FromConnector] = []
        self.seen_changed = threading.Condition()
        self._slots = slots
        self._next = first_session
        self._peers: dict[int, _Peer] = {}
        self._routes: dict[int, bytes] = {}
        self._orders: queue.Queue[Callable[[], None]] = queue.Queue()
        self._folder = tempfile.TemporaryDirectory()
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(f"ipc://{socket}")
        self._held: list[tuple[int, int, int, bytes]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(60)
        self._router.close(0)
        self._context.term()
        self._folder.cleanup()

    def release_held(self) -> None:
        """Land what `hold` kept back."""
        self._order(self._land_held)

    def say_to_all(self, message: m.FromSidecar) -> None:
        self.say_bytes_to_all(m.pack(message))

    def say_bytes_to_all(self, frame: bytes) -> None:
        self._order(lambda: self._say(frame))

    def _say(self, frame: bytes) -> None:
        for peer in self._routes.values():
            self._router.send_multipart([peer, frame])

    def forget_sessions(self) -> None:
        """Behave like a restarted sidecar behind the same connection."""
        self._order(self._forget)

    def _order(self, order: Callable[[], None]) -> None:
        """Have the stub's thread do something, and return when it is done."""
        done = threading.Event()
        self._orders.put(order)
        self._orders.put(done.set)
        assert done.wait(60)

    def wait_for(self, kind: type, count: int = 1, seconds: float = 60) -> list:
        """Return the messages of `kind` once there are `count`."""
        with self.seen_changed:
            enough = self.seen_changed.wait_for(lambda: len(self._noted(kind)) >= count, seconds)
            noted = self._noted(kind)
        assert enough, f"{len(noted)} {kind.__name__} within {seconds} s, expected {count}"
        return noted

    def of(self, kind: type) -> list:
        """Return the messages of `kind`, those included that were answered and not yet noted."""
        if not self._closing.is_set():
            self._order(lambda: None)
        return self._noted(kind)

    def _noted(self, kind: type) -> list:
        return [message for message in self.seen if isinstance(message, kind)]

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._router.poll(5):
                identity, frame = self._router.recv_multipart()
                message = m.unpack_from_connector(frame)
                self._take(identity, message)
                with self.seen_changed:
                    self.seen.append(message)
                    self.seen_changed.notify_all()
            while not self._orders.empty():
                self._orders.get()()

    def _send(self, session: int, message: m.FromSidecar) -> None:
        self._router.send_multipart([self._routes[session], m.pack(message)])

    def _forget(self) -> None:
        self._peers.clear()
        self._held.clear()

    def _take(self, identity: bytes, message: m.FromConnector) -> None:
        if isinstance(message, m.Hello):
            self._welcome(identity, message)
        elif message.session not in self._peers:
            self._router.send_multipart([identity, m.pack(m.SessionUnknown(message.session))])
        elif isinstance(message, m.Contract):
            pass  # it is in `seen`
        elif isinstance(message, m.Lookup):
            self._look_up(message)
        elif isinstance(message, m.Fetch):
            for index, key in enumerate(message.keys):
                self._fetch(message.session, message.job, index, key)
        elif isinstance(message, m.Release):
            self._peers[message.session].free.update(message.slots)
            self._land_waiting(message.session)
        elif isinstance(message, m.Store):
            self._store(message)

    def _welcome(self, identity: bytes, hello: m.Hello) -> None:
        if self.behaviour.refuse:
            self._router.send_multipart([identity, m.pack(m.Refused(self.behaviour.refuse))])
            return
        session, self._next = self._next, self._next + 1
        files = _Files(self._folder.name, session, hello, self._slots) if hello.role == "worker" else None
        self._peers[session] = _Peer(hello, files, set(range(self._slots)))
        self._routes[session] = identity
        b = self.behaviour
        self._send(
            session,
            m.Welcome(
                b.protocol,
                session,
                files and files.buffer(0),
                files and files.buffer(1, b.small_slots),
                b.lookup_deadline_ms,
                b.fetch_deadline_ms,
                b.isolation,
                b"salt",
            ),
        )

    def _look_up(self, message: m.Lookup) -> None:
        if not self.behaviour.answer_lookups:
            return
        found = 0
        while found < len(message.keys[0]) and all(keys[found] in self.chunks for keys in message.keys):
            found += 1
        self._send(message.session, m.Found(message.lookup, found))

    def _fetch(self, session: int, job: int, index: int, key: bytes) -> None:
        order = self.behaviour.fetch(job, index, key)
        if order == "land" and key not in self.chunks:
            order = "missing"
        if order == "hold":
            self._held.append((session, job, index, key))
        elif order == "land":
            self._peers[session].waiting.append((job, index, key))
            self._land_waiting(session)
        elif order != "ignore":
            self._send(session, m.ChunkFailed(job, index, order, "as the test asked"))

    def _land_held(self) -> None:
        held, self._held = self._held, []
        for session, job, index, key in held:
            self._peers[session].waiting.append((job, index, key))
            self._land_waiting(session)

    def _land_waiting(self, session: int) -> None:
        peer = self._peers[session]
        assert peer.files is not None
        while peer.waiting and peer.free:
            job, index, key = peer.waiting.pop(0)
            slot = peer.free.pop()
            image = bytearray(values_image(peer.hello, self.chunks[key]))
            self.behaviour.damage(index, image)
            start = slot * peer.files.slot_bytes
            peer.files.maps[0][start : start + len(image)] = bytes(image)
            self._send(session, m.Landed(job, index, slot))

    def _store(self, message: m.Store) -> None:
        peer = self._peers[message.session]
        assert peer.files is not None
        outcome = self.behaviour.store(message.key)
        if outcome == "stored":
            start = message.slot * peer.files.slot_bytes
            self.chunks[message.key] = bytes(peer.files.maps[1][start : start + chunk_bytes(peer.hello)])
        self._send(message.session, m.Stored(message.slot, outcome))

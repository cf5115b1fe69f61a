"""A small client that talks to a sidecar as the connector does."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import zmq
from sidecar_chunks import Chunk
from sidecar_process import ANSWER_SECONDS

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.buffers import MappedBuffer
from shadowserve_dataplane.connector.landed_image import ValuesImage, parse_image
from shadowserve_dataplane.connector.messages import (
    PROTOCOL,
    ChunkFailed,
    Fetch,
    Found,
    FromConnector,
    FromSidecar,
    Hello,
    Landed,
    Lookup,
    Release,
    Store,
    Welcome,
    pack,
    unpack_from_sidecar,
)

Message = TypeVar("Message")


@dataclass(frozen=True)
class Restored:
    """What a fetch brought: values of the chunks that landed, outcomes of the others, by index."""

    values: dict[int, bytes]
    failed: dict[int, str]


class Client:
    """One connector half: says what it is told to, and waits for answers."""

    def __init__(self, socket: Path, shape: KvShape, **hello: Any) -> None:
        fields: dict[str, Any] = {"protocol": PROTOCOL, "role": "worker", "engine": "engine-a", "rank": 0, "world": 1}
        extents = (shape.layers, shape.kv_heads, shape.head_dim, shape.dtype.value, shape.tokens)
        names = ("layers", "kv_heads", "head_dim", "dtype", "chunk_tokens")
        self.hello = Hello(**(fields | dict(zip(names, extents, strict=True)) | hello))
        self.shape = shape
        self.session = 0
        self.welcome: Welcome | None = None
        self.landing: MappedBuffer | None = None
        self.staging: MappedBuffer | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.reconnect_ivl = 20
        self._socket.connect(f"ipc://{socket}")
        self._early: list[FromSidecar] = []

    def say_hello(self) -> Welcome:
        """Open a session and map its buffers."""
        self.send(self.hello)
        welcome = self.welcome = self.receive(Welcome)
        self.session = welcome.session
        self.landing = MappedBuffer.open(welcome.landing, 0) if welcome.landing else None
        self.staging = MappedBuffer.open(welcome.staging, 0) if welcome.staging else None
        return welcome

    def send(self, message: FromConnector) -> None:
        self._socket.send(pack(message))

    def send_frame(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self, *wanted: type[Message], seconds: float = ANSWER_SECONDS) -> Message:
        """Return the next message of one of these kinds; others are kept for later calls."""
        for message in self._early:
            if isinstance(message, wanted):
                self._early.remove(message)
                return message
        limit = time.monotonic() + seconds
        while self._socket.poll(max(0, round(1000 * (limit - time.monotonic())))):
            message = unpack_from_sidecar(self._socket.recv())
            if isinstance(message, wanted):
                return message
            self._early.append(message)
        raise AssertionError(f"no {wanted} within {seconds} s, but {self._early}")

    def silent(self, *unwanted: type) -> bool:
        """Return whether no message of these kinds has come so far."""
        while self._socket.poll(0):
            self._early.append(unpack_from_sidecar(self._socket.recv()))
        return not any(isinstance(message, unwanted) for message in self._early)

    def fetch(self, job: int, chunks: Sequence[Chunk], deadline_ms: int = 30_000) -> None:
        """Ask for the chunks; the answers come one by one."""
        self.send(Fetch(self.session, job, [chunk.key for chunk in chunks], deadline_ms))

    def restore(self, job: int, chunks: Sequence[Chunk], deadline_ms: int = 30_000) -> "Restored":
        """Fetch the chunks, read what lands, and release every slot at once."""
        self.fetch(job, chunks, deadline_ms)
        restored = Restored({}, {})
        for _ in chunks:
            answer = self.receive(Landed, ChunkFailed)
            assert answer.job == job
            if isinstance(answer, Landed):
                restored.values[answer.index] = self.values(answer.slot)
                self.release(job, answer.slot)
            else:
                restored.failed[answer.index] = answer.outcome
        return restored

    def release(self, job: int, *slots: int) -> None:
        self.send(Release(self.session, job, list(slots)))

    def values(self, slot: int) -> bytes:
        """Return the values that lie in a landing slot."""
        assert self.landing is not None
        image = parse_image(self.landing.slot(slot), self.shape)
        assert isinstance(image, ValuesImage)
        return image.values.tobytes()

    def look_up(self, number: int, *ranks: Sequence[Chunk]) -> int:
        """Return how many leading chunks are there."""
        self.send(Lookup(self.session, number, [[chunk.key for chunk in chunks] for chunks in ranks]))
        found = self.receive(Found)
        assert found.lookup == number
        return found.chunks

    def stage(self, slot: int, chunk: Chunk, first: bool = False) -> None:
        """Lay a chunk into a staging slot and have it stored."""
        assert self.staging is not None
        self.staging.slot(slot)[: len(chunk.values)] = chunk.values
        self.send(Store(self.session, slot, chunk.key, first))

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

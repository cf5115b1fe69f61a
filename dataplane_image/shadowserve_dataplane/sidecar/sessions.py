"""Who is talking: sessions of the engine's connector halves. State only: a `Hello` in, what follows from it out.

A sidecar serves one engine: a scheduler half and one worker half per rank. A `Hello` replaces the session of the same
half (the engine was restarted, or its connection was), and one with another engine id replaces every session of the
engine before it. Whatever a replaced session held goes back, and its number is never given again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.connector.messages import PROTOCOL, Hello

MAX_WORLD = 64
_MAX_EXTENT = 65_535
"""Layers, heads, head dim and tokens are 16-bit fields of a chunk's header."""
_MAX_ENGINE_NAME = 256


@dataclass(frozen=True, slots=True)
class Session:
    """One connector half. `peer` is the ZeroMQ routing id that answers go to."""

    number: int
    peer: bytes
    role: Literal["scheduler", "worker"]
    engine: str
    rank: int
    world: int
    shape: KvShape

    @property
    def half(self) -> tuple[str, int]:
        """What there is one of per engine."""
        return self.role, self.rank


@dataclass(frozen=True, slots=True)
class Greeted:
    """A `Hello` that is accepted: the new session, and those that end by it."""

    session: Session
    replaced: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A `Hello` that cannot be served, and what would help."""

    reason: str


class Sessions:
    """The sessions that are open. `new_number` gives numbers that do not repeat, not even after a restart."""

    def __init__(self, new_number: Callable[[], int]) -> None:
        self._new_number = new_number
        self._open: dict[int, Session] = {}

    def __len__(self) -> int:
        return len(self._open)

    def greet(self, peer: bytes, hello: Hello) -> Greeted | Refusal:
        """Open a session for `hello`, or say why not; nothing changes in that case."""
        shape = shape_of(hello)
        if isinstance(shape, Refusal):
            return shape
        if obstacle := self._odd_one_out(hello, shape):
            return obstacle
        session = Session(self._new_number(), peer, hello.role, hello.engine, hello.rank, hello.world, shape)
        replaced = tuple(old for old in self._open.values() if old.engine != session.engine or old.half == session.half)
        for old in replaced:
            del self._open[old.number]
        self._open[session.number] = session
        return Greeted(session, replaced)

    def find(self, number: int, peer: bytes) -> Session | None:
        """Return the session if it is open and `peer` is its owner."""
        session = self._open.get(number)
        return session if session is not None and session.peer == peer else None

    def _odd_one_out(self, hello: Hello, shape: KvShape) -> Refusal | None:
        others = (s for s in self._open.values() if s.role == hello.role == "worker" and s.engine == hello.engine)
        for other in others:
            if other.rank != hello.rank and (other.shape, other.world) != (shape, hello.world):
                return Refusal(
                    f"rank {hello.rank} of {hello.world} has {shape}, rank {other.rank} of {other.world} has "
                    f"{other.shape}; all ranks must have the same chunk shape: use tensor parallelism only"
                )
        return None

    def close(self, number: int) -> None:
        """End a session whose terms could not be met."""
        self._open.pop(number, None)


def shape_of(hello: Hello) -> KvShape | Refusal:
    """Return the chunk shape that `hello` describes, or what is wrong with it."""
    if hello.protocol != PROTOCOL:
        return Refusal(
            f"the connector speaks protocol {hello.protocol}, this sidecar protocol {PROTOCOL}; "
            "use the connector of the same release as the sidecar"
        )
    extents = {
        "layers": hello.layers,
        "kv_heads": hello.kv_heads,
        "head_dim": hello.head_dim,
        "chunk_tokens": hello.chunk_tokens,
    }
    for name, extent in extents.items():
        if not 0 < extent <= _MAX_EXTENT:
            return Refusal(f"{name} is {extent}; it must be between 1 and {_MAX_EXTENT}")
    if hello.dtype not in {dtype.value for dtype in KvDtype}:
        known = ", ".join(KvDtype)
        return Refusal(f"dtype {hello.dtype!r} is none of {known}; start the engine with such a KV cache dtype")
    if not (0 < hello.world <= MAX_WORLD and 0 <= hello.rank < hello.world):
        return Refusal(f"rank {hello.rank} of {hello.world}; ranks run from 0 and there are at most {MAX_WORLD}")
    if not 0 < len(hello.engine) <= _MAX_ENGINE_NAME:
        return Refusal(f"the engine's name has {len(hello.engine)} characters; 1 to {_MAX_ENGINE_NAME} are allowed")
    return KvShape(hello.layers, hello.kv_heads, hello.head_dim, KvDtype(hello.dtype), hello.chunk_tokens)

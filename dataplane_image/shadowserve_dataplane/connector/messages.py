"""Messages between connector and sidecar: ZeroMQ DEALER (connector) to ROUTER (sidecar), one msgpack struct a frame.

Payload never travels here: it lies in the landing and staging buffers, files that both sides map.

A conversation: `Hello` -> `Welcome` or `Refused`; then any of `Lookup` -> `Found`; `Fetch` -> (`Landed` or
`ChunkFailed`) per chunk; each landed slot goes back with `Release`; `Store` -> `Stored`. Every message after `Welcome`
carries the session it gave; a sidecar that does not know the session (it was restarted) answers `SessionUnknown`, and
the connector says `Hello` again. Requests are matched by ids that the connector chooses.

Protocol history (bump on any change of meaning, field or order):
  1  first version
  2  `Contract`
"""

from typing import Literal

import msgspec

PROTOCOL = 2


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of each connector half. `engine` names the engine instance; shape fields as in `KvShape`."""

    protocol: int
    role: Literal["scheduler", "worker"]
    engine: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    chunk_tokens: int
    rank: int
    world: int


class Buffer(msgspec.Struct, frozen=True):
    """A file to map: slot `i` is at `i * slot_bytes`. `slots` lists those that this connector half may use."""

    path: str
    bytes: int
    slot_bytes: int
    slots: list[int]


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The sidecar's terms. Landing slots are leased by the sidecar job by job, staging slots belong to the worker.

    `salt` is mixed into the namespace; with `isolation == "PerTenant"` the request's `cache_salt` is mixed in too.
    """

    protocol: int
    session: int
    landing: Buffer | None
    staging: Buffer | None
    lookup_deadline_ms: int
    fetch_deadline_ms: int
    isolation: Literal["Shared", "PerPool", "PerTenant"]
    salt: bytes


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The sidecar cannot serve this connector; it says what would help. The connector goes on without a cache."""

    reason: str


class SessionUnknown(msgspec.Struct, frozen=True, tag="session_unknown"):
    """The sidecar does not know the session in a message (it was restarted): say `Hello` again."""

    session: int


class Contract(msgspec.Struct, frozen=True, tag="contract"):
    """What the scheduler half makes of model, shape and salt: engines share chunks if they say the same, else never.

    It is said when it is known, and in every session anew.
    """

    session: int
    digest: bytes


class Lookup(msgspec.Struct, frozen=True, tag="lookup"):
    """How many leading chunks of this chain does the store have? One list of keys per rank."""

    session: int
    lookup: int
    keys: list[list[bytes]]


class Found(msgspec.Struct, frozen=True, tag="found"):
    """The answer to `Lookup`: this many leading chunks exist (for every rank)."""

    lookup: int
    chunks: int


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Restore these chunks into landing slots before `deadline_ms` from now has passed."""

    session: int
    job: int
    keys: list[bytes]
    deadline_ms: int


class Landed(msgspec.Struct, frozen=True, tag="landed"):
    """Chunk `index` of the job lies whole in landing slot `slot`, which belongs to the worker until `Release`."""

    job: int
    index: int
    slot: int


class ChunkFailed(msgspec.Struct, frozen=True, tag="chunk_failed"):
    """Chunk `index` will not come; `outcome` is a `ChunkOutcome`, `reason` is for people."""

    job: int
    index: int
    outcome: str
    reason: str


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The worker no longer waits for this job; chunks that land later go straight back."""

    session: int
    job: int


class Release(msgspec.Struct, frozen=True, tag="release"):
    """These landing slots were scattered."""

    session: int
    job: int
    slots: list[int]


class Store(msgspec.Struct, frozen=True, tag="store"):
    """Staging slot `slot` holds a finished chunk in canonical layout; `first` says whether it begins a context."""

    session: int
    slot: int
    key: bytes
    first: bool


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """Staging slot `slot` may be reused; `outcome` is `stored`, `present` or `dropped:<reason>`."""

    slot: int
    outcome: str


FromConnector = Hello | Contract | Lookup | Fetch | Cancel | Release | Store
FromSidecar = Welcome | Refused | SessionUnknown | Found | Landed | ChunkFailed | Stored

_encoder = msgspec.msgpack.Encoder()
_from_connector: msgspec.msgpack.Decoder[FromConnector] = msgspec.msgpack.Decoder(FromConnector)
_from_sidecar: msgspec.msgpack.Decoder[FromSidecar] = msgspec.msgpack.Decoder(FromSidecar)


def pack(message: FromConnector | FromSidecar) -> bytes:
    """Return the bytes of one message."""
    return _encoder.encode(message)


def unpack_from_connector(frame: bytes | memoryview) -> FromConnector:
    """Parse what a connector sent. Raises `msgspec.DecodeError` (or its subclass `ValidationError`)."""
    return _from_connector.decode(frame)


def unpack_from_sidecar(frame: bytes | memoryview) -> FromSidecar:
    """Parse what a sidecar sent. Raises `msgspec.DecodeError` (or its subclass `ValidationError`)."""
    return _from_sidecar.decode(frame)

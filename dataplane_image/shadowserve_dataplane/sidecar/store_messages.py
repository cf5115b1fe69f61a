"""Messages between the sidecar and its store process, over the process's standard input and output.

Lock-step, one chunk at a time: `Work` -> `Done`, or `Work` -> `Encoded` -> `Confirm` -> `Done`. The question in between
is there because a staging slot may get a new owner while it is encoded: only the sidecar knows, and what was encoded
then must not reach the store. A frame is a 32-bit little-endian length and one msgpack struct.
"""

import struct
from typing import BinaryIO

import msgspec

from shadowserve_dataplane.chunks import KvDtype
from shadowserve_dataplane.sidecar.settings import Config

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 1 << 20


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """First message to the process: its settings, and the file of the staging buffer."""

    config: Config
    staging: str


class Work(msgspec.Struct, frozen=True, tag="work"):
    """Store the chunk that lies at `offset` of the staging file; shape fields as in `KvShape`.

    `replace`: what the store has under this key is of no use.
    """

    offset: int
    key: bytes
    first: bool
    layers: int
    kv_heads: int
    head_dim: int
    dtype: KvDtype
    tokens: int
    replace: bool = False


class Encoded(msgspec.Struct, frozen=True, tag="encoded"):
    """The chunk is encoded, and the process asks whether it shall be put."""


class Confirm(msgspec.Struct, frozen=True, tag="confirm"):
    """The answer to `Encoded`."""

    put: bool


class Done(msgspec.Struct, frozen=True, tag="done"):
    """How it ended: `outcome` is `stored`, `present`, or a `DropReason` with a detail for people."""

    outcome: str
    encoded_bytes: int = 0
    detail: str = ""


ToProcess = Setup | Work | Confirm
FromProcess = Encoded | Done

_to_process: msgspec.msgpack.Decoder[ToProcess] = msgspec.msgpack.Decoder(ToProcess)
_from_process: msgspec.msgpack.Decoder[FromProcess] = msgspec.msgpack.Decoder(FromProcess)


def framed(message: ToProcess | FromProcess) -> bytes:
    """Return the bytes of one message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def parse_from_process(body: bytes) -> FromProcess:
    """Return the message; raises `msgspec.DecodeError`."""
    return _from_process.decode(body)


def read_message(stream: BinaryIO) -> ToProcess | None:
    """Return the sidecar's next message, None when it is gone. Blocks."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    return _to_process.decode(stream.read(*LENGTH.unpack(length)))

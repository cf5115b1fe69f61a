"""What travels on a placement stream: a greeting, then frames of (kind, slot, lease, offset, length, checksum). No I/O.

Little-endian. Version history (bump on any change): 1 first version.
"""

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from shadowserve_dataplane.errors import PeerProtocolError
from shadowserve_dataplane.landing import SlotRef

VERSION = 1
TOKEN_BYTES = 32
"""A secret that the receiver gives its data plane when it attaches: others cannot write into its buffer."""
_GREETING = struct.Struct("<4sHxx32s")
_ANSWER = struct.Struct("<4sHH")
_FRAME = struct.Struct("<4sBxxxIIQQQ")
_GREETING_MAGIC = b"SSPG"
_ANSWER_MAGIC = b"SSPA"
_FRAME_MAGIC = b"SSPF"
GREETING_BYTES = _GREETING.size
ANSWER_BYTES = _ANSWER.size
FRAME_BYTES = _FRAME.size


class FrameKind(IntEnum):
    """DATA: `length` bytes follow, for `offset` of the slot. FINISH: `offset` bytes were sent. ABORT: no more come."""

    DATA = 1
    FINISH = 2
    ABORT = 3


_KINDS = frozenset(FrameKind)


class Verdict(IntEnum):
    """The receiver's answer to a greeting."""

    WELCOME = 0
    WRONG_VERSION = 1
    WRONG_TOKEN = 2


@dataclass(frozen=True, slots=True)
class PlacementFrame:
    """One frame's header."""

    kind: FrameKind
    ref: SlotRef
    offset: int
    length: int
    checksum: int


def pack_greeting(token: bytes) -> bytes:
    """Return a sender's first bytes."""
    return _GREETING.pack(_GREETING_MAGIC, VERSION, token)


def judge_greeting(greeting: bytes, token: bytes) -> Verdict:
    """Return what to answer. Raises `PeerProtocolError` for what is no greeting at all."""
    magic, version, found = _GREETING.unpack(greeting)
    if magic != _GREETING_MAGIC:
        raise PeerProtocolError(f"not a placement stream: it begins with {magic!r}")
    if version != VERSION:
        return Verdict.WRONG_VERSION
    return Verdict.WELCOME if hmac.compare_digest(found, token) else Verdict.WRONG_TOKEN


def pack_answer(verdict: Verdict) -> bytes:
    """Return the receiver's answer."""
    return _ANSWER.pack(_ANSWER_MAGIC, VERSION, verdict)


def check_answer(answer: bytes) -> None:
    """Raise `PeerProtocolError` unless the receiver welcomes us."""
    magic, version, verdict = _ANSWER.unpack(answer)
    if magic != _ANSWER_MAGIC:
        raise PeerProtocolError(f"not a placement receiver: it answers {magic!r}")
    if verdict == Verdict.WRONG_VERSION:
        raise PeerProtocolError(f"the receiver speaks placement version {version}, this sender {VERSION}")
    if verdict != Verdict.WELCOME:
        raise PeerProtocolError("the receiver does not know this token: attach again")


def pack_frame(frame: PlacementFrame) -> bytes:
    """Return a frame's header."""
    ref = frame.ref
    return _FRAME.pack(_FRAME_MAGIC, frame.kind, ref.slot, frame.length, ref.lease, frame.offset, frame.checksum)


def parse_frame(header: memoryview, slot_bytes: int) -> PlacementFrame:
    """Return a frame whose bytes lie inside a slot. Raises `PeerProtocolError`."""
    magic, kind, slot, length, lease, offset, checksum = _FRAME.unpack(header)
    if magic != _FRAME_MAGIC:
        raise PeerProtocolError(f"not a placement frame: it begins with {magic!r}")
    if kind not in _KINDS:
        raise PeerProtocolError(f"placement frame of kind {kind}")
    if kind == FrameKind.DATA and offset + length > slot_bytes:
        raise PeerProtocolError(f"placement frame for {offset}..{offset + length} of a slot of {slot_bytes} bytes")
    if kind != FrameKind.DATA and length:
        raise PeerProtocolError(f"placement frame of kind {FrameKind(kind).name} with {length} bytes")
    return PlacementFrame(FrameKind(kind), SlotRef(slot, lease), offset, length, checksum)

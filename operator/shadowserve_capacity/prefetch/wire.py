"""What master and workers say to each other: small binary messages, the same over any transport.

All numbers are little-endian. Order: kind u8, lane u32, serial u64, node u64, first u32, stop u32, report u32, then
theta as float64. Answer: kind u8, lane u32, serial u64, node u64, first u32, last u8, seconds f64, then terms as
float64. Failure: kind u8, lane u32, serial u64, node u64, then text. Call-off: kind u8, lane u32, serial u64.
"""

import struct
from dataclasses import dataclass

import numpy as np

from shadowserve_capacity.errors import WorkerError
from shadowserve_capacity.prefetch.problem import State

_ORDER = struct.Struct("<BIQQIII")
_ANSWER = struct.Struct("<BIQQIBd")
_FAILURE = struct.Struct("<BIQQ")
_CALL_OFF = struct.Struct("<BIQ")
_KINDS = ORDER, ANSWER, FAILURE, CALL_OFF = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Order:
    """Evaluate batches `first` to `stop` - 1 of `theta`.

    Answer after `report` of them, then after twice as many, and so on, and at the end.
    """

    lane: int
    serial: int
    node: int
    first: int
    stop: int
    report: int
    theta: State


@dataclass(frozen=True, slots=True)
class Answer:
    """Terms of consecutive batches; `last` ends the order, be it done or called off."""

    lane: int
    serial: int
    node: int
    first: int
    last: bool
    seconds: float
    terms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """The candidate cannot be evaluated; ends the order."""

    lane: int
    serial: int
    node: int
    text: str


@dataclass(frozen=True, slots=True)
class CallOff:
    """Stop with this order."""

    lane: int
    serial: int


Message = Order | Answer | Failure | CallOff


def encode(message: Message) -> bytes:
    """Return the message as bytes."""
    match message:
        case Order(lane, serial, node, first, stop, report, theta):
            return _ORDER.pack(ORDER, lane, serial, node, first, stop, report) + theta.tobytes()
        case Answer(lane, serial, node, first, last, seconds, terms):
            head = _ANSWER.pack(ANSWER, lane, serial, node, first, last, seconds)
            return head + struct.pack(f"<{len(terms)}d", *terms)
        case Failure(lane, serial, node, text):
            return _FAILURE.pack(FAILURE, lane, serial, node) + text.encode()
        case CallOff(lane, serial):
            return _CALL_OFF.pack(CALL_OFF, lane, serial)


def decode(data: bytes) -> Message:
    """Return the message in `data`; raises WorkerError when there is none."""
    try:
        match data[0]:
            case 1:
                _, lane, serial, node, first, stop, report = _ORDER.unpack_from(data)
                return Order(lane, serial, node, first, stop, report, np.frombuffer(data, "<f8", -1, _ORDER.size))
            case 2:
                _, lane, serial, node, first, last, seconds = _ANSWER.unpack_from(data)
                terms = struct.unpack_from(f"<{(len(data) - _ANSWER.size) // 8}d", data, _ANSWER.size)
                return Answer(lane, serial, node, first, bool(last), seconds, terms)
            case 3:
                _, lane, serial, node = _FAILURE.unpack_from(data)
                return Failure(lane, serial, node, data[_FAILURE.size :].decode())
            case 4:
                _, lane, serial = _CALL_OFF.unpack_from(data)
                return CallOff(lane, serial)
    except (IndexError, ValueError, struct.error) as error:
        raise WorkerError(f"a message of {len(data)} bytes makes no sense: {error}") from error
    raise WorkerError(f"a message of kind {data[0]} makes no sense")

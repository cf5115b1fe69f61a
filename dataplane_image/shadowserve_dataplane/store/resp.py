"""A reader of RESP2 replies (the Redis serialization protocol) without I/O, in the manner of h11.

The reader never sees a socket. It says where the next bytes go (`writable`), is told how many came (`received`) and
returns what they mean (`next_event`). The body of a bulk string goes from the socket straight into the buffer that the
caller names (`receive_into`): only the few bytes that came along with the header line are copied.

Only what GET, AUTH and ASKING answer is understood: simple strings, errors, bulk strings and nil. Anything else, and
any line that is too long or length that is not a plain decimal number up to the maximum, is a `PeerProtocolError`.
"""

from dataclasses import dataclass
from enum import Enum, auto

from shadowserve_dataplane.errors import PeerProtocolError

MAX_BULK_BYTES = 512 * 1024 * 1024
"""The longest value a server stores unless configured otherwise (`proto-max-bulk-len`)."""
MAX_LINE_BYTES = 1024
INLINE_BYTES = 16 * 1024
_SHOWN_BYTES = 40


@dataclass(frozen=True, slots=True)
class Status:
    """A simple string, such as `OK`."""

    text: str


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The server refused a command; `code` is the message's first word (`WRONGPASS`, `MOVED`, ...)."""

    message: str

    @property
    def code(self) -> str:
        """The first word of the message."""
        return self.message.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Nil:
    """There is no such key."""


@dataclass(frozen=True, slots=True)
class BulkStart:
    """A value of `size` bytes follows: answer with `receive_into` or `drain`. Comes again until you have."""

    size: int


@dataclass(frozen=True, slots=True)
class BulkData:
    """The first `available` bytes of the value are in the buffer."""

    available: int


@dataclass(frozen=True, slots=True)
class BulkEnd:
    """The value is complete and was ended as the protocol says."""


Event = Status | ErrorReply | Nil | BulkStart | BulkData | BulkEnd


class _Expect(Enum):
    LINE = auto()
    DESTINATION = auto()
    BODY = auto()
    ENDING = auto()


def encode_command(*parts: bytes) -> bytes:
    """Return a command as the array of bulk strings that servers read."""
    return b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)])


class RespReader:
    """Reads the replies of one connection, in order; after an error it must not be used again."""

    def __init__(self, max_bulk_bytes: int = MAX_BULK_BYTES, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bulk_bytes = max_bulk_bytes
        self._max_line_bytes = max_line_bytes
        self._inline = bytearray(max(INLINE_BYTES, 2 * max_line_bytes))
        self._view = memoryview(self._inline)
        self._start = 0
        self._end = 0
        self._expect = _Expect.LINE
        self._size = 0
        self._filled = 0
        self._reported = 0
        self._destination: memoryview | None = None

    @property
    def between_replies(self) -> bool:
        """Whether the last reply is complete and nothing of the next one is there."""
        return self._expect is _Expect.LINE and self._start == self._end

    def writable(self) -> memoryview:
        """Return where the next bytes from the peer go: as many as fit, any number at a time.

        Raises `RuntimeError` while a `BulkStart` is unanswered, for nobody knows where those bytes go.
        """
        if self._expect is _Expect.DESTINATION:
            raise RuntimeError("answer BulkStart with receive_into or drain first")
        if self._expect is _Expect.BODY and self._destination is not None:
            return self._destination[self._filled :]
        if self._start:
            self._inline[: self._end - self._start] = self._view[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Take note that `count` bytes were written to the start of `writable()`."""
        if self._expect is _Expect.BODY and self._destination is not None:
            self._filled += count
        else:
            self._end += count

    def next_event(self) -> Event | None:
        """Return what the bytes so far mean, one thing at a time; None: more bytes are needed.

        Raises `PeerProtocolError`.
        """
        match self._expect:
            case _Expect.LINE:
                return self._line()
            case _Expect.DESTINATION:
                return BulkStart(self._size)
            case _Expect.BODY:
                return self._body()
            case _Expect.ENDING:
                return self._ending()

    def receive_into(self, destination: memoryview) -> None:
        """Answer a `BulkStart`: the value goes to `destination`, which has exactly its size."""
        if len(destination) != self._size:
            raise ValueError(f"a value of {self._size} bytes does not go into {len(destination)} bytes")
        early = min(self._end - self._start, self._size)
        destination[:early] = self._view[self._start : self._start + early]
        self._start += early
        self._begin_body(destination, early)

    def drain(self) -> None:
        """Answer a `BulkStart`: read past the value and forget it; only `BulkEnd` follows."""
        self._begin_body(None, 0)

    def _begin_body(self, destination: memoryview | None, filled: int) -> None:
        if self._expect is not _Expect.DESTINATION:
            raise RuntimeError("there is no BulkStart to answer")
        self._expect = _Expect.BODY
        self._destination = destination
        self._filled = filled
        self._reported = 0

    def _line(self) -> Event | None:
        if self._start == self._end:
            return None
        kind = self._inline[self._start]
        if kind not in b"+-$":
            raise PeerProtocolError(f"not a reply to GET, AUTH or ASKING: {self._shown()}")
        stop = self._inline.find(b"\r\n", self._start, min(self._end, self._start + self._max_line_bytes + 2))
        if stop < 0:
            if self._end - self._start > self._max_line_bytes:
                raise PeerProtocolError(f"a line of more than {self._max_line_bytes} bytes: {self._shown()}")
            return None
        text = bytes(self._view[self._start + 1 : stop])
        self._start = stop + 2
        if kind == b"$"[0]:
            return self._bulk_header(text)
        shown = text.decode("utf-8", "replace")
        return Status(shown) if kind == b"+"[0] else ErrorReply(shown)

    def _bulk_header(self, digits: bytes) -> Event:
        if digits == b"-1":
            return Nil()
        plain = (
            digits.isdigit() and len(digits) <= len(str(self._max_bulk_bytes)) and str(int(digits)) == digits.decode()
        )
        if not plain or int(digits) > self._max_bulk_bytes:
            shown = digits[:_SHOWN_BYTES]
            raise PeerProtocolError(f"length of a value {shown!r} is not a number from 0 to {self._max_bulk_bytes}")
        self._size = int(digits)
        self._expect = _Expect.DESTINATION
        return BulkStart(self._size)

    def _body(self) -> Event | None:
        if self._destination is None:
            take = min(self._end - self._start, self._size - self._filled)
            self._start += take
            self._filled += take
        elif self._filled > self._reported:
            self._reported = self._filled
            return BulkData(self._filled)
        if self._filled < self._size:
            return None
        self._destination = None
        self._expect = _Expect.ENDING
        return self._ending()

    def _ending(self) -> Event | None:
        if self._end - self._start < 2:
            return None
        if not self._inline.startswith(b"\r\n", self._start):
            raise PeerProtocolError(f"a value of {self._size} bytes is followed by {self._shown()}")
        self._start += 2
        self._expect = _Expect.LINE
        return BulkEnd()

    def _shown(self) -> str:
        return repr(bytes(self._view[self._start : min(self._end, self._start + _SHOWN_BYTES)]))

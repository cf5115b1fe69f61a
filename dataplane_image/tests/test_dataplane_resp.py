"""The reader of RESP replies: every reply, cut at every byte, and everything that is no reply."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowserve_dataplane.errors import PeerProtocolError
from shadowserve_dataplane.store.resp import (
    INLINE_BYTES,
    BulkData,
    BulkEnd,
    BulkStart,
    ErrorReply,
    Event,
    Nil,
    RespReader,
    Status,
    encode_command,
)

Reply = Status | ErrorReply | Nil | bytes
STREAM = b"+OK\r\n$5\r\nhello\r\n$-1\r\n-ERR no\r\n$0\r\n\r\n$4\r\n\r\n$1\r\n+\r\n"
REPLIES: list[Reply] = [Status("OK"), b"hello", Nil(), ErrorReply("ERR no"), b"", b"\r\n$1", Status("")]


class Caller:
    """Feeds a reader as a socket would, and collects what it says; bodies go to buffers of their own size."""

    def __init__(self, reader: RespReader, drain: bool = False) -> None:
        self.reader = reader
        self.replies: list[Reply] = []
        self.events: list[Event] = []
        self._drain = drain
        self._body = bytearray()

    def feed(self, data: bytes) -> None:
        while data:
            space = self.reader.writable()
            count = min(len(space), len(data))
            space[:count] = data[:count]
            self.reader.received(count)
            data = data[count:]
            while (event := self.reader.next_event()) is not None:
                self.events.append(event)
                self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case BulkStart(size) if not self._drain:
                self._body = bytearray(size)
                self.reader.receive_into(memoryview(self._body))
            case BulkStart():
                self.reader.drain()
            case BulkEnd():
                self.replies.append(bytes(self._body))
            case Status() | ErrorReply() | Nil():
                self.replies.append(event)


def replies_to(pieces: Iterable[bytes], reader: RespReader | None = None) -> list[Reply]:
    caller = Caller(reader or RespReader())
    for piece in pieces:
        caller.feed(piece)
    return caller.replies


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_replies_cut_at_any_byte(cut: int) -> None:
    reader = RespReader()
    assert replies_to([STREAM[:cut], STREAM[cut:]], reader) == REPLIES
    assert reader.between_replies


def test_replies_one_byte_at_a_time() -> None:
    assert replies_to(bytes([byte]) for byte in STREAM) == REPLIES


def encoded(reply: Reply) -> bytes:
    match reply:
        case Status(text):
            return f"+{text}\r\n".encode()
        case ErrorReply(message):
            return f"-{message}\r\n".encode()
        case Nil():
            return b"$-1\r\n"
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)


texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=60)
bodies = st.binary(max_size=200) | st.integers(0, 3 * INLINE_BYTES).map(lambda size: b"\r\n$7\r\n+" * (size // 8))
replies = st.one_of(texts.map(Status), texts.map(ErrorReply), st.just(Nil()), bodies)


@given(st.lists(replies, max_size=8), st.lists(st.integers(0, 4 * INLINE_BYTES), max_size=20))
def test_any_replies_in_any_pieces(wanted: list[Reply], cuts: list[int]) -> None:
    stream = b"".join(map(encoded, wanted))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(edges)]
    assert replies_to(pieces) == wanted


@given(st.binary(max_size=300), st.integers(1, 50))
def test_garbage_is_an_error_or_nothing_but_never_a_crash(garbage: bytes, step: int) -> None:
    caller = Caller(RespReader(max_bulk_bytes=1000, max_line_bytes=64))
    try:
        for start in range(0, len(garbage), step):
            caller.feed(garbage[start : start + step])
    except PeerProtocolError:
        return
    assert all(len(reply) <= 1000 for reply in caller.replies if isinstance(reply, bytes))


def test_the_body_goes_straight_to_the_destination() -> None:
    reader = RespReader()
    caller = Caller(reader)
    caller.feed(b"$100000\r\nab")
    space = reader.writable()
    assert len(space) == 99_998  # the whole rest at once, not a piece for an inner buffer
    space[:10] = b"0123456789"
    reader.received(10)
    assert reader.next_event() == BulkData(12)
    assert reader.next_event() is None
    assert bytes(caller._body[:12]) == b"ab0123456789"


def test_progress_is_told_once_for_every_piece() -> None:
    caller = Caller(RespReader())
    for piece in (b"$6\r\n", b"ab", b"cdef", b"\r\n"):
        caller.feed(piece)
    assert caller.events == [BulkStart(6), BulkData(2), BulkData(6), BulkEnd()]


def test_a_value_nobody_wants_is_read_past() -> None:
    reader = RespReader()
    caller = Caller(reader, drain=True)
    caller.feed(b"$200000\r\n" + bytes(200_000) + b"\r\n+OK\r\n")
    assert caller.events == [BulkStart(200_000), BulkEnd(), Status("OK")]


def test_nothing_is_taken_before_the_caller_says_where_to() -> None:
    reader = RespReader()
    space = reader.writable()
    space[:6] = b"$3\r\nab"
    reader.received(6)
    assert reader.next_event() == BulkStart(3)
    assert reader.next_event() == BulkStart(3)
    with pytest.raises(RuntimeError, match="BulkStart"):
        reader.writable()
    with pytest.raises(ValueError, match="3 bytes"):
        reader.receive_into(memoryview(bytearray(4)))
    reader.receive_into(memoryview(bytearray(3)))
    assert reader.next_event() == BulkData(2)


@pytest.mark.parametrize(
    "data",
    [
        b":1\r\n",
        b"*1\r\n$1\r\na\r\n",
        b"*-1\r\n",
        b"_\r\n",
        b"%1\r\n",
        b">2\r\n",
        b"HTTP/1.1 400\r\n",
        b"\x15\x03\x03",
        b"\r\n",
    ],
)
def test_what_is_no_reply_is_refused_at_its_first_byte(data: bytes) -> None:
    reader = RespReader()
    reader.writable()[:1] = data[:1]
    reader.received(1)
    with pytest.raises(PeerProtocolError, match="not a reply"):
        reader.next_event()


@pytest.mark.parametrize(
    "length",
    [
        b"",
        b"-2",
        b"+5",
        b" 5",
        b"5 ",
        b"05",
        b"5_0",
        b"0x5",
        b"1e3",
        b"1001",
        b"99999999999999999999",
        b"-0",
        "٣".encode(),
    ],
)
def test_lengths_that_are_no_plain_decimal_within_the_maximum_are_refused(length: bytes) -> None:
    with pytest.raises(PeerProtocolError, match="from 0 to 1000"):
        replies_to([b"$%b\r\n" % length], RespReader(max_bulk_bytes=1000))


def test_the_longest_value_allowed_is_allowed() -> None:
    assert replies_to([b"$1000\r\n", bytes(1000), b"\r\n"], RespReader(max_bulk_bytes=1000)) == [bytes(1000)]


@pytest.mark.parametrize("kind", [b"+", b"-", b"$"])
def test_a_line_without_end_is_refused(kind: bytes) -> None:
    with pytest.raises(PeerProtocolError, match="more than 64 bytes"):
        replies_to([kind + b"1" * 100], RespReader(max_line_bytes=64))


@pytest.mark.parametrize("ending", [b"xx", b"\n\r", b"\rx"])
def test_a_value_longer_than_it_says_is_refused(ending: bytes) -> None:
    with pytest.raises(PeerProtocolError, match="3 bytes is followed by"):
        replies_to([b"$3\r\nabc" + ending])


def test_an_error_reply_has_a_code() -> None:
    assert ErrorReply("MOVED 7 host:1").code == "MOVED"
    assert ErrorReply("").code == ""


def test_commands_are_arrays_of_bulk_strings() -> None:
    assert encode_command(b"GET", b"k\r\n") == b"*2\r\n$3\r\nGET\r\n$3\r\nk\r\n\r\n"

"""The way to one shard: its connection, what was asked there, and the value that is coming in.

A lane knows one shard only. What needs the whole cluster (a redirect, a request that must wait) goes back to the
`Traffic` it runs for.
"""

import math
import selectors
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from shadowserve_dataplane.errors import NetworkError, PeerProtocolError, ShadowServeError, StoreRefused
from shadowserve_dataplane.pool import BufferPool
from shadowserve_dataplane.store.connection import ShardConnection
from shadowserve_dataplane.store.incoming import Incoming, TooLarge
from shadowserve_dataplane.store.node import no_permission, not_let_in
from shadowserve_dataplane.store.resp import (
    BulkData,
    BulkEnd,
    BulkStart,
    ErrorReply,
    Event,
    Nil,
    Status,
    encode_command,
)
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.sink import BulkRequest, ChunkSink
from shadowserve_dataplane.store.topology import Address, Redirect

TURN_BYTES = 512 * 1024
"""About how much one shard may deliver before the others get their turn: some frames' worth."""
MAX_FAILURES = 4
"""Connections that fail in a row until a shard counts as down."""
MAX_TRIES = 3
"""Times one request is sent because the connection broke before its answer began."""
STARVED_POLL_SECONDS = 0.002
_BACKOFF_SECONDS = (0.0, 0.05, 0.1, 0.2)
_PASSING = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY")
_ASKING = encode_command(b"ASKING")


@dataclass(slots=True)
class Errand:
    """One request on its way to an answer."""

    request: BulkRequest
    name: bytes
    slot: int
    asking: bool = False
    tries: int = 0
    redirects: int = 0


class Traffic(Protocol):
    """What a lane runs for: one `BulkGetter.get`."""

    sink: ChunkSink

    def redirected(self, errand: Errand, redirect: Redirect) -> None:
        """Send `errand` to where the cluster says it belongs."""

    def postponed(self, errand: Errand, error: ShadowServeError) -> None:
        """Send `errand` again a little later, unless that was done too often."""

    def unreachable(self) -> None:
        """Take note that a shard does not answer: perhaps another one has its slots by now."""


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """What all lanes of one getter share; `depth` is how many GETs are sent ahead on one connection."""

    store: StoreSettings
    buffers: BufferPool
    selector: selectors.BaseSelector
    clock: Callable[[], float]
    depth: int


class ShardLane:
    """Sends GETs to one shard, at most `depth` ahead, and hands what comes to the sink."""

    def __init__(self, address: Address, settings: LaneSettings) -> None:
        self.address = address
        self.backlog: deque[Errand] = deque()
        self._settings = settings
        self._outstanding: deque[Errand] = deque()
        self._incoming: Incoming | TooLarge | None = None
        self._connection: ShardConnection | None = None
        self._hungry = False  # bytes may be there that the selector does not report
        self._starved = False  # a value waits for a free slab
        self._failures = 0
        self._last_error: ShadowServeError | None = None
        self._retry_at = 0.0
        self._heard_at = 0.0

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    @property
    def busy(self) -> bool:
        """Whether anything is still to be answered."""
        return bool(self.backlog or self._outstanding)

    @property
    def room(self) -> int:
        """How many more requests the lane takes before they only wait."""
        return self._settings.depth - len(self.backlog) - len(self._outstanding)

    @property
    def trouble(self) -> str:
        """What went wrong last, for the message of a chunk that did not come in time; may be empty."""
        return f" (before that: {self._last_error})" if self._last_error is not None else ""

    def forgive(self) -> None:
        """Forget past failures: new work may try at once."""
        self._failures = 0
        self._retry_at = 0.0
        self._last_error = None

    def patience(self, now: float) -> float:
        """Return after how many seconds the lane wants a `turn` although the selector reports nothing."""
        if self._starved:
            return STARVED_POLL_SECONDS
        if self._connection is None:
            down = self._failures >= MAX_FAILURES  # then what waits fails at once
            return math.inf if not self.backlog else 0.0 if down else max(0.0, self._retry_at - now)
        can_send = self._connection.ready and self.backlog and len(self._outstanding) < self._settings.depth
        return 0.0 if self._hungry or can_send else math.inf

    def turn(self, traffic: Traffic) -> None:
        """Do what can be done now: connect, send, receive about `TURN_BYTES`."""
        self._hungry = False
        try:
            if self._connection is None:
                self._connection = self._connect(traffic)
            if self._connection is not None:
                self._exchange(self._connection, traffic)
        except (NetworkError, PeerProtocolError, StoreRefused) as error:
            self._break(error, traffic)

    def check_silence(self, traffic: Traffic) -> None:
        """Give the connection up when it is not made in time, or has owed a reply for too long."""
        if self._connection is None or self._starved or not self.busy:
            return
        store = self._settings.store
        limit = store.read_timeout if self._connection.ready else store.connect_timeout
        if self._settings.clock() - self._heard_at > limit:
            self._break(self._connection.silent(limit), traffic)

    def abandon(self, error: ShadowServeError, sink: ChunkSink) -> None:
        """Fail everything unanswered; the connection goes too if it still owes replies."""
        if self._outstanding or (self._connection is not None and not self._connection.ready):
            self.close()
        self._fail([*self._outstanding, *self.take_backlog()], error, sink)
        self._outstanding.clear()
        self._release()

    def take_backlog(self) -> list[Errand]:
        """Return the requests not sent yet and forget them."""
        errands = list(self.backlog)
        self.backlog.clear()
        return errands

    def reset(self) -> None:
        """Forget everything without telling anybody, and close the connection."""
        self.close()
        self.backlog.clear()
        self._outstanding.clear()
        self._release()

    def close(self) -> None:
        """Close the connection; the lane makes a new one when it needs one."""
        connection, self._connection = self._connection, None
        self._hungry = self._starved = False
        if connection is not None:
            connection.close()

    def _connect(self, traffic: Traffic) -> ShardConnection | None:
        now = self._settings.clock()
        if not self.backlog:
            return None
        if now >= self._retry_at:
            self._heard_at = now
            store, selector = self._settings.store, self._settings.selector
            return ShardConnection(self.address, store, selector, self, self._failures)
        if self._failures >= MAX_FAILURES and self._last_error is not None:
            self._fail(self.take_backlog(), self._last_error, traffic.sink)
        return None

    def _exchange(self, connection: ShardConnection, traffic: Traffic) -> None:
        if not connection.settled:
            connection.advance()
        if connection.ready:
            self._send(connection)
            self._receive(connection, traffic)
            if self._incoming is not None:
                self._incoming.report()
            self._send(connection)

    def _send(self, connection: ShardConnection) -> None:
        if not self.backlog:
            return
        commands = []
        while self.backlog and len(self._outstanding) < self._settings.depth:
            errand = self.backlog.popleft()
            if not self._outstanding:
                self._heard_at = self._settings.clock()
            self._outstanding.append(errand)
            commands.append((_ASKING if errand.asking else b"") + encode_command(b"GET", errand.name))
        if commands:
            connection.send(b"".join(commands))

    def _receive(self, connection: ShardConnection, traffic: Traffic) -> None:
        if self._starved and not self._handle_events(connection, traffic):
            return
        taken = 0
        while taken < TURN_BYTES:
            space = connection.reader.writable()
            if connection.encrypted:  # TLS fills what it is given: other shards, and the sink, want their turn
                space = space[:TURN_BYTES]
            count = connection.receive(space)
            if count is None:
                return
            taken += count
            self._heard_at = self._settings.clock()
            if not self._handle_events(connection, traffic):
                return
            if count < len(space):
                return  # nothing is left: asking again would only cost a system call
        self._hungry = True

    def _handle_events(self, connection: ShardConnection, traffic: Traffic) -> bool:
        """Return whether more bytes can be taken: not while a value waits for a slab."""
        was_starved, self._starved = self._starved, False
        while not self._starved and (event := connection.reader.next_event()) is not None:
            self._handle(event, connection, traffic)
        if was_starved or self._starved:
            connection.pause(self._starved)
        return not self._starved

    def _handle(self, event: Event, connection: ShardConnection, traffic: Traffic) -> None:
        if not self._outstanding:
            raise PeerProtocolError(f"{self.address} sent a reply that nobody asked for: {event}")
        match event:
            case BulkStart(size):
                self._begin(size, connection, traffic.sink)
            case BulkData(available) if self._incoming is not None:
                self._incoming.available = available
            case BulkEnd() if self._incoming is not None:
                incoming, self._incoming = self._incoming, None
                self._answered()
                incoming.end()
            case Nil():
                traffic.sink.missing(self._answered().request.index)
            case Status("OK") if self._outstanding[0].asking:
                self._outstanding[0].asking = False
            case ErrorReply() if not self._outstanding[0].asking:
                self._refused(self._answered(), event, traffic)
            case ErrorReply():
                raise _refusal(event, self.address)
            case _:
                raise PeerProtocolError(f"{self.address} answered GET with {event}")

    def _begin(self, size: int, connection: ShardConnection, sink: ChunkSink) -> None:
        index, buffers = self._outstanding[0].request.index, self._settings.buffers
        if size > buffers.slab_bytes:
            self._incoming = TooLarge(index, size, buffers.slab_bytes, sink)
            connection.reader.drain()
            return
        lease = buffers.try_lease()
        if lease is None:
            self._starved = True
            return
        self._incoming = Incoming(index, size, lease, sink)
        connection.reader.receive_into(self._incoming.view)
        self._incoming.begin()

    def _answered(self) -> Errand:
        self.forgive()
        return self._outstanding.popleft()

    def _refused(self, errand: Errand, reply: ErrorReply, traffic: Traffic) -> None:
        redirect = Redirect.parse(reply.message, self.address)
        if redirect is not None:
            traffic.redirected(errand, redirect)
        elif reply.code in _PASSING:
            traffic.postponed(errand, StoreRefused(f"{self.address} answered: {reply.message}"))
        else:
            self._fail([errand], _refusal(reply, self.address), traffic.sink)

    def _break(self, error: ShadowServeError, traffic: Traffic) -> None:
        """Give the connection up: decide for every request whether it fails, or is asked again on the next one."""
        self.close()
        lost = self._take_outstanding(error, traffic.sink)
        self._last_error = error
        self._failures = MAX_FAILURES if isinstance(error, StoreRefused) else self._failures + 1
        pause = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS)) - 1]
        self._retry_at = self._settings.clock() + pause
        again = [errand for errand in lost if errand.tries < MAX_TRIES and isinstance(error, NetworkError)]
        self._fail((errand for errand in lost if errand not in again), error, traffic.sink)
        self.backlog.extendleft(reversed(again))
        if self._failures >= MAX_FAILURES:
            self._fail(self.take_backlog(), error, traffic.sink)
        traffic.unreachable()

    def _take_outstanding(self, error: ShadowServeError, sink: ChunkSink) -> list[Errand]:
        lost = list(self._outstanding)
        self._outstanding.clear()
        if self._incoming is not None:
            self._fail([lost.pop(0)], error, sink)  # the sink has seen a part of it: only a new job starts it anew
            self._release()
        for errand in lost:
            errand.tries += 1
        return lost

    def _fail(self, errands: Iterable[Errand], error: ShadowServeError, sink: ChunkSink) -> None:
        for errand in errands:
            sink.failed(errand.request.index, error)

    def _release(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.release()


def _refusal(reply: ErrorReply, address: Address) -> StoreRefused:
    if reply.code in ("NOAUTH", "WRONGPASS"):
        return not_let_in(reply.message, address)
    if reply.code == "NOPERM":
        return no_permission(reply.message, address)
    return StoreRefused(f"{address} answered: {reply.message}")

"""What each message of a connector leads to. The only place that knows all parts; it does none of their work itself."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from shadowserve_dataplane.chunks import KEY_BYTES
from shadowserve_dataplane.connector.messages import (
    PROTOCOL,
    Buffer,
    Cancel,
    Contract,
    Fetch,
    Found,
    FromConnector,
    Hello,
    Lookup,
    Refused,
    Release,
    SessionUnknown,
    Store,
    Welcome,
    pack,
    unpack_from_connector,
)
from shadowserve_dataplane.sidecar.attachment import Attachment
from shadowserve_dataplane.sidecar.fetches import Fetches
from shadowserve_dataplane.sidecar.index import Answer, Index
from shadowserve_dataplane.sidecar.landing_slots import LandingSlots
from shadowserve_dataplane.sidecar.metrics import LookupResult, SidecarMetrics
from shadowserve_dataplane.sidecar.quiet_log import QuietLog
from shadowserve_dataplane.sidecar.sessions import Refusal, Session, Sessions
from shadowserve_dataplane.sidecar.staging import StagingBuffer
from shadowserve_dataplane.sidecar.store_queue import StoreQueue

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """What every connector is told in `Welcome`, buffers aside."""

    lookup_deadline_ms: int
    fetch_deadline_ms: int
    isolation: Literal["Shared", "PerPool", "PerTenant"]
    salt: bytes


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that messages are passed on to.

    `why_no_fetch` says why there is no place to restore chunks, nothing if there is one; `prepare` is called for every
    worker before it hears `Welcome`; `attachment` keeps what is told of the engine.
    """

    index: Index
    fetches: Fetches
    stores: StoreQueue
    landing: LandingSlots
    staging: StagingBuffer
    metrics: SidecarMetrics
    why_no_fetch: Callable[[], str]
    prepare: Callable[[Session], None]
    attachment: Attachment


class Conversation:
    """Takes frames in, sends answers by `send(peer, frame)`; lives on the event loop."""

    def __init__(self, sessions: Sessions, terms: Terms, parts: Parts, send: Callable[[bytes, bytes], bool]) -> None:
        self._sessions = sessions
        self._terms = terms
        self._parts = parts
        self._send = send
        self._staging_slots: dict[int, frozenset[int]] = {}
        self._lookups: set[asyncio.Task[None]] = set()
        self._quiet = QuietLog(_log)

    def take(self, peer: bytes, frame: bytes) -> None:
        """Take in one frame; whatever it holds, this returns at once and the sidecar goes on."""
        try:
            message = unpack_from_connector(frame)
        except msgspec.DecodeError as error:
            self._not_understood(peer, frame, str(error))
            return
        if isinstance(message, Hello):
            self._greet(peer, message)
            return
        session = self._sessions.find(message.session, peer)
        if session is None:
            self._send(peer, pack(SessionUnknown(message.session)))
        elif problem := self._serve(session, message):
            kind = type(message).__name__
            self._refuse(kind, f"{kind} of {session.role} {session.rank}: {problem}")

    async def close(self) -> None:
        """Wait for look-ups under way; each has its deadline."""
        if self._lookups:
            await asyncio.wait(self._lookups)

    def _serve(self, session: Session, message: FromConnector) -> str:
        """Pass a message on; returns what is wrong with it."""
        match session.role, message:
            case _, Lookup():
                return self._start_look_up(session, message)
            case "scheduler", Contract():
                self._parts.attachment.agreed(message.digest)
            case "worker", Fetch():
                return self._parts.fetches.fetch(session, message)
            case "worker", Cancel():
                self._parts.fetches.cancel(session, message)
            case "worker", Release():
                held = self._parts.fetches.release(session, message)
                return "" if held else "a slot that this worker does not hold"
            case "worker", Store() if len(message.key) == KEY_BYTES:
                return self._parts.stores.store(session, self._staging_slots[session.number], message)
            case "worker", Store():
                return f"a key that is not {KEY_BYTES} bytes long"
            case _:
                return "only a worker may say this"
        return ""

    def _greet(self, peer: bytes, hello: Hello) -> None:
        greeting = self._sessions.greet(peer, hello)
        if isinstance(greeting, Refusal):
            self._refuse("hello", f"refused {hello.role} {hello.rank} of engine {hello.engine!r}: {greeting.reason}")
            self._parts.attachment.refused(hello, greeting.reason)
            self._send(peer, pack(Refused(greeting.reason)))
            return
        for old in greeting.replaced:
            self._end(old)
        session = greeting.session
        buffers = self._buffers(session)
        if isinstance(buffers, Refusal):
            self._sessions.close(session.number)
            self._refuse("hello", f"refused {session.role} {session.rank}: {buffers.reason}")
            self._parts.attachment.refused(hello, buffers.reason)
            self._send(peer, pack(Refused(buffers.reason)))
        elif buffers is None:
            self._sessions.close(session.number)
            _log.info("slots of the engine before are still being written; the worker will say hello again")
        else:
            self._welcome(session, *buffers)

    def _end(self, session: Session) -> None:
        _log.info("session %d ends: %s %d said hello again", session.number, session.role, session.rank)
        self._staging_slots.pop(session.number, None)
        self._parts.fetches.drop(session)
        self._parts.stores.drop(session)

    def _buffers(self, session: Session) -> "tuple[Buffer | None, Buffer | None] | Refusal | None":
        """Return landing and staging buffer of a session; None: not yet, slots of another shape are being written."""
        if session.role != "worker":
            return None, None
        self._parts.attachment.shaped(session.shape)
        landing = self._parts.landing.carve_for(session.shape)
        if not isinstance(landing, Buffer):
            return landing
        self._parts.prepare(session)
        return landing, self._parts.staging.assign(session)

    def _welcome(self, session: Session, landing: Buffer | None, staging: Buffer | None) -> None:
        self._staging_slots[session.number] = frozenset(staging.slots if staging else ())
        self._parts.attachment.welcomed(session)
        terms = self._terms
        welcome = Welcome(
            protocol=PROTOCOL,
            session=session.number,
            landing=landing,
            staging=staging,
            lookup_deadline_ms=terms.lookup_deadline_ms,
            fetch_deadline_ms=terms.fetch_deadline_ms,
            isolation=terms.isolation,
            salt=terms.salt,
        )
        _log.info("session %d: %s %d of engine %s", session.number, session.role, session.rank, session.engine)
        self._send(session.peer, pack(welcome))

    def _start_look_up(self, session: Session, message: Lookup) -> str:
        task = asyncio.get_running_loop().create_task(self._look_up(session, message))
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)
        return ""

    async def _look_up(self, session: Session, message: Lookup) -> None:
        began = time.monotonic()
        if obstacle := self._parts.why_no_fetch():
            answer = Answer(0, LookupResult.REFUSED, obstacle)
        else:
            answer = await self._parts.index.look_up(message.keys)
        self._parts.metrics.looked_up(answer.result, time.monotonic() - began)
        if answer.detail:
            self._quiet.warning(answer.result, f"look-up {answer.result}: {answer.detail}")
        if self._sessions.find(session.number, session.peer) is session:
            self._send(session.peer, pack(Found(message.lookup, answer.chunks)))

    def _not_understood(self, peer: bytes, frame: bytes, error: str) -> None:
        protocol = foreign_protocol(frame)
        if protocol is None:
            self._refuse("frame", f"a frame of {len(frame)} bytes that is no message of protocol {PROTOCOL}: {error}")
            return
        reason = (
            f"the connector speaks protocol {protocol}, this sidecar protocol {PROTOCOL} and cannot read its hello "
            f"({error}); use the connector of the same release as the sidecar"
        )
        self._refuse("hello", f"refused a connector: {reason}")
        self._parts.attachment.refused(None, reason)
        self._send(peer, pack(Refused(reason)))

    def _refuse(self, kind: str, reason: str) -> None:
        self._parts.metrics.refused()
        self._quiet.warning(kind, reason)


def foreign_protocol(frame: bytes) -> int | None:
    """Return the protocol number in a `Hello` whose other fields cannot be read, None if it is no such thing."""
    try:
        message = msgspec.msgpack.decode(frame, type=_AnyHello)
    except msgspec.DecodeError:
        return None
    return message.protocol


class _AnyHello(msgspec.Struct, frozen=True, tag="hello"):
    """The part of `Hello` that stays the same in every protocol."""

    protocol: int

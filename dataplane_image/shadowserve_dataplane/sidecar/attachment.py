"""Whether the engine has attached, and why not: kept by the conversation, told beside the metrics.

Written on the event loop, read by the HTTP server's threads: every change replaces the whole document.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.messages import Hello
from shadowserve_dataplane.sidecar.landing_slots import ENOUGH_SLOTS, slot_bytes_for
from shadowserve_dataplane.sidecar.sessions import Session

PATH = "/attachment"
Half = tuple[str, int]
"""Role and rank of a connector half."""
Refused = tuple[Half, str]
"""A half, and why it was refused."""
_UNREADABLE: Half = ("unknown", 0)


class State(StrEnum):
    """How it stands."""

    WAITING = "Waiting"
    """No engine has come yet, or not all of its halves."""
    ATTACHED = "Attached"
    TOO_SMALL = "LandingBufferTooSmall"
    REFUSED = "EngineRefused"


@dataclass(frozen=True, slots=True)
class _Facts:
    engine: str = ""
    attached: frozenset[Half] = frozenset()
    world: int = 0
    refused: tuple[Refused, ...] = ()
    chunks: int = 0
    wanted_bytes: int = 0
    contract: str = ""


class Attachment:
    """What is known of the engine. `landing_bytes`: how large the landing buffer is; `settings` names config.json."""

    def __init__(self, landing_bytes: int, settings: str = "") -> None:
        self._landing_bytes, self._settings = landing_bytes, settings
        self._facts = _Facts()

    def shaped(self, shape: KvShape) -> None:
        """A worker came with chunks of this shape."""
        slot_bytes = slot_bytes_for(shape)
        self._facts = replace(
            self._facts, chunks=self._landing_bytes // slot_bytes, wanted_bytes=ENOUGH_SLOTS * slot_bytes
        )

    def welcomed(self, session: Session) -> None:
        """A half of the engine has its session."""
        facts = self._of(session.engine)
        self._facts = replace(
            facts,
            attached=facts.attached | {session.half},
            world=session.world,
            refused=_without(facts.refused, session.half, _UNREADABLE),
        )

    def refused(self, hello: Hello | None, reason: str) -> None:
        """A half was refused; None: its hello could not be read."""
        half = _UNREADABLE if hello is None else (str(hello.role), hello.rank)
        facts = self._facts if hello is None else self._of(hello.engine)
        refused = (*_without(facts.refused, half), (half, reason))
        self._facts = replace(facts, attached=facts.attached - {half}, refused=refused)

    def _of(self, engine: str) -> _Facts:
        """Return what is known of an engine: what another one did is over."""
        facts = self._facts
        if facts.engine in ("", engine):
            return replace(facts, engine=engine)
        return _Facts(engine, chunks=facts.chunks, wanted_bytes=facts.wanted_bytes)

    def agreed(self, contract: bytes) -> None:
        """The engine said what decides whether others share its chunks."""
        self._facts = replace(self._facts, contract=contract.hex())

    def document(self) -> dict[str, object]:
        """Return it as it is told over HTTP."""
        facts = self._facts
        return {
            "state": str(_state(facts)),
            "detail": facts.refused[0][1] if facts.refused else "",
            "chunks": facts.chunks,
            "wantedBytes": facts.wanted_bytes,
            "contract": facts.contract,
            "settings": self._settings,
        }


def _without(refused: tuple[Refused, ...], *halves: Half) -> tuple[Refused, ...]:
    return tuple(each for each in refused if each[0] not in halves)


def _state(facts: _Facts) -> State:
    if facts.wanted_bytes and facts.chunks < ENOUGH_SLOTS:
        return State.TOO_SMALL
    if facts.refused:
        return State.REFUSED
    halves = 1 + facts.world
    return State.ATTACHED if facts.world and len(facts.attached) >= halves else State.WAITING

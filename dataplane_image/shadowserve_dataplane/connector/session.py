"""What the worker half knows of one sidecar, from its welcome until it is lost."""

from collections import deque
from dataclasses import dataclass

from shadowserve_dataplane.connector.buffers import MappedBuffer
from shadowserve_dataplane.connector.messages import Welcome


@dataclass(slots=True)
class Session:
    """A sidecar's buffers; a new session is a new object, so that a copy can tell whether its own is still current."""

    welcome: Welcome
    landing: MappedBuffer | None
    staging: MappedBuffer | None
    free: deque[int]
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class LandedChunk:
    """A chunk that lies in `slot` of the session's landing buffer: number `index` of that load."""

    session: Session
    load: int
    index: int
    slot: int

"""What a pipeline says of every chunk, and whom it tells what its stages cost."""

from dataclasses import dataclass, field
from typing import Protocol

from shadowserve_dataplane.errors import (
    Cancelled,
    ChunkDamaged,
    ChunkOutcome,
    ChunkRefused,
    DeadlineExceeded,
    ShadowServeError,
)


@dataclass(slots=True)
class StageSeconds:
    """Seconds that one chunk spent in each stage; `receive` is from its first byte to its last, less the others."""

    receive: float = 0.0
    decompress: float = 0.0
    dequantize: float = 0.0
    place: float = 0.0


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """How one chunk of a job ended; every chunk gets exactly one. `detail` is for people."""

    job: int
    index: int
    outcome: ChunkOutcome
    encoded_bytes: int = 0
    values_bytes: int = 0
    detail: str = ""
    stages: StageSeconds = field(default_factory=StageSeconds)


class PipelineObserver(Protocol):
    """Learns about every chunk; called on worker threads."""

    def chunk_began(self) -> None:
        """A chunk was submitted."""
        ...

    def chunk_ended(self, result: ChunkResult) -> None:
        """A chunk got its result."""
        ...


class NoObserver:
    """Nobody is interested."""

    def chunk_began(self) -> None:
        """Do nothing."""

    def chunk_ended(self, result: ChunkResult) -> None:
        """Do nothing."""


def outcome_of(error: ShadowServeError, placing: bool) -> ChunkOutcome:
    """Return the outcome that an error means, by whether it happened while `placing`."""
    match error:
        case ChunkRefused():
            return ChunkOutcome.REFUSED
        case ChunkDamaged():
            return ChunkOutcome.DAMAGED
        case DeadlineExceeded():
            return ChunkOutcome.DEADLINE
        case Cancelled():
            return ChunkOutcome.CANCELLED
        case _:
            return ChunkOutcome.PLACE_ERROR if placing else ChunkOutcome.STORE_ERROR

"""Is a finished chunk worth the trouble now? The rule for the store path, which always yields to the fetch path."""

from dataclasses import dataclass
from enum import StrEnum


class DropReason(StrEnum):
    """Why a chunk was not stored; also the `reason` label of `stores_dropped_total`."""

    QUEUE_FULL = "queue_full"
    PRESSURE = "pressure"
    STORE_ERROR = "store_error"
    NOT_FINITE = "not_finite"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Load:
    """What goes on: chunks queued for storing and the most there may be, unfinished fetch jobs, and the shutdown."""

    queued: int
    queue_limit: int
    fetches: int
    closing: bool


def reason_to_drop(load: Load) -> DropReason | None:
    """Return why one more chunk shall be dropped; None: queue it."""
    if load.closing:
        return DropReason.SHUTDOWN
    if load.queued >= load.queue_limit:
        return DropReason.QUEUE_FULL
    if load.fetches and 2 * load.queued >= load.queue_limit:
        return DropReason.PRESSURE
    return None

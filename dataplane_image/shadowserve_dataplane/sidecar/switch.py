"""Where does the next fetch run? A pure rule over what is known now; called for every batch of chunks.

The remote data plane counts from the moment it is attached until it fails; after a failure it is left alone for a
while that doubles with every failure in a row, unless the endpoint changes. In that time the next place in the
PrefixCache's order takes over. Nothing here remembers anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

PlaceName = Literal["DPU", "Host"]

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 30.0
"""Seconds that a failed data plane is left alone: at first, and at most."""


class Place(StrEnum):
    """Where chunks are restored; also the `place` label of `placement_info`."""

    DPU = "dpu"
    HOST = "host"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class RemoteState:
    """What is known about the data plane that the endpoint file names.

    `endpoint` is `host:port`, None when the file names none; `attached` says whether it is ready for jobs;
    `failures` counts those in a row at this endpoint, the last at `failed_at` (seconds, monotonic).
    """

    endpoint: str | None = None
    attached: bool = False
    failures: int = 0
    failed_at: float = 0.0

    def moved(self, endpoint: str | None) -> "RemoteState":
        """Return the state after the endpoint file changed: what was said of the old one does not hold."""
        return RemoteState(endpoint)

    def failed(self, now: float) -> "RemoteState":
        """Return the state after the data plane was lost, did not answer, or hung past a deadline."""
        return RemoteState(self.endpoint, attached=False, failures=self.failures + 1, failed_at=now)

    def ready(self) -> "RemoteState":
        """Return the state after a successful attach; failures count on until `proved`."""
        return RemoteState(self.endpoint, attached=True, failures=self.failures, failed_at=self.failed_at)

    def proved(self) -> "RemoteState":
        """Return the state after the data plane restored a chunk: whatever failed before is over."""
        return RemoteState(self.endpoint, attached=True)

    def retry_at(self) -> float:
        """Return the time from which on it may be tried again."""
        if not self.failures:
            return float("-inf")
        return self.failed_at + min(FIRST_BACKOFF * (1 << min(self.failures - 1, 16)), LONGEST_BACKOFF)


@dataclass(frozen=True, slots=True)
class Choice:
    """A place, and why it is this one."""

    place: Place
    reason: str


def choose(order: Sequence[PlaceName], remote: RemoteState, now: float) -> Choice:
    """Return the first place in `order` that can restore chunks now."""
    passed_over: list[str] = []
    for name in order:
        if name == "Host":
            return Choice(Place.HOST, "; ".join([*passed_over, "the pipeline inside the sidecar"]))
        obstacle = _obstacle(remote, now)
        if obstacle is None:
            return Choice(Place.DPU, "; ".join([*passed_over, f"data plane {remote.endpoint}"]))
        passed_over.append(obstacle)
    return Choice(Place.NONE, "; ".join([*passed_over, "no other place is allowed"]))


def _obstacle(remote: RemoteState, now: float) -> str | None:
    if remote.endpoint is None:
        return "no data plane is paired"
    if now < remote.retry_at():
        wait = remote.retry_at() - now
        return f"data plane {remote.endpoint} failed {remote.failures} times, next try in {wait:.1f} s"
    if not remote.attached:
        return f"data plane {remote.endpoint} is not attached yet"
    return None

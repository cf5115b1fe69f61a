"""A fetch job: what to restore, and where to. No I/O, no clock."""

from dataclasses import dataclass

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.landing import SlotRef


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """One chunk of a job, and the slot it shall land in."""

    index: int
    key: ChunkKey
    ref: SlotRef


@dataclass(frozen=True, slots=True)
class FetchJob:
    """Chunks of one shape that are wanted by one deadline; `job` is unique among those under way.

    What is not `counted` is no engine's: observers do not hear of it.
    """

    job: int
    shape: KvShape
    mode: LandingMode
    chunks: tuple[ChunkRequest, ...]
    deadline: Deadline
    counted: bool = True

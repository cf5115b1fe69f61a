"""The places where chunks can be restored, behind one face: the paired data plane, or the pipeline in this process.

Which of them takes the next batch is decided by `switch.choose`; this class observes what the decision needs (the
endpoint file, attach, failures) and acts on it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from shadowserve_dataplane.sidecar.endpoint import EndpointFile
from shadowserve_dataplane.sidecar.fetch_table import Batch
from shadowserve_dataplane.sidecar.fetches import ChunkReport
from shadowserve_dataplane.sidecar.metrics import SidecarMetrics
from shadowserve_dataplane.sidecar.switch import Choice, Place, PlaceName, RemoteState, choose

WATCH_SECONDS = 0.2
"""How often the endpoint file is looked at."""

_log = logging.getLogger(__name__)


class PlaceLost(Exception):
    """The data plane cannot be attached, or was lost; says why."""


class BatchRunner(Protocol):
    """Restores batches somewhere. Reports arrive on the event loop, for every chunk at most one."""

    def submit(self, batch: Batch) -> None:
        """Start a batch."""
        ...

    def cancel(self, batch: int) -> None:
        """Stop a batch; a batch that is not known is fine."""
        ...

    async def close(self) -> None:
        """Stop everything; nothing is reported any more."""
        ...


class RemoteRunner(BatchRunner, Protocol):
    """A `BatchRunner` on another machine, attached when it is made."""

    @property
    def idle(self) -> bool:
        """Whether no batch is under way."""
        ...


Report = Callable[[ChunkReport], None]
AttachRemote = Callable[[str, Report, Callable[[str], None]], "asyncio.Future[RemoteRunner]"]

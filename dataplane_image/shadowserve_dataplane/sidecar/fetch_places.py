"""Which place takes the next batch, and who has which batch: `switch.choose` decides, this acts on it."""

import asyncio
import logging
import time
from collections.abc import Sequence

from shadowserve_dataplane.errors import ChunkOutcome, ShadowServeError
from shadowserve_dataplane.fetch.plan import FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.sidecar.data_plane import DataPlane
from shadowserve_dataplane.sidecar.metrics import SidecarMetrics
from shadowserve_dataplane.sidecar.runners import HostRunner, Report, Runner
from shadowserve_dataplane.sidecar.switch import Choice, Place, PlaceName, choose

_log = logging.getLogger(__name__)


class FetchPlaces:
    """The paired data plane and the pipeline in this process, behind one face."""

    def __init__(
        self,
        order: Sequence[PlaceName],
        data_plane: DataPlane,
        host: HostRunner,
        report: Report,
        metrics: SidecarMetrics,
    ) -> None:
        self._order = order
        self._data_plane = data_plane
        self._host = host
        self._report = report
        self._metrics = metrics
        self._runners: dict[int, Runner] = {}
        self._last: Place | None = None
        self._loop = asyncio.get_running_loop()

    def choice(self) -> Choice:
        """Return where the next batch runs."""
        chosen = choose(self._order, self._data_plane.state, time.monotonic())
        if chosen.place is not self._last:
            _log.info("chunks are restored at: %s (%s)", chosen.place, chosen.reason)
            self._last = chosen.place
            self._metrics.placed_at(chosen.place)
        return chosen

    def submit(self, batch: FetchJob, place: Place) -> None:
        """Start a batch there; if that fails its chunks are reported as failed, a moment later."""
        runner: Runner = self._data_plane if place is Place.DPU else self._host
        self._runners[batch.job] = runner
        try:
            runner.submit(batch)
        except ShadowServeError as error:
            for chunk in batch.chunks:
                failed = ChunkResult(batch.job, chunk.index, ChunkOutcome.PLACE_ERROR, detail=str(error))
                self._loop.call_soon(self._report, failed)

    def give_up(self, batch: int, overdue: bool) -> None:
        """Stop a batch that nobody wants any more; if it is `overdue`, its data plane may hang."""
        runner = self._runners.pop(batch, None)
        if runner is None:
            return
        if overdue and runner is self._data_plane:
            self._data_plane.overdue(batch)
        runner.cancel(batch)

    def finished(self, batch: int) -> None:
        """Forget a batch of which every chunk was reported."""
        self._runners.pop(batch, None)

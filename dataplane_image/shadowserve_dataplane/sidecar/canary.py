"""Canaries of the pipeline inside the sidecar: its verdict stands beside the metrics, as a data plane's does."""

import socket
from collections.abc import Callable
from types import TracebackType

from shadowserve_dataplane.fetch.canary import Canary, CanaryLanding, RoundTrip
from shadowserve_dataplane.fetch.pipeline import Pipeline
from shadowserve_dataplane.fetch.verdicts import Verdicts
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.store.settings import StoreSettings


class HostCanary:
    """Use it in `with`. Until `follow` and the first engine there is no pipeline, and the verdict is pending."""

    def __init__(self, store: StoreSettings) -> None:
        self._store = store
        self._pipeline: Callable[[], Pipeline | None] = lambda: None
        self._landing = CanaryLanding()
        self._target = SharedMemoryTarget(self._landing.buffer)
        self.verdicts = Verdicts(self._round_trip)

    def follow(self, pipeline: Callable[[], Pipeline | None]) -> None:
        """Send canaries through whatever pipeline this returns: it grows with the engine's chunks."""
        self._pipeline = pipeline

    def __enter__(self) -> "HostCanary":
        self.verdicts.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.verdicts.__exit__(kind, error, trace)

    def _round_trip(self, seconds: float) -> RoundTrip | None:
        pipeline = self._pipeline()
        if pipeline is None:
            return None
        canary = Canary(pipeline, self._store, socket.gethostname(), self._landing, self._target, tells=False)
        return canary.round_trip(seconds)

"""What the last canary said: made anew every minute, when somebody names a change, and soon again after a failure."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from shadowserve_dataplane.deadline import Clock
from shadowserve_dataplane.fetch.canary import RoundTrip, Stage

EVERY_SECONDS = 60.0
AFTER_FAILURE_SECONDS = 5.0
TRIP_SECONDS = 3.0
"""How long one round trip may take."""
_REST_SECONDS = 1.0
"""Asking for more changes than this makes no more round trips."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A round trip, and the change that it was made after; `trip` None: none has been made yet."""

    change: str
    trip: RoundTrip | None

    def document(self) -> dict[str, object]:
        """Return it as it is told over HTTP."""
        if self.trip is None:
            return {"change": self.change, "verdict": "Pending", "shards": 0, "stage": "", "detail": ""}
        word = "Verified" if self.trip.failed is Stage.NONE else "Failed"
        trip = self.trip
        return {
            "change": self.change,
            "verdict": word,
            "shards": trip.shards,
            "stage": str(trip.failed),
            "detail": trip.detail,
        }


class Verdicts:
    """Keeps the last verdict; thread-safe. `make` makes a round trip in that many seconds, None if it cannot yet.

    `told` hears whether each one succeeded. Use it in `with`: a thread of its own makes round trips meanwhile.
    """

    def __init__(
        self,
        make: Callable[[float], RoundTrip | None],
        told: Callable[[bool], None] = lambda _: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._make = make
        self._told = told
        self._clock = clock
        self._making = threading.Lock()
        self._last = Verdict("", None)
        self._made_at = -_REST_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="canary", daemon=True)

    def __enter__(self) -> "Verdicts":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(TRIP_SECONDS)

    def after(self, change: str) -> Verdict:
        """Return a verdict of after that change: the last one if it knew of it, else a new one.

        It is an older one, with the change that it knew of, if the last one was made a moment ago.
        """
        with self._making:
            if (
                change != self._last.change or self._last.trip is None
            ) and self._clock() - self._made_at >= _REST_SECONDS:
                self._renew(change)
            return self._last

    def _renew(self, change: str) -> None:
        before = self._last.trip
        trip = self._make(TRIP_SECONDS)
        if trip is None:
            self._last, self._made_at = Verdict(change, None), self._clock()
            return
        if before is None or (before.failed, before.detail) != (trip.failed, trip.detail):
            level = logging.INFO if trip.failed is Stage.NONE else logging.WARNING
            said = f"failed at {trip.failed}: {trip.detail}" if trip.failed else f"passed, {trip.shards} shards"
            _log.log(level, "round trip %s", said)
        self._last, self._made_at = Verdict(change, trip), self._clock()
        self._told(trip.failed is Stage.NONE)

    def _keep(self) -> None:
        while not self._stop.is_set():
            with self._making:
                self._renew(self._last.change)
                failed = self._last.trip is not None and bool(self._last.trip.failed)
            self._stop.wait(AFTER_FAILURE_SECONDS if failed else EVERY_SECONDS)

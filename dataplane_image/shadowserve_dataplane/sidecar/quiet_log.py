"""A log that says the same kind of thing now and then, not a thousand times: peers decide how often things go wrong."""

import logging
import time

from shadowserve_dataplane.deadline import Clock

EVERY_SECONDS = 10.0


class QuietLog:
    """Warnings by kind; of each kind one in ten seconds is written, with how many were left out."""

    def __init__(self, log: logging.Logger, clock: Clock = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def warning(self, kind: str, message: str) -> None:
        """Write the message unless one of its kind was written just now; there must be few kinds."""
        now = self._clock()
        said_at, left_out = self._said.get(kind, (float("-inf"), 0))
        if now - said_at < EVERY_SECONDS:
            self._said[kind] = (said_at, left_out + 1)
            return
        self._said[kind] = (now, 0)
        self._log.warning("%s%s", message, f" ({left_out} more like this before)" if left_out else "")

"""Keeps one object reconciled: at once, whenever something about it happened, and after an interval in any case.

One worker an object, so that no two reconciles of it overlap; a poke that comes during one causes another.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from shadowserve_operator.errors import ApiUnavailable, Conflict, OperatorError
from shadowserve_operator.metrics import OperatorMetrics
from shadowserve_operator.reconcile import Result

_WAITING_SECONDS = 5.0
_FIRST_RETRY, _LONGEST_RETRY = 1.0, 60.0
_log = logging.getLogger(__name__)
Key = tuple[str, str, str]
"""Kind, namespace, name."""


class Pokes:
    """Who is to look again. Handlers poke, workers wait."""

    def __init__(self) -> None:
        self._events: dict[Key, asyncio.Event] = {}

    def event(self, key: Key) -> asyncio.Event:
        """Return what a worker waits for."""
        return self._events.setdefault(key, asyncio.Event())

    def forget(self, key: Key) -> None:
        """Forget a worker that ended."""
        self._events.pop(key, None)

    def poke(self, kind: str, namespace: str = "", name: str = "") -> None:
        """Have all workers of a kind look again; those of a namespace, or one of a name."""
        for key in self._matching(kind, namespace, name):
            self._events[key].set()

    def _matching(self, kind: str, namespace: str, name: str) -> Iterable[Key]:
        for key in self._events:
            if key[0] == kind and (not namespace or key[1] == namespace) and (not name or key[2] == name):
                yield key


async def keep(
    key: Key,
    reconcile: Callable[[], Awaitable[Result]],
    pokes: Pokes,
    metrics: OperatorMetrics,
    interval: float,
) -> None:
    """Reconcile until cancelled; `interval` in seconds is how long drift may last."""
    kind, namespace, name = key
    poked, failures = pokes.event(key), 0
    try:
        while True:
            poked.clear()
            began = time.monotonic()
            try:
                result = await reconcile()
            except (ApiUnavailable, Conflict) as error:
                failures += 1
                delay = min(_FIRST_RETRY * (1 << min(failures - 1, 10)), _LONGEST_RETRY)
                _log.warning("%s %s/%s: %s; again in %g s", kind, namespace, name, error, delay)
                metrics.reconciled(kind, "error", time.monotonic() - began, 0)
            except OperatorError:
                failures += 1
                delay = _LONGEST_RETRY
                _log.exception("%s %s/%s: a mistake of the operator; again in %g s", kind, namespace, name, delay)
                metrics.reconciled(kind, "error", time.monotonic() - began, 0)
            else:
                failures = 0
                delay = interval if result.settled else min(interval, _WAITING_SECONDS)
                outcome = "settled" if result.settled else "waiting"
                metrics.reconciled(kind, outcome, time.monotonic() - began, result.writes)
                if result.status is not None:
                    said = {each.type: str(each.status) for each in result.status.conditions}
                    metrics.say(kind, namespace, name, said)
            await _wait(poked, delay)
    finally:
        pokes.forget(key)
        metrics.say(kind, namespace, name, {})


async def _wait(poked: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await poked.wait()

"""Keeps one object reconciled: at once, whenever something about it happened, and after an interval in any case.

One worker an object, so that no two reconciles of it overlap; a poke that comes during one causes another.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from shadowserve_operator.errors import ApiUnavailable, Conflict, Forbidden, OperatorError
from shadowserve_operator.metrics import OperatorMetrics
from shadowserve_operator.reconcile import Result

_WAITING_SECONDS = 5.0
"""How soon to look again at what is not settled; twice as long each time that nothing was to be done."""
_FIRST_RETRY, _LONGEST_RETRY = 1.0, 60.0
_RIGHTS = (
    "the operator lacks a right: apply what you installed again (shadowserve doctor says which namespaces lack roles)"
)
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


@dataclass(slots=True)
class Pace:
    """When to look again; `interval` in seconds is how long drift may last."""

    interval: float
    _idle: int = 0
    _failures: int = 0

    def after(self, result: Result) -> float:
        """Return the seconds until the next look: soon while something is awaited, then ever less often."""
        self._failures = 0
        if result.writes:
            self._idle = 0
        waiting = _WAITING_SECONDS * (1 << min(self._idle, 10))
        self._idle += not result.writes
        delay = self.interval if result.settled else min(self.interval, waiting)
        return delay if result.again is None else min(delay, result.again)

    def after_failure(self) -> float:
        """Return the seconds until the next try."""
        self._failures += 1
        return min(_FIRST_RETRY * (1 << min(self._failures - 1, 10)), _LONGEST_RETRY)

    def poked(self) -> None:
        """Something happened: what is awaited may come soon."""
        self._idle = 0


async def keep(
    key: Key,
    reconcile: Callable[[], Awaitable[Result]],
    pokes: Pokes,
    metrics: OperatorMetrics,
    interval: float,
) -> None:
    """Reconcile until cancelled; `interval` in seconds is how long drift may last."""
    kind, namespace, name = key
    poked, pace = pokes.event(key), Pace(interval)
    try:
        while True:
            poked.clear()
            began = time.monotonic()
            try:
                result = await reconcile()
            except (ApiUnavailable, Conflict) as error:
                delay = pace.after_failure()
                _log.warning("%s %s/%s: %s; again in %g s", kind, namespace, name, error, delay)
                metrics.reconciled(kind, "error", time.monotonic() - began, 0)
            except Forbidden as error:
                delay = pace.after_failure()
                _log.warning("%s %s/%s: %s: %s; again in %g s", kind, namespace, name, _RIGHTS, error, delay)
                metrics.reconciled(kind, "error", time.monotonic() - began, 0)
            except OperatorError:
                delay = _LONGEST_RETRY
                _log.exception("%s %s/%s: a mistake of the operator; again in %g s", kind, namespace, name, delay)
                metrics.reconciled(kind, "error", time.monotonic() - began, 0)
            else:
                delay = pace.after(result)
                outcome = "settled" if result.settled else "waiting"
                metrics.reconciled(kind, outcome, time.monotonic() - began, result.writes)
                if result.status is not None:
                    said = {each.type: str(each.status) for each in result.status.conditions}
                    metrics.say(kind, namespace, name, said)
                    metrics.expires(namespace, name, result.expires)
            if await _poked(poked, delay):
                pace.poked()
    finally:
        pokes.forget(key)
        metrics.say(kind, namespace, name, {})
        metrics.expires(namespace, name, None)


async def _poked(poked: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until poked; return whether that came."""
    try:
        async with asyncio.timeout(seconds):
            return await poked.wait()
    except TimeoutError:
        return False

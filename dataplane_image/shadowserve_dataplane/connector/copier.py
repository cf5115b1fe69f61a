"""The background thread that copies between buffers and the engine's cache: landed chunks first, stores after them."""

import threading
from collections.abc import Callable
from typing import Protocol

_CLOSE_SECONDS = 2.0


class CopyWork(Protocol):
    """Where the copier gets its work; `take` runs under the condition it was given, the work itself does not."""

    def prepare(self) -> None:
        """Runs first, on the copier's thread (compiling kernels takes seconds)."""

    def take(self) -> Callable[[], None] | None:
        """Return the next copy to run, or None when there is none now."""


class Copier:
    """One daemon thread; it sleeps on `changed` while there is no work."""

    def __init__(self, work: CopyWork, changed: threading.Condition) -> None:
        self._work = work
        self._changed = changed
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="shadowserve-copier", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Finish the copy under way and stop; waits at most two seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        self._work.prepare()
        while (copy := self._next()) is not None:
            copy()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._closing:
                copy = self._work.take()
                if copy is not None:
                    return copy
                self._changed.wait()
        return None

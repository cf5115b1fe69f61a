"""Says each kind of thing once: a fault that meets every chunk shall not fill the engine's log."""

import logging


class SayOnce:
    """Logs the first message of each kind, for people. Not locked: a second one at the same moment does no harm."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: set[str] = set()

    def __call__(self, kind: str, message: str, *details: object) -> None:
        """Log `message % details` unless something of this kind was said."""
        if kind not in self._said:
            self._said.add(kind)
            self._log.info(message, *details)

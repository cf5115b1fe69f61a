"""A clock for deadlines that must not pass before the test has come to where they matter."""

import time


class HeldClock:
    """Stands still until it is let go, and then runs as the monotonic clock does, however long the way there took."""

    def __init__(self) -> None:
        self._held_at = time.monotonic()
        self._let_go_at: float | None = None

    def __call__(self) -> float:
        since = 0.0 if self._let_go_at is None else time.monotonic() - self._let_go_at
        return self._held_at + since

    def let_go(self) -> None:
        """Have time pass from now on; later calls change nothing."""
        if self._let_go_at is None:
            self._let_go_at = time.monotonic()

"""A point in time by which an answer is of use, on a monotonic clock: a changed wall clock moves nothing."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]
"""Returns seconds of a clock that never goes back."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment `at`, in seconds of `clock`; deadlines on one clock can be compared with `min`."""

    at: float
    clock: Clock = field(default=time.monotonic, compare=False, repr=False)

    @classmethod
    def after(cls, seconds: float, now: Clock = time.monotonic) -> "Deadline":
        """Return the deadline `seconds` from now; zero or less has passed already."""
        return cls(now() + seconds, now)

    @classmethod
    def never(cls) -> "Deadline":
        """Return a deadline that does not pass: for tools and tests, not for the fetch path."""
        return cls(math.inf)

    def remaining(self, now: Clock | None = None) -> float:
        """Return the seconds left, never less than 0."""
        return max(0.0, self.at - (now or self.clock)())

    @property
    def expired(self) -> bool:
        """Whether the moment has come."""
        return self.clock() >= self.at

    def __lt__(self, other: "Deadline") -> bool:
        return self.at < other.at

"""What is observed of a pool: windows of time, as the engines' and sidecars' metrics tell them."""

import math
from dataclasses import dataclass
from itertools import accumulate

DEFAULT_MAX_SEQUENCES = 256


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of times (seconds): `counts[i]` in (bounds[i-1], bounds[i]]; the last one is above all bounds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Return how many times there are."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """Return a quantile as Prometheus does: even inside a bucket, at most the last bound; NaN if empty."""
        wanted = share * self.total
        lower = 0.0
        for bound, count, below in zip(self.bounds, self.counts, accumulate(self.counts), strict=False):
            if count and below >= wanted:
                return bound - (bound - lower) * (below - wanted) / count
            lower = bound
        return lower if self.total else math.nan


@dataclass(frozen=True, slots=True)
class Fetches:
    """Fetch jobs of a window: how many, their seconds and their bytes as received, all together."""

    count: int = 0
    seconds: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one pool. Tokens are sums over its requests; `running` and `waiting` are means over its time.

    `hit_requests`: how many requests had a hit; if it is not known, every request had its share of the hit tokens.
    `ttft_p90`: seconds, where it was measured better than the histogram tells; never fitted, only compared with.
    """

    seconds: float
    replicas: int
    arrivals: int
    prompt_tokens: int
    hit_tokens: int
    output_tokens: int
    ttft: Histogram
    tpot: Histogram
    hit_requests: int | None = None
    running: float | None = None
    waiting: float | None = None
    fetches: Fetches = Fetches()
    ttft_p90: float | None = None

    @property
    def arrival_rate(self) -> float:
        """Return requests per second over all replicas."""
        return self.arrivals / self.seconds

    @property
    def observed_ttft_p90(self) -> float:
        """Return the best known 90 % quantile of the time to first token, seconds."""
        return self.ttft.quantile(0.9) if self.ttft_p90 is None else self.ttft_p90


@dataclass(frozen=True, slots=True)
class Pool:
    """What does not change from window to window: hardware class, and how many sequences an engine runs at once."""

    hardware: str = "unknown"
    max_sequences: int = DEFAULT_MAX_SEQUENCES


@dataclass(frozen=True, slots=True)
class Observations:
    """The windows of one pool, at least one."""

    pool: Pool
    windows: tuple[Window, ...]

"""Windows of metrics for the capacity model: scrapes of engines and sidecars before and after, as one JSON value.

The same differences of the same counters that a Prometheus would give for a pool.
"""

import math
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from shadowserve_lab.engine_client import EXTERNAL_HITS, Metrics

_TTFT = "vllm:time_to_first_token_seconds"
_TPOT = "vllm:request_time_per_output_token_seconds"
_COMPUTED = "vllm:request_prefill_kv_computed_tokens"
_GAUGE_SECONDS = 0.25


@dataclass(frozen=True)
class Scrapes:
    """What engines and their sidecars said at one time."""

    engines: tuple[Metrics, ...]
    sidecars: tuple[Metrics, ...]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all of them."""
        return sum(each.total(name, **labels) for each in (*self.engines, *self.sidecars))

    def buckets(self, name: str) -> dict[float, float]:
        """Return a histogram of the engines, cumulative, summed."""
        found: dict[float, float] = {}
        for engine in self.engines:
            for bound, value in engine.buckets(name).items():
                found[bound] = found.get(bound, 0.0) + value
        return found


class Gauges:
    """Means of running and waiting requests over the time that it is entered, by reading them again and again."""

    def __init__(self, scrape: Callable[[], Sequence[Metrics]]) -> None:
        self._scrape = scrape
        self._running: list[float] = []
        self._waiting: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def running(self) -> float:
        """Return the mean of running requests over all engines."""
        return statistics.fmean(self._running) if self._running else 0.0

    @property
    def waiting(self) -> float:
        """Return the mean of waiting requests over all engines."""
        return statistics.fmean(self._waiting) if self._waiting else 0.0

    def __enter__(self) -> "Gauges":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_GAUGE_SECONDS):
            engines = self._scrape()
            self._running.append(sum(each.total("vllm:num_requests_running") for each in engines))
            self._waiting.append(sum(each.total("vllm:num_requests_waiting") for each in engines))


def window_of(before: Scrapes, after: Scrapes, seconds: float, gauges: Gauges) -> dict[str, object]:
    """Return the window between two scrapes: `seconds` are those in which requests arrived."""

    def grown(name: str, **labels: str) -> int:
        return round(after.total(name, **labels) - before.total(name, **labels))

    ttft = _difference(before, after, _TTFT)
    arrivals, prompt = sum(counts for _, counts in ttft), grown("vllm:prompt_tokens_total")
    hit = grown("vllm:prefix_cache_hits_total") + grown(EXTERNAL_HITS)
    window: dict[str, object] = {
        "seconds": round(seconds, 3),
        "replicas": len(after.engines),
        "arrivals": arrivals,
        "prompt_tokens": prompt,
        "hit_tokens": hit,
        "hit_requests": _hit_requests(before, after, prompt / max(arrivals, 1)) if hit else 0,
        "output_tokens": grown("vllm:generation_tokens_total"),
        "running": round(gauges.running, 3),
        "waiting": round(gauges.waiting, 3),
        "ttft": _histogram(ttft),
        "tpot": _histogram(_difference(before, after, _TPOT)),
    }
    if fetches := grown("shadowserve_fetch_seconds_count"):
        total = "shadowserve_fetch_seconds_sum"
        window["fetches"] = {
            "count": fetches,
            "seconds": round(after.total(total) - before.total(total), 6),
            "bytes": grown("shadowserve_fetched_bytes_total", kind="encoded"),
        }
    return window


def _hit_requests(before: Scrapes, after: Scrapes, prompt_tokens: float) -> int:
    """Return how many requests computed less than half of a mean prompt, at least one."""
    computed = _difference(before, after, _COMPUTED)
    return max(sum(count for bound, count in computed if bound <= 0.75 * prompt_tokens), 1)


def _difference(before: Scrapes, after: Scrapes, name: str) -> list[tuple[float, int]]:
    """Return what a histogram gained: upper bounds, and counts that are not cumulative."""
    earlier, found, below = before.buckets(name), [], 0.0
    for bound, value in after.buckets(name).items():
        gained = value - earlier.get(bound, 0.0)
        found.append((bound, round(gained - below)))
        below = gained
    return found


def _histogram(buckets: Sequence[tuple[float, int]]) -> dict[str, object]:
    return {
        "bounds": [bound for bound, _ in buckets if math.isfinite(bound)],
        "counts": [count for _, count in buckets],
    }

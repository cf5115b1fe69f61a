"""Windows that were observed against what a posterior predicts for them."""

from collections.abc import Sequence
from dataclasses import dataclass

from shadowserve_capacity.model.observations import Window
from shadowserve_capacity.model.posterior import Interval, Posterior
from shadowserve_capacity.model.work import load_of


@dataclass(frozen=True, slots=True)
class Compared:
    """TTFT p90 of one window: observed, and the predicted interval (seconds)."""

    window: int
    observed: float
    interval: Interval

    @property
    def covered(self) -> bool:
        """Return whether the interval has what was observed."""
        return self.interval.low <= self.observed <= self.interval.high


def compare(posterior: Posterior, windows: Sequence[Window], level: float = 0.8) -> list[Compared]:
    """Return each window's TTFT p90 against its prediction for as many requests as the window had."""
    found = []
    for index, window in enumerate(windows):
        predicted = posterior.predict(load_of(window), window.replicas, level, requests=window.ttft.total)
        found.append(Compared(index, window.observed_ttft_p90, predicted.ttft["p90"]))
    return found

"""Whether a predictor's "70 %" is right seven times of ten, by how much of the data it had seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Forecast:
    """A predicted probability, the share of data seen when it was made (0 to 1), and what came of it."""

    probability: float
    seen: float
    happened: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """Forecasts of about one probability: their mean, how often it happened, and how many they are."""

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of the forecasts made with seen data in [seen_from, seen_to): Brier score (0 is best) and reliability."""

    seen_from: float
    seen_to: float
    brier: float
    reliability: tuple[Bin, ...]

    @property
    def count(self) -> int:
        """Return how many forecasts there were."""
        return sum(each.count for each in self.reliability)

    @property
    def error(self) -> float:
        """Return the mean distance of predicted and observed, weighted by count."""
        return sum(each.count * abs(each.predicted - each.observed) for each in self.reliability) / self.count


def calibrate(forecasts: Sequence[Forecast], parts: int = 5, bins: int = 10) -> list[Calibration]:
    """Return one calibration for each of `parts` ranges of data seen that has forecasts.

    Raises `ValueError` naming the first forecast whose probability or share is outside [0, 1].
    """
    for index, each in enumerate(forecasts):
        if not (0.0 <= each.probability <= 1.0 and 0.0 <= each.seen <= 1.0):
            raise ValueError(f"forecast {index}: probability {each.probability} or share {each.seen} is not in [0, 1]")
    found = []
    for part in range(parts):
        chosen = [each for each in forecasts if min(int(each.seen * parts), parts - 1) == part]
        if chosen:
            found.append(_calibration(chosen, part / parts, (part + 1) / parts, bins))
    return found


def _calibration(forecasts: Sequence[Forecast], seen_from: float, seen_to: float, bins: int) -> Calibration:
    probabilities = np.array([each.probability for each in forecasts])
    happened = np.array([each.happened for each in forecasts], dtype=np.float64)
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    reliability = tuple(
        Bin(float(probabilities[places == place].mean()), float(happened[places == place].mean()), int(count))
        for place in range(bins)
        if (count := (places == place).sum())
    )
    return Calibration(seen_from, seen_to, float(((probabilities - happened) ** 2).mean()), reliability)

"""Whether a predictor's "70 %" is right seven times of ten, by how much of the data it had seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from shadowserve_capacity.prefetch.evidence import Comparison, Decision, Normal, Pairs
from shadowserve_capacity.prefetch.predictors import Predictor, clipped
from shadowserve_capacity.prefetch.problem import State

PARTS = 5
_OPEN = 4096


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

    def explain(self) -> str:
        """Return the figures in words, one line for each bin."""
        head = (
            f"with {self.seen_from:.0%} to {self.seen_to:.0%} of the data seen: {self.count} guesses, "
            f"Brier score {self.brier:.3f}, off by {self.error:.3f}"
        )
        bins = (f"  said {each.predicted:.3f}, was {each.observed:.3f} ({each.count})" for each in self.reliability)
        return "\n".join([head, *bins])

    def as_json(self) -> dict[str, object]:
        """Return all of it as JSON values."""
        return {**asdict(self), "count": self.count, "error": self.error}


@dataclass(slots=True)
class Recorded:
    """A predictor, and what it said of the candidates that the chain came to: one forecast for each fifth of the data.

    Candidates that the chain never came to have no outcome; the oldest of them are forgotten beyond 4096.
    """

    inner: Predictor
    forecasts: list[Forecast] = field(default_factory=list)
    _open: dict[int, tuple[Pairs, dict[int, tuple[float, float]]]] = field(default_factory=dict)

    def expect(self, new: State, old: State) -> Normal | None:
        """Return what the predictor expects."""
        return self.inner.expect(new, old)

    def probability(self, comparison: Comparison) -> float:
        """Return what the predictor says, and remember the first of it with so much of the data."""
        said = clipped(self.inner.probability(comparison))
        seen = comparison.pairs.count / comparison.batches
        key = id(comparison.pairs)  # a candidate's own; kept beside the guesses, so that none other can have its id
        _, guesses = self._open.setdefault(key, (comparison.pairs, {}))
        guesses.setdefault(min(int(seen * PARTS), PARTS - 1), (said, seen))
        if len(self._open) > _OPEN:
            del self._open[next(iter(self._open))]
        return said

    def learn(self, decision: Decision) -> None:
        """Hold the decision against the guesses, and pass it on."""
        _, guesses = self._open.pop(id(decision.pairs), (decision.pairs, {}))
        self.forecasts += [Forecast(said, seen, decision.accepted) for said, seen in guesses.values()]
        self.inner.learn(decision)


def calibrate(forecasts: Sequence[Forecast], parts: int = PARTS, bins: int = 10) -> list[Calibration]:
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

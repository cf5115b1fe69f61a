"""How likely is an undecided candidate to be accepted? Answers steer the work; they never touch the chain."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

_LEAST = 1e-6
_REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known of a candidate against its rival: `new` and `old` hold the terms of the same first batches."""

    batches: int
    prior_difference: float
    threshold: float
    new: tuple[float, ...]
    old: tuple[float, ...]


class Predictor(Protocol):
    """Guesses decisions and learns from those that were taken."""

    def probability(self, comparison: Comparison) -> float:
        """Return the probability of acceptance; the caller clips it away from 0 and 1."""

    def learn(self, accepted: bool, difference: float) -> None:
        """Take note of a decision on the chain and of its log density difference."""


def clipped(probability: float) -> float:
    """Return `probability` inside [1e-6, 1 - 1e-6]; one half when it is NaN."""
    return 0.5 if math.isnan(probability) else min(max(probability, _LEAST), 1.0 - _LEAST)


def normal_tail(mean: float, deviation: float, threshold: float) -> float:
    """Return the probability that N(mean, deviation^2) exceeds `threshold`."""
    if deviation <= 0.0:
        return float(mean > threshold)
    return 0.5 * math.erfc((threshold - mean) / (deviation * math.sqrt(2.0)))


@dataclass(slots=True)
class Naive:
    """Every decision is a coin toss: the breadth-first tree."""

    def probability(self, comparison: Comparison) -> float:
        """Return one half."""
        return 0.5

    def learn(self, accepted: bool, difference: float) -> None:
        """Learn nothing."""


@dataclass(slots=True)
class ConstantRate:
    """The share of the last 100 decisions that were accepted, starting from one half."""

    decisions: deque[bool] = field(default_factory=lambda: deque([True, False] * 50, maxlen=100))

    def probability(self, comparison: Comparison) -> float:
        """Return the recent acceptance rate."""
        return sum(self.decisions) / len(self.decisions)

    def learn(self, accepted: bool, difference: float) -> None:
        """Remember the decision."""
        self.decisions.append(accepted)


@dataclass(slots=True)
class PartialData:
    """Paired differences of the batches seen, shrunk towards the recent log ratios.

    With d_i the differences of the m batches seen of B: estimate prior + B mean(d), variance
    s^2 B (B - m) / m (finite-population correction); combined by precision with N(mean, variance) of the
    log ratios realised so far (`prior`). Before two batches are seen only the latter counts.
    """

    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    rate: ConstantRate = field(default_factory=ConstantRate)
    prior: tuple[float, float] = (0.0, 1.0)

    def probability(self, comparison: Comparison) -> float:
        """Return the probability that the finished difference exceeds the threshold."""
        seen = len(comparison.new)
        if seen < 2:
            return self._before_data(comparison)
        differences = np.subtract(comparison.new, comparison.old)
        mean = comparison.prior_difference + comparison.batches * float(differences.mean())
        left = comparison.batches * (comparison.batches - seen) / seen
        variance = float(differences.var(ddof=1)) * left
        if len(self.ratios) < 20 or variance <= 0.0:
            return normal_tail(mean, math.sqrt(variance), comparison.threshold)
        prior_mean, prior_variance = self.prior
        weight = prior_variance / (prior_variance + variance)
        shrunk = prior_mean + weight * (mean - prior_mean)
        return normal_tail(shrunk, math.sqrt(weight * variance), comparison.threshold)

    def learn(self, accepted: bool, difference: float) -> None:
        """Remember the decision and its log ratio."""
        self.rate.learn(accepted, difference)
        if math.isfinite(difference):
            self.ratios.append(difference)
            self.prior = float(np.mean(self.ratios)), float(np.var(self.ratios)) + 1e-12

    def _before_data(self, comparison: Comparison) -> float:
        if len(self.ratios) < 20:
            return self.rate.probability(comparison)
        mean, variance = self.prior
        return normal_tail(mean, math.sqrt(variance), comparison.threshold)

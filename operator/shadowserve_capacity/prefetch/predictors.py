"""How likely is an undecided candidate to be accepted? Answers steer the work; they never touch the chain."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from shadowserve_capacity.prefetch.evidence import Comparison, Decision, Normal
from shadowserve_capacity.prefetch.problem import State

_LEAST = 1e-6
_REMEMBERED = 200
_ENOUGH = 20
_SCATTER_WEIGHT = 4.0


class Predictor(Protocol):
    """Guesses decisions and learns from those that were taken."""

    def expect(self, new: State, old: State) -> Normal | None:
        """Return the log density difference of two states, as far as it can be told before any data."""

    def probability(self, comparison: Comparison) -> float:
        """Return the probability of acceptance; the caller clips it away from 0 and 1."""

    def learn(self, decision: Decision) -> None:
        """Take note of a decision on the chain."""


def clipped(probability: float) -> float:
    """Return `probability` inside [1e-6, 1 - 1e-6]; one half when it is NaN."""
    return 0.5 if math.isnan(probability) else min(max(probability, _LEAST), 1.0 - _LEAST)


def normal_tail(mean: float, variance: float, threshold: float) -> float:
    """Return the probability that N(mean, variance) exceeds `threshold`."""
    if variance <= 0.0:
        return float(mean > threshold)
    return 0.5 * math.erfc((threshold - mean) / math.sqrt(2.0 * variance))


@dataclass(slots=True)
class Naive:
    """Every decision is a coin toss: the breadth-first tree."""

    def expect(self, new: State, old: State) -> Normal | None:
        """Expect nothing."""
        return None

    def probability(self, comparison: Comparison) -> float:
        """Return one half."""
        return 0.5

    def learn(self, decision: Decision) -> None:
        """Learn nothing."""


@dataclass(slots=True)
class ConstantRate:
    """The share of the last 100 decisions that were accepted, starting from one half."""

    decisions: deque[bool] = field(default_factory=lambda: deque([True, False] * 50, maxlen=100))

    @property
    def rate(self) -> float:
        """Return the recent acceptance rate."""
        return sum(self.decisions) / len(self.decisions)

    def expect(self, new: State, old: State) -> Normal | None:
        """Expect nothing."""
        return None

    def probability(self, comparison: Comparison) -> float:
        """Return the recent acceptance rate."""
        return self.rate

    def learn(self, decision: Decision) -> None:
        """Remember the decision."""
        self.decisions.append(decision.accepted)


@dataclass(slots=True)
class PaperPartialData:
    """The predictor of Angelino et al., as their published code computes it.

    With m of B batches seen of both: estimate prior + B/m (S' - S); deviation
    (B - m) (1/sqrt(m) + 1/sqrt(B - m)) s with s^2 = V + V' - 2 c sqrt(V V') from the population variances of the
    two states' own terms and a constant correlation c. Before two batches: the recent acceptance rate.
    """

    correlation: float = 0.9999
    constant: ConstantRate = field(default_factory=ConstantRate)

    def expect(self, new: State, old: State) -> Normal | None:
        """Expect nothing."""
        return None

    def probability(self, comparison: Comparison) -> float:
        """Return the probability that the finished difference exceeds the threshold."""
        pairs, batches = comparison.pairs, comparison.batches
        seen, left = pairs.count, batches - pairs.count
        if seen < 2:
            return self.constant.rate
        new = max(0.0, pairs.new_squares / seen - (pairs.new / seen) ** 2)
        old = max(0.0, pairs.old_squares / seen - (pairs.old / seen) ** 2)
        spread = math.sqrt(max(0.0, new + old - 2.0 * self.correlation * math.sqrt(new * old)))
        error = spread * left * (1.0 / math.sqrt(seen) + 1.0 / math.sqrt(left)) if left else 0.0
        mean = comparison.prior_difference + batches * pairs.difference / seen
        return normal_tail(mean, error * error, comparison.threshold)

    def learn(self, decision: Decision) -> None:
        """Remember the decision."""
        self.constant.learn(decision)


@dataclass(slots=True)
class PartialData:
    """Paired differences of the batches seen, shrunk towards what was to be expected.

    With d_i the differences of the m batches seen of B: estimate prior + B mean(d), variance s^2 B (B - m) / m
    (finite-population correction), where s^2 leans on the scatter of recent comparisons as on four more batches.
    It is combined by precision with N(mean, variance) of the log ratios realised so far, or with what a better
    informed predictor expects of these two states. Before two batches only that counts.
    """

    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    constant: ConstantRate = field(default_factory=ConstantRate)
    usual: Normal | None = None
    scatter: float = 0.0

    def expect(self, new: State, old: State) -> Normal | None:
        """Expect what was usual."""
        return None

    def probability(self, comparison: Comparison) -> float:
        """Return the probability that the finished difference exceeds the threshold."""
        pairs, batches, expected = comparison.pairs, comparison.batches, comparison.expected or self.usual
        if pairs.count < 2:
            if expected is None:
                return self.constant.rate
            return normal_tail(expected.mean, expected.variance, comparison.threshold)
        mean = comparison.prior_difference + batches * pairs.difference / pairs.count
        variance = self._spread(comparison) * batches * (batches - pairs.count) / pairs.count
        if expected is None or variance <= 0.0:
            return normal_tail(mean, variance, comparison.threshold)
        weight = expected.variance / (expected.variance + variance)
        shrunk = expected.mean + weight * (mean - expected.mean)
        return normal_tail(shrunk, weight * variance, comparison.threshold)

    def learn(self, decision: Decision) -> None:
        """Remember the decision, its log ratio and the scatter of its batches."""
        self.constant.learn(decision)
        if not math.isfinite(decision.difference):
            return
        self.ratios.append(decision.difference)
        self.scatter += 0.05 * (decision.pairs.scatter - self.scatter)
        if len(self.ratios) >= _ENOUGH:
            self.usual = Normal(float(np.mean(self.ratios)), float(np.var(self.ratios)) + 1e-12)

    def _spread(self, comparison: Comparison) -> float:
        seen = comparison.pairs.count - 1
        if self.scatter <= 0.0:
            return comparison.pairs.scatter
        return (comparison.pairs.scatter * seen + self.scatter * _SCATTER_WEIGHT) / (seen + _SCATTER_WEIGHT)

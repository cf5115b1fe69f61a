"""The closed form tells prefetching what the simulation will say."""

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.model.closed_form import latencies
from shadowserve_capacity.model.target import PosteriorTarget
from shadowserve_capacity.prefetch.evidence import Comparison, Decision, Normal
from shadowserve_capacity.prefetch.predictors import PartialData
from shadowserve_capacity.prefetch.problem import State

_COMPARED, _LEAST_COMPARED = 100, 12
_CAUTION = 1.2
_REMEMBERED = 400


@dataclass(slots=True)
class ByFormula:
    """A predictor for a simulated target: a line through recent differences by the formulas and by the simulation.

    Formulas cost a small part of a simulation. How much they know of it depends on the windows: where they know nothing
    the line is flat, and what is left is what was usual. Until twelve pairs are known nothing is expected.
    """

    formulas: PosteriorTarget
    partial: PartialData = field(default_factory=PartialData)
    pairs: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_COMPARED))
    line: tuple[float, float, float] | None = None
    """Mean of the simulation's difference where the formulas' is 0, slope, and variance around that."""
    known: dict[bytes, float] = field(default_factory=dict)

    @staticmethod
    def of(target: PosteriorTarget) -> "ByFormula":
        """Return the predictor for a target of any form."""
        return ByFormula(replace(target, form=latencies))

    def expect(self, new: State, old: State) -> Normal | None:
        """Return what the line says of the formulas' difference; None while there is none."""
        if self.line is None:
            return None
        offset, slope, variance = self.line
        return Normal(offset + slope * self._difference(new, old), variance)

    def probability(self, comparison: Comparison) -> float:
        """Return the probability that the finished difference exceeds the threshold."""
        return self.partial.probability(comparison)

    def learn(self, decision: Decision) -> None:
        """Compare the formulas with what the simulation said."""
        self.partial.learn(decision)
        if np.isfinite(decision.difference):
            self.pairs.append((self._difference(decision.new, decision.old), decision.difference))
        if len(self.pairs) >= _LEAST_COMPARED:
            self.line = _line(np.array(self.pairs))

    def _difference(self, new: State, old: State) -> float:
        return self._density(new) - self._density(old)

    def _density(self, theta: State) -> float:
        key = theta.tobytes()
        if key not in self.known:
            if len(self.known) >= _REMEMBERED:
                self.known.clear()
            prior = self.formulas.log_prior(theta)
            self.known[key] = prior + (self.formulas.log_likelihood(theta, 0) if np.isfinite(prior) else 0.0)
        return self.known[key]


def _line(pairs: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return offset, slope and variance of the least squares line, a little flat and a little cautious."""
    (x, y), count = pairs.mean(axis=0), len(pairs)
    spread_x, spread_y = pairs.var(axis=0)
    together = float(((pairs[:, 0] - x) * (pairs[:, 1] - y)).mean())
    slope = together / (spread_x * (1.0 + 1.0 / count)) if spread_x > 0.0 else 0.0
    around = max(spread_y - slope * together, 0.0) * count / (count - 2)
    return float(y - slope * x), float(slope), float(_CAUTION * around) + 1e-12

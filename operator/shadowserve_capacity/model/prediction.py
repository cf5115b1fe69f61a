"""The closed form tells prefetching what the simulation will say."""

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from shadowserve_capacity.model.closed_form import latencies
from shadowserve_capacity.model.target import PosteriorTarget
from shadowserve_capacity.prefetch.evidence import Comparison, Decision, Normal
from shadowserve_capacity.prefetch.predictors import PartialData
from shadowserve_capacity.prefetch.problem import State

_CHECKED, _LEAST_CHECKED = 60, 8
_CAUTION = 1.2
_REMEMBERED = 400


@dataclass(slots=True)
class ByFormula:
    """A predictor for a simulated target: the formulas' difference, with the recent error of such guesses as variance.

    Formulas cost a small part of a simulation. Until eight guesses were checked nothing is expected.
    """

    formulas: PosteriorTarget
    partial: PartialData = field(default_factory=PartialData)
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=_CHECKED))
    known: dict[bytes, float] = field(default_factory=dict)

    @staticmethod
    def of(target: PosteriorTarget) -> "ByFormula":
        """Return the predictor for a target of any form."""
        return ByFormula(replace(target, form=latencies))

    def expect(self, new: State, old: State) -> Normal | None:
        """Return the difference by the formulas; None while nothing is known of their error."""
        if len(self.errors) < _LEAST_CHECKED:
            return None
        return Normal(self._difference(new, old), _CAUTION * float(np.mean(np.square(self.errors))) + 1e-12)

    def probability(self, comparison: Comparison) -> float:
        """Return the probability that the finished difference exceeds the threshold."""
        return self.partial.probability(comparison)

    def learn(self, decision: Decision) -> None:
        """Check the formulas against what the simulation said."""
        self.partial.learn(decision)
        if np.isfinite(decision.difference):
            self.errors.append(decision.difference - self._difference(decision.new, decision.old))

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
